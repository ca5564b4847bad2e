"""Folders of sandboxes, where several processes make and sweep them at once."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pts.errors import VerifierError
from pts.verifiers.code import sandbox
from tests.pts.verifiers.code_isolation import available

FLOCK = fcntl.flock


@pytest.fixture(scope="module")
def isolation() -> sandbox.Isolation:
    return available()  # in another place: no lock of it is met below


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def between(monkeypatch: pytest.MonkeyPatch, other: Any) -> None:
    """Let another process act between the making of the first lock and its locking."""

    def flock(held: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", FLOCK)
        other()
        FLOCK(held, operation)

    monkeypatch.setattr(fcntl, "flock", flock)


def test_what_another_sweeps_before_it_is_locked_is_made_anew(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    between(monkeypatch, sandbox._sweep)
    folder, held = sandbox._own_folder()
    assert sorted(place.iterdir()) == [Path(folder), Path(f"{folder}.lock")]
    sandbox._sweep()
    assert Path(folder).is_dir(), "it is held"
    sandbox._remove(folder, held)
    assert not list(place.iterdir())


def test_a_sandbox_starts_while_another_process_sweeps(
    isolation: sandbox.Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    between(monkeypatch, sandbox._sweep)
    started = sandbox.Sandbox(isolation, sandbox.JobLimits(1, 5.0, 256 << 20))
    assert started.stop.alive
    started.stop()


def test_a_lock_that_another_holds_is_left_to_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[int] = []

    def sweeps() -> None:
        (lock,) = place.glob("*.lock")
        others.append(os.open(lock, os.O_RDWR))
        FLOCK(others[0], fcntl.LOCK_EX | fcntl.LOCK_NB)

    between(monkeypatch, sweeps)
    folder, held = sandbox._own_folder()
    assert len(list(place.glob("*.lock"))) == 2
    os.close(others[0])
    sandbox._sweep()
    assert list(place.glob("*.lock")) == [Path(f"{folder}.lock")]
    sandbox._remove(folder, held)


def test_a_place_without_locks_is_named_with_its_remedy(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(held: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(VerifierError, match=rf"{place}: No locks available\); set TMPDIR to"):
        sandbox._own_folder()
    assert not list(place.iterdir())


def test_a_missing_place_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    limits = sandbox.JobLimits(1, 1.0, 128 << 20)
    with pytest.raises(VerifierError, match=r"/nowhere/.*: No such file .*; set TMPDIR to"):
        sandbox.Sandbox("landlock", limits)
