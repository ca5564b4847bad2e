"""Claims: which process works on which seed, in a folder that processes and machines share.

    with claimed(folder / "claims", "seed3") as mine:
        if mine: ...

A claim is a file that its holder touches every `BEAT` seconds. It is stale when its process is
known to be gone (on this machine) or has not touched it for `STALE` seconds by the clock of the
folder's own disk; whoever finds it so takes it over, and of several only one can.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BEAT = 20.0
STALE = 300.0


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """Context: whether the claim is held; it is given back at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    if not _take(file):
        yield False
        return
    done = threading.Event()
    beating = threading.Thread(target=_beat, args=(file, done), daemon=True)
    beating.start()
    try:
        yield True
    finally:
        done.set()
        beating.join()
        file.unlink(missing_ok=True)


def holder(folder: Path, name: str) -> str:
    """Who holds a claim, for messages; empty if nobody does."""
    file = folder / f"{name}.json"
    if not file.exists() or _is_stale(file):
        return ""
    host, process = _read(file)
    return f"{host}, process {process}"


def _take(file: Path) -> bool:
    if _create(file):
        return True
    found = _read(file)
    if not _is_stale(file):
        return False
    aside = file.with_name(f".{file.stem}.{uuid.uuid4().hex}")
    try:
        os.rename(file, aside)  # one of several that find it stale succeeds
    except FileNotFoundError:
        return False
    try:
        if _read(aside) == found:
            return _create(file)
        with contextlib.suppress(FileExistsError):  # another one was faster, and this is its claim
            os.link(aside, file)
        return False
    finally:
        aside.unlink()


def _create(file: Path) -> bool:
    """Make the file with its content, if it is not there: linked into place whole."""
    temporary = file.with_name(f".{file.stem}.{uuid.uuid4().hex}")
    temporary.write_text(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
    try:
        os.link(temporary, file)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def _is_stale(file: Path) -> bool:
    host, process = _read(file)
    if host == socket.gethostname() and not _is_alive(process):
        return True
    probe = file.with_name(f".{file.stem}.{uuid.uuid4().hex}")
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    try:
        return now - file.stat().st_mtime > STALE
    except FileNotFoundError:
        return False


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _read(file: Path) -> tuple[str, int]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return str(data["host"]), int(data["process"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", 0


def _beat(file: Path, done: threading.Event) -> None:
    while not done.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(file)
