"""`pts.search(workers=N)`: the same files, takeovers, blame, errors. Kills: test_workers_killed."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pts.engines.base import SampleRequest
from pts.errors import ConfigError, DataError, EngineError, JournalError, MissingExtra
from pts.runtime.executors import EXECUTORS
from pts.runtime.journal import Journal, read_header
from pts.runtime.leasing import DEATHS
from pts.runtime.machine import DEVICES, THREADS, worker_environment
from pts.runtime.run_folder import RunFolder
from pts.runtime.search import search
from pts.runtime.searcher import share
from pts.runtime.summary import used_ids
from pts.runtime.worker import portable
from pts.types import Grade, Ids, Problem

from .crowd import Killed, MortalEngine, Threads
from .scripted import ScriptedEngine, judge_odd, problems
from .slow_search import CONFIG
from .test_store import journalled_seeds

NAMES = ("results.jsonl", "rollouts.jsonl", "pairs.jsonl", "token_texts.json")


def files(folder: Path) -> dict[str, Any]:
    """What a run leaves, its wall time apart."""
    there = [folder / name for name in NAMES if (folder / name).exists()]
    found: dict[str, Any] = {path.name: path.read_bytes() for path in there}
    found["summary"] = {**json.loads((folder / "summary.json").read_bytes()), "seconds": 0}
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 questions, searched alone."""
    folder = tmp_path_factory.mktemp("whole")
    search(problems(20), ScriptedEngine(8), judge_odd, CONFIG, output=folder)
    return folder


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXECUTORS, "pool", Threads)


def parts(folder: Path) -> list[int]:
    """Seeds of all rollouts on file."""
    path = folder / "journal.jsonl"
    return journalled_seeds(path) if path.exists() else []


def crowd(folder: Path | None, asked: list[Problem], **more: Any) -> Any:
    settings: dict[str, Any] = {"workers": 2, "window": 4, "output": folder} | more
    engine = settings.pop("engine", partial(MortalEngine, 8, 5))
    verifier, config = settings.pop("verifier", judge_odd), settings.pop("config", CONFIG)
    return search(asked, engine, verifier, config, **settings)


def state(folder: Path) -> dict[str, Any]:
    """Bytes and time of change of every file."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def never(number: int, request: SampleRequest) -> None:
    """Nobody dies."""


# Real processes


def test_two_processes_leave_the_files_of_one(tmp_path: Path, whole: Path) -> None:
    search(
        problems(20),
        partial(ScriptedEngine, 8, 5),
        judge_odd,
        CONFIG,
        output=tmp_path,
        window=4,
        workers=2,
    )
    assert files(tmp_path) == files(whole)
    begun = {
        json.loads(line)["q"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()[1:]
    }
    assert begun == {problem.id for problem in problems(20)}
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}


# Threads in the place of processes


@pytest.mark.parametrize("workers", [2, 3])
def test_a_run_goes_on_with_any_number_of_workers(
    tmp_path: Path, whole: Path, threads: None, workers: int
) -> None:
    """Some questions by 3 workers, one cut off, more by one process, the rest by others."""
    MortalEngine.reset(never)
    crowd(tmp_path, problems(6), workers=3)
    search(problems(9), ScriptedEngine(8), judge_odd, CONFIG, output=tmp_path)

    def stop(number: int, request: SampleRequest) -> None:
        if number > 300:
            raise OSError("stop")

    MortalEngine.reset(stop)
    with pytest.raises(OSError, match="stop"):
        crowd(tmp_path, problems(20), workers=workers)
    before = parts(tmp_path)
    MortalEngine.reset(never)
    crowd(tmp_path, problems(20), workers=workers)
    assert not set(MortalEngine.asked) & set(before), "a journalled rollout was drawn again"
    assert files(tmp_path) == files(whole)
    assert sorted(parts(tmp_path)) == sorted(parts(whole))


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, threads: None) -> None:
    MortalEngine.reset(never)
    first = crowd(tmp_path, problems(6))
    before = state(tmp_path)
    MortalEngine.reset(never)
    again = crowd(tmp_path, problems(6))
    alone = search(problems(6), ScriptedEngine(8), judge_odd, CONFIG, output=tmp_path)
    assert MortalEngine.asked == []
    assert state(tmp_path) == before
    for run in (again, alone):
        assert run.summary == first.summary
        assert run.pairs == first.pairs


def test_without_a_folder_the_results_are_the_same(whole: Path, threads: None) -> None:
    def once(number: int, request: SampleRequest) -> None:
        if number > 200 and not died:
            died.append(number)
            raise Killed

    died: list[int] = []
    MortalEngine.reset(once)
    run = crowd(None, problems(20))
    alone = search(problems(20), ScriptedEngine(8), judge_odd, CONFIG)
    assert list(run.results) == list(alone.results)
    assert run.pairs == alone.pairs
    assert died


def test_deaths_are_survived_as_long_as_rollouts_are_recorded(
    tmp_path: Path, whole: Path, threads: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker dies after every 250 rollouts or so: far more often than a question may kill."""
    next_death = 250
    journalled: list[set[int]] = []

    def die(number: int, request: SampleRequest) -> None:
        nonlocal next_death
        if journalled:
            assert not journalled[-1] & set(request.seeds), "a journalled rollout is drawn again"
        if number >= next_death:
            next_death = number + 250
            journalled.append(set(parts(tmp_path)))
            raise Killed

    MortalEngine.reset(die)
    crowd(tmp_path, problems(20))
    assert len(journalled) > 6
    assert caplog.text.count("questions are taken over") == len(journalled)
    assert files(tmp_path) == files(whole)
    assert sorted(parts(tmp_path)) == sorted(parts(whole))


@pytest.mark.parametrize("size", [1, 4, 9])
def test_what_a_killed_worker_has_sent_is_on_file_before_its_questions_are_leased(
    tmp_path: Path,
    whole: Path,
    threads: None,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    """All its finished queries, and nothing of the message that its death has torn."""
    monkeypatch.setattr(Threads, "torn", b"\0\0\1\0torn!"[:size])
    died: list[Ids] = []

    def die(number: int, request: SampleRequest) -> None:
        # A third death in a row would end the run: the others may take all requests between two.
        if number > 150 * (len(died) + 1) and died.count(request.prompt) < DEATHS - 1:
            died.append(request.prompt)
            raise Killed

    MortalEngine.reset(die)
    crowd(tmp_path, problems(20))
    assert len(died) > 6
    assert len(MortalEngine.asked) == len(set(MortalEngine.asked)), "none was drawn twice"
    assert files(tmp_path) == files(whole)
    assert sorted(parts(tmp_path)) == sorted(parts(whole))


def test_a_question_that_has_changed_is_found_by_its_worker(tmp_path: Path, threads: None) -> None:
    MortalEngine.reset(never)
    crowd(tmp_path, problems(2))
    for path in tmp_path.glob("[!j]*"):
        path.unlink()
    before = (tmp_path / "journal.jsonl").read_bytes()
    changed = dataclasses.replace(problems(2)[1], prompt="another")
    with pytest.raises(JournalError, match=r"journal\.jsonl: question 'q1' has changed"):
        crowd(tmp_path, [problems(1)[0], changed])
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def test_a_lease_larger_than_a_pipe_is_read(tmp_path: Path, threads: None) -> None:
    """A question with so much on file goes on, while its worker's neighbours send records.

    What is put there belongs to no prefix, so nothing could be kept of it.
    """
    MortalEngine.reset(never)
    config = CONFIG.model_copy(update={"keep": "none"})
    crowd(tmp_path, problems(4), config=config)
    path = tmp_path / "journal.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    entry = {"q": "q1", "at": "elsewhere", "p": "s", "i": 0, "o": [[0, 8, *range(8)]] * 100_000}
    lines += [(json.dumps(entry, separators=(",", ":")) + "\n").encode()]
    path.write_bytes(b"".join(lines))
    before = files(tmp_path)
    for name in before:
        (tmp_path / name).unlink(missing_ok=True)
    MortalEngine.reset(never)
    crowd(tmp_path, problems(4), config=config)
    assert MortalEngine.asked == []
    assert files(tmp_path) == before


def test_a_run_cut_at_any_byte_resumes_the_same(tmp_path: Path, threads: None) -> None:
    """Cuts within a line, at its end, and after it, all along a journal of two workers."""
    MortalEngine.reset(never)
    crowd(tmp_path / "whole", problems(3))
    journal = (tmp_path / "whole" / "journal.jsonl").read_bytes()
    for size in range(0, len(journal), len(journal) // 40):
        cut = tmp_path / str(size)
        cut.mkdir()
        (cut / "journal.jsonl").write_bytes(journal[:size])
        before = parts(cut)
        MortalEngine.reset(never)
        crowd(cut, problems(3))
        assert not set(MortalEngine.asked) & set(before), "a journalled rollout was drawn again"
        assert files(cut) == files(tmp_path / "whole")
        resumed = (cut / "journal.jsonl").read_bytes().splitlines()
        assert sorted(resumed) == sorted(journal.splitlines()), "each begun and recorded once"


def test_a_question_that_kills_its_workers_is_named(
    tmp_path: Path, threads: None, caplog: pytest.LogCaptureFixture
) -> None:
    bad = ScriptedEngine().encode(problems(8)[5])
    deaths: Counter[bool] = Counter()

    def die(number: int, request: SampleRequest) -> None:
        if request.prompt == bad and request.prefix:
            deaths[True] += 1
            raise Killed

    MortalEngine.reset(die)
    with pytest.raises(EngineError, match=r"question 'q5' has ended 3 workers in a row"):
        crowd(tmp_path, problems(8))
    assert deaths[True] in (3, 4), "with others beside it, then alone; alone at once if it is late"
    good = [problem for problem in problems(8) if problem.id != "q5"]
    crowd(tmp_path, good)
    alone = search(good, ScriptedEngine(8), judge_odd, CONFIG)
    assert list(crowd(tmp_path, good).results) == list(alone.results)


def test_workers_that_die_at_once_end_the_run(tmp_path: Path, threads: None) -> None:
    with pytest.raises(EngineError, match=r"died 3 times in a row before .*SIGKILL"):
        crowd(tmp_path, problems(3), engine=killed)


def killed() -> ScriptedEngine:
    raise Killed


def failing(problem: Problem, text: str) -> Grade:
    raise AssertionError


def broken_engine() -> ScriptedEngine:
    raise MissingExtra("gguf", "smollm2")


def test_errors_of_a_worker_are_raised_here(tmp_path: Path, threads: None) -> None:
    MortalEngine.reset(never)
    twice = [*problems(2), *problems(1)]
    with pytest.raises(DataError, match="two problems have the id 'q0'"):
        crowd(tmp_path, twice)
    with pytest.raises(JournalError, match="verifier: the journal has 'judge_odd"):
        crowd(tmp_path, problems(2), verifier=failing)
    with pytest.raises(EngineError, match=r"MissingExtra: gguf is not installed"):
        crowd(tmp_path, problems(2), engine=broken_engine)
    unfinished = [Problem("q0", "a", "odd", completions=((1, 2),))]
    with pytest.raises(DataError, match="no stop token") as caught:
        crowd(tmp_path, unfinished)
    assert "in a worker" in caught.value.__notes__[0]


def test_two_runs_on_one_journal_are_refused(tmp_path: Path, threads: None) -> None:
    MortalEngine.reset(never)
    crowd(tmp_path, problems(1))
    _, fingerprint = read_header(tmp_path / "journal.jsonl")
    with (
        Journal(tmp_path / "journal.jsonl", fingerprint),
        pytest.raises(JournalError, match="another process is running this search"),
    ):
        crowd(tmp_path, problems(2))


def test_an_interrupted_run_has_the_texts_that_were_seen(tmp_path: Path, threads: None) -> None:
    def stream() -> Any:
        yield from problems(6)
        while not (tmp_path / "results.jsonl").stat().st_size:
            yield Problem(f"more-{len(os.listdir(tmp_path))}-{next(numbers)}", "a", "odd")
        raise KeyboardInterrupt

    numbers = iter(range(10**6))
    MortalEngine.reset(never)
    with pytest.raises(KeyboardInterrupt):
        crowd(tmp_path, stream(), window=2)  # type: ignore[arg-type]
    folder = RunFolder(tmp_path)
    results = [record.result for record in folder.records]
    assert results
    assert all("⟨" not in folder.text(tuple(used_ids(result))) for result in results)


# Settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": ScriptedEngine(8)}, "with 2 workers, engine must be a function"),
        ({"engine": lambda: ScriptedEngine(8)}, "the engine cannot be handed to worker processes"),
        ({"verifier": lambda problem, text: None}, "the verifier cannot be handed"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_handed_to_a_worker_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        crowd(tmp_path / "out", problems(1), **changes)
    assert not (tmp_path / "out").exists()


def test_one_worker_takes_a_function_too() -> None:
    run = search(problems(2), partial(ScriptedEngine, 8), judge_odd, CONFIG)
    alone = search(problems(2), ScriptedEngine(8), judge_odd, CONFIG)
    assert list(run.results) == list(alone.results)


@pytest.mark.parametrize(
    ("left", "window", "expected"), [(None, 64, 64), (20, 64, 7), (1000, 64, 64), (0, 64, 1)]
)
def test_a_worker_takes_no_more_than_its_share(
    left: int | None, window: int, expected: int
) -> None:
    assert share(left, window, workers=3) == expected


def test_workers_share_cores_and_take_devices_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)), raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(DEVICES, raising=False)
    monkeypatch.delenv(THREADS, raising=False)
    assert worker_environment(0, 2) == {THREADS: "3"}
    assert worker_environment(0, 9) == {THREADS: "1"}
    monkeypatch.setenv(THREADS, "5")
    assert worker_environment(0, 2) == {}, "what the user has set stays"
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: a'\necho '  MIG 1g'\necho 'GPU 1: b'\n")
    tool.chmod(0o755)
    assert [worker_environment(k, 3)[DEVICES] for k in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv(DEVICES, "4,6,7")
    assert [worker_environment(k, 4)[DEVICES] for k in range(4)] == ["4", "6", "7", "4"]
    monkeypatch.setenv(DEVICES, "")
    assert DEVICES not in worker_environment(0, 2), "none are to be used"


@pytest.mark.parametrize(
    ("error", "kind"),
    [(ConfigError("one", "two"), ConfigError), (MissingExtra("a", "b"), EngineError)],
)
def test_errors_travel(error: Exception, kind: type[Exception]) -> None:
    copy = portable(error)
    assert type(copy) is kind
    assert str(error) in str(copy)
