"""A search by several processes, struck again and again: a worker, the parent, or all at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .test_store import ROOT, journalled_seeds
from .test_workers import files, parts

SECONDS = 600.0
"""For what takes seconds on an idle machine."""


def start(folder: Path, workers: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.pts.crowd", str(folder), str(workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)


def workers_of(parent: int) -> list[int]:
    """Process ids of the workers that a search has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            command = (stat.parent / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent and fields[0] != "Z" and b"--multiprocessing-fork" in command:
            found.append(int(stat.parent.name))
    return found


def alive(pids: list[int]) -> list[int]:
    """Those that still run; a zombie does not."""
    return [
        pid
        for pid in pids
        if (stat := Path(f"/proc/{pid}/stat")).exists()
        and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    ]


def until(what: str) -> Iterator[None]:
    """Ticks for SECONDS, then fails."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(0.002)
        yield
    pytest.fail(f"waited {SECONDS:g} s for {what}")


def size(folder: Path) -> int:
    path = folder / "journal.jsonl"
    return path.stat().st_size if path.exists() else 0


def asked_of(folder: Path) -> dict[Path, int]:
    return {path: len(path.read_text().split()) for path in folder.glob("asked-*.txt")}


def strike(search: subprocess.Popen[bytes], target: str, draw: random.Random) -> None:
    """SIGKILL to one worker, to the parent or to all; with the parent, its workers end."""
    workers = workers_of(search.pid)
    if target == "worker":
        if workers:
            os.kill(draw.choice(workers), signal.SIGKILL)
        return
    if target == "parent":
        search.kill()
    else:
        os.killpg(search.pid, signal.SIGKILL)
    search.wait()
    for _ in until("the workers of a dead parent to end"):
        if not alive(workers):
            return


def run_until_struck(folder: Path, workers: int, target: str, draw: random.Random) -> bool:
    """Start a search and strike once it has recorded some more; True if it ended before."""
    began, search = size(folder), start(folder, workers)
    wanted = began + draw.randint(1, 12_000)
    for _ in until("rollouts to be recorded"):
        if search.poll() is not None:
            return True
        if size(folder) >= wanted:
            break
    time.sleep(draw.uniform(0.0, 0.01))
    strike(search, target, draw)
    if target == "worker":  # and once more, as another has taken its place
        for _ in until("rollouts to be recorded by those that remain"):
            if search.poll() is not None or size(folder) > wanted + 2000:
                break
        strike(search, "all", draw)
    return search.wait() == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to find workers in")
def test_a_search_struck_again_and_again_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert start(whole, 1).wait(SECONDS) == 0
    torn.mkdir()
    draw = random.Random(7)
    for target in ("worker", "parent", "all", "worker", "parent", "worker", "all"):
        before, asked = set(parts(torn)), asked_of(torn)
        ended = run_until_struck(torn, draw.randint(1, 3), target, draw)
        for path in asked_of(torn):
            later = path.read_text().split()[asked.get(path, 0) :]
            assert not before & set(map(int, later)), "a journalled rollout was drawn again"
        if ended:
            break
    search = start(torn, 2)
    assert search.wait(SECONDS) == 0
    assert files(torn) == files(whole)
    assert len(parts(torn)) == len(set(parts(torn)))
    assert sorted(parts(torn)) == sorted(parts(whole))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to find workers in")
def test_workers_struck_one_after_the_other_lose_nothing(tmp_path: Path) -> None:
    """One undisturbed parent; every 8 kB of journal one of its workers is killed."""
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert start(whole, 1).wait(SECONDS) == 0
    torn.mkdir()
    draw, search, strikes, wanted = random.Random(8), start(torn, 2), 0, 8000
    for _ in until("the search to end"):
        if search.poll() is not None:
            break
        if size(torn) > wanted:
            strike(search, "worker", draw)
            strikes, wanted = strikes + 1, size(torn) + 8000
    assert search.returncode == 0
    assert strikes > 3
    assert files(torn) == files(whole)
    assert len(parts(torn)) == len(set(parts(torn)))
    assert sorted(parts(torn)) == sorted(journalled_seeds(whole / "journal.jsonl"))
