"""A search by actors of a real Ray: kills of actors, of a machine and of the driver; what is left.

Every search is a process of its own, as are the machines of the clusters, all of them here.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .test_cli import RUN, asked, model
from .test_store import ROOT
from .test_workers import files, parts
from .test_workers_killed import SECONDS, alive, asked_of, size, until

__all__ = ["asked", "model"]  # fixtures

HERE = importlib.util.find_spec("ray") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HERE, reason="ray is missing: pip install 'three-stage[ray]'"),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to find actors in"),
]
PROBLEMS = "12"
SECRET = "a-secret-of-the-environment"


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray keeps its logs and its token; its sockets allow but a short path."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("MY_API_KEY", SECRET)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(folder: Path, address: str = "local", workers: int = 2) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.pts.crowd", folder, workers, PROBLEMS, address]
    return subprocess.Popen([*map(str, command)], cwd=ROOT, start_new_session=True)


def processes(home: Path) -> dict[int, str]:
    """Process ids and command lines of all that has this home, a zombie apart."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            mine = f"RAY_TMPDIR={home}\0".encode() in (place / "environ").read_bytes()
            command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if mine and int(place.name) != os.getpid() and alive([int(place.name)]):
            found[int(place.name)] = command
    return found


def actors(home: Path) -> list[int]:
    return [pid for pid, name in processes(home).items() if name.startswith("ray::ActorWorker")]


def until_recorded(folder: Path, search: subprocess.Popen[bytes], more: int) -> bool:
    """Wait until the journal has so many bytes more; False if the search ended before."""
    wanted = size(folder) + more
    for _ in until("rollouts to be recorded"):
        if search.poll() is not None:
            return False
        if size(folder) >= wanted:
            return True
    raise AssertionError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Searched by one process without Ray."""
    folder = tmp_path_factory.mktemp("whole")
    command = [sys.executable, "-m", "tests.pts.crowd", str(folder), "1", PROBLEMS]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


def check_equal(folder: Path, whole: Path) -> None:
    assert files(folder) == files(whole)
    assert len(parts(folder)) == len(set(parts(folder)))
    assert sorted(parts(folder)) == sorted(parts(whole))


def test_actors_and_drivers_killed_again_and_again(tmp_path: Path, whole: Path, home: Path) -> None:
    """The driver is struck with SIGKILL, with Ctrl-C to all, and with SIGTERM: nothing of Ray is
    left running, and nothing on file is drawn again. In the last session actors are killed."""
    for strike in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        before, asked_before = set(parts(tmp_path)), asked_of(tmp_path)
        search = start(tmp_path)
        assert until_recorded(tmp_path, search, 4000)
        assert len(actors(home)) >= 1
        (os.killpg if strike == signal.SIGINT else os.kill)(search.pid, strike)
        assert search.wait(SECONDS) != 0
        for _ in until("Ray's processes to end with their driver"):
            if not processes(home):
                break
        for path in asked_of(tmp_path):
            later = path.read_text().split()[asked_before.get(path, 0) :]
            assert not before & set(map(int, later)), "a journalled rollout was drawn again"
    search, draw, strikes = start(tmp_path), random.Random(9), 0
    while until_recorded(tmp_path, search, 9000):
        if there := actors(home):
            os.kill(draw.choice(there), signal.SIGKILL)
            strikes += 1
    assert search.wait(SECONDS) == 0
    assert strikes > 1
    check_equal(tmp_path, whole)
    for _ in until("Ray to end with the search"):
        if not processes(home):
            break
    told = [path for path in home.rglob("*") if path.is_file() and SECRET.encode() in read(path)]
    assert not told, "the environment stands in no log"


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # a socket, or gone
        return b""


def test_a_machine_and_a_driver_of_a_cluster_are_killed(
    tmp_path: Path, whole: Path, home: Path
) -> None:
    """Two machines have a core each; first the driver dies, then one machine, for good."""
    cluster = subprocess.Popen(
        [sys.executable, "-m", "tests.pts.ray_machines"],
        cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert cluster.stdin is not None
    assert cluster.stdout is not None
    address = cluster.stdout.readline().strip()
    try:
        search = start(tmp_path, address)
        assert until_recorded(tmp_path, search, 4000)
        there = actors(home)
        search.kill()
        search.wait()
        for _ in until("the actors of a dead driver to end"):
            if not alive(there):
                break
        assert cluster.poll() is None
        before, asked_before = set(parts(tmp_path)), asked_of(tmp_path)
        search = start(tmp_path, address)
        assert until_recorded(tmp_path, search, 8000)
        cluster.stdin.write("kill\n")
        cluster.stdin.flush()
        assert search.wait(SECONDS) == 0
    finally:
        cluster.communicate("end\n")
    for path in asked_of(tmp_path):
        later = path.read_text().split()[asked_before.get(path, 0) :]
        assert not before & set(map(int, later)), "a journalled rollout was drawn again"
    check_equal(tmp_path, whole)


def test_a_model_in_actors_leaves_the_files_of_one_process(
    model: Path, asked: Path, tmp_path: Path, home: Path
) -> None:
    """Bit-identical because the batch shape is: one question at a time, as many threads."""
    for name, options in (("one", ()), ("two", ("--workers", "2", "--executor", "ray"))):
        command = ["-m", "pts.cli.main", "search", "--model", model, "--problems", asked, "--quiet"]
        command += ["--output", tmp_path / name, "--prompt", "q", "--reference", "a", *options]
        command += ["--verifier", r"exact:([01])", "--window", "1", *RUN]
        subprocess.run([sys.executable, *map(str, command)], check=True)
    for name in ("results.jsonl", "pairs.jsonl", "token_texts.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
