"""`pts.search(executor="ray")` with threads in the place of actors. Real ones: test_ray_killed."""

from __future__ import annotations

import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pts.cli.executor import chosen_executor
from pts.engines.base import SampleRequest
from pts.errors import ConfigError, EngineError, MissingExtra
from pts.runtime.leasing import DEATHS
from pts.runtime.machine import THREADS
from pts.runtime.ray_actors import Mailbox, RayActors, places, reason
from pts.types import Ids

from .crowd import Killed, MortalEngine
from .scripted import ScriptedEngine, problems
from .stand_in_ray import StandInRay, mortal_work
from .test_workers import broken_engine, crowd, files, never, parts, whole

__all__ = ["whole"]  # the fixture


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> StandInRay:
    return stand_in(monkeypatch)


def stand_in(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float], **more: Any) -> StandInRay:
    ray = StandInRay(nodes, **more)
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    monkeypatch.setattr("pts.runtime.leasing.work", mortal_work)
    monkeypatch.setenv(THREADS, "1")  # the stand-in's actors set it in this process
    return ray


@pytest.mark.parametrize("workers", [1, 3])
def test_actors_leave_the_files_of_one_process(
    tmp_path: Path, whole: Path, ray: StandInRay, workers: int
) -> None:
    MortalEngine.reset(never)
    crowd(tmp_path, problems(20), executor="ray", workers=workers)
    assert files(tmp_path) == files(whole)
    assert sorted(parts(tmp_path)) == sorted(parts(whole))
    assert not ray.connected, "what was started for the search has ended"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert not ray.given["include_dashboard"]
    assert ray.options["max_restarts"] == 0


def test_the_questions_of_lost_actors_are_taken_over(
    tmp_path: Path, whole: Path, ray: StandInRay, caplog: pytest.LogCaptureFixture
) -> None:
    """What an actor has not delivered is drawn again, and nothing that is on file."""
    journalled: list[set[int]] = []
    died: list[Ids] = []

    def die(number: int, request: SampleRequest) -> None:
        if journalled:
            assert not journalled[-1] & set(request.seeds), "a journalled rollout is drawn again"
        if number > 150 * (len(died) + 1) and died.count(request.prompt) < DEATHS - 1:
            died.append(request.prompt)
            journalled.append(set(parts(tmp_path)))
            raise Killed

    MortalEngine.reset(die)
    crowd(tmp_path, problems(20), executor="ray")
    assert len(died) > 6
    assert caplog.text.count("was lost: Its worker died; ") == len(died)
    assert files(tmp_path) == files(whole)
    assert sorted(parts(tmp_path)) == sorted(parts(whole))


def test_errors_of_an_actor_are_raised_here(tmp_path: Path, ray: StandInRay) -> None:
    with pytest.raises(EngineError, match="MissingExtra: gguf is not installed"):
        crowd(tmp_path, problems(2), engine=broken_engine, executor="ray")
    assert not ray.connected
    with pytest.raises(ConfigError, match="with a worker, engine must be a function"):
        crowd(tmp_path, problems(2), engine=ScriptedEngine(), executor="ray", workers=1)
    with pytest.raises(ConfigError, match="the engine cannot be handed to Ray actors"):
        crowd(tmp_path, problems(2), engine=lambda: ScriptedEngine(), executor="ray")


def test_a_ray_that_the_program_has_started_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It says what it has: a worker has a core of it, and a GPU as there are some."""
    ray = stand_in(monkeypatch, {"CPU": 8, "GPU": 1}, {"CPU": 8}, connected=True)
    MortalEngine.reset(never)
    crowd(tmp_path, problems(3), executor="ray")
    assert ray.connected
    assert (ray.options["num_cpus"], ray.options["num_gpus"]) == (1, 1)
    assert "has room for 1 of 2 workers" in caplog.text


def test_cores_of_a_local_ray_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are as many as the workers ask for, who otherwise would wait for one another."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)), raising=False)
    MortalEngine.reset(never)
    ray = stand_in(monkeypatch)
    crowd(tmp_path / "3", problems(2), executor="ray")
    assert (ray.given["num_cpus"], ray.options["num_cpus"], ray.options["num_gpus"]) == (6, 3, 0)
    ray = stand_in(monkeypatch)
    crowd(tmp_path / "5", problems(2), executor=RayActors(cpus_per_worker=5))
    assert (ray.given["num_cpus"], ray.options["num_cpus"]) == (10, 5)


def test_a_cluster_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = stand_in(monkeypatch, {"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 2})
    wanted = RayActors(address="auto", gpus_per_worker=4)
    with pytest.raises(ConfigError, match="no machine of the Ray cluster has 1 CPUs and 4 GPUs"):
        crowd(tmp_path, problems(2), executor=wanted)
    assert ray.given["address"] == "auto"
    assert "num_cpus" not in ray.given
    assert not ray.connected
    stand_in(monkeypatch)
    with pytest.raises(ConfigError, match=r"no Ray cluster at 'head:6379' \(nobody answers\)"):
        crowd(tmp_path, problems(2), executor=RayActors(address="head:6379"))


@pytest.mark.parametrize(
    ("cpus", "gpus", "expected"),
    [(1, 0, 4 + 7), (4, 0, 1 + 1), (1, 1, 1 + 4), (1, 0.5, 2 + 7), (1, 3, 0 + 1)],
)
def test_places_are_counted_machine_by_machine(cpus: int, gpus: float, expected: int) -> None:
    """On the first and the second; the third has no CPU."""
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 7.0, "GPU": 4.0}, {"GPU": 8.0}]
    assert places(nodes, cpus, gpus) == expected


def test_a_mailbox_gathers_until_its_worker_waits_or_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No clock ends the gathering here."""
    monkeypatch.setattr("pts.runtime.ray_actors.GATHER", None)
    mailbox, heard = Mailbox(), list[list[bytes]]()
    hearing = threading.Thread(target=lambda: heard.extend(mailbox.hear() for _ in range(3)))
    hearing.start()
    for message in (b"line", b"line", b"next"):
        mailbox.send_bytes(message)
    threading.Timer(0.01, mailbox.order, (b"lease",)).start()
    assert mailbox.recv_bytes() == b"lease"
    mailbox.send_bytes(b"done")
    mailbox.close()
    hearing.join()
    assert heard == [[b"line", b"line", b"next"], [b"done"], []]


def test_a_worker_that_nobody_hears_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pts.runtime.ray_actors.GATHER", None)
    monkeypatch.setattr("pts.runtime.ray_actors.BATCH", 2)
    mailbox = Mailbox()
    talking = threading.Thread(target=lambda: [mailbox.send_bytes(b"line") for _ in range(5)])
    talking.start()
    talking.join(0.05)
    assert talking.is_alive()
    assert [mailbox.hear(), mailbox.hear()] == [[b"line"] * 2] * 2
    talking.join()


def test_why_an_actor_died_is_told_in_a_sentence() -> None:
    said = "The actor died.\n\tpid: 7\nThe actor is dead. Some common causes include: (1) many\n"
    assert reason(RuntimeError(said)) == "The actor is dead"
    assert reason(RuntimeError()) == "RuntimeError"


def test_ray_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'three-stage\[ray\]'"):
        crowd(tmp_path / "out", problems(1), executor="ray")
    with pytest.raises(MissingExtra):
        chosen_executor("ray", address=None)
    assert not (tmp_path / "out").exists()


def test_what_a_command_line_says_of_executors(ray: StandInRay) -> None:
    of_ray = {"address": None, "cpus_per_worker": None, "gpus_per_worker": None}
    assert chosen_executor("pool", **of_ray) == "pool"
    assert chosen_executor("ray", **of_ray) == RayActors()
    asked = {**of_ray, "address": "auto", "gpus_per_worker": 2.0}
    assert chosen_executor("ray", **asked) == RayActors(address="auto", gpus_per_worker=2)
    with pytest.raises(ConfigError) as caught:
        chosen_executor("pool", **asked)
    assert caught.value.problems == (
        "--ray-address is for Ray: give --executor ray as well",
        "--gpus-per-worker is for Ray: give --executor ray as well",
    )
    with pytest.raises(ConfigError, match="cpus_per_worker: got 0"):
        chosen_executor("ray", cpus_per_worker=0)
    with pytest.raises(ConfigError, match="no executor 'rai'; did you mean 'ray'"):
        chosen_executor("rai", **of_ray)
    with pytest.raises(ConfigError, match="no executor 'rai'"):
        crowd(None, problems(1), engine=partial(ScriptedEngine, 8), executor="rai")
