"""Claims on a shared folder: one holder, and stale ones are taken over."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from align.sweep import claims
from align.sweep.claims import claimed, holder


def write(folder: Path, host: str, process: int, age: float = 0.0) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "a.json"
    file.write_text(json.dumps({"host": host, "process": process}))
    then = file.stat().st_mtime - age
    os.utime(file, (then, then))
    return file


def test_one_holds_a_claim_at_a_time(tmp_path: Path) -> None:
    with claimed(tmp_path, "a") as first, claimed(tmp_path, "a") as second:
        assert (first, second) == (True, False)
        assert holder(tmp_path, "a") == f"{socket.gethostname()}, process {os.getpid()}"
    assert holder(tmp_path, "a") == ""
    with claimed(tmp_path, "a") as again:
        assert again
    assert not [*tmp_path.iterdir()]


def test_a_claim_of_a_dead_process_of_this_machine_is_taken_over(tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    write(tmp_path, socket.gethostname(), child)
    with claimed(tmp_path, "a") as mine:
        assert mine


def test_a_claim_of_another_machine_is_respected_while_it_is_touched(tmp_path: Path) -> None:
    write(tmp_path, "elsewhere", 1, claims.STALE / 2)
    with claimed(tmp_path, "a") as mine:
        assert not mine
    write(tmp_path, "elsewhere", 1, claims.STALE * 2)
    with claimed(tmp_path, "a") as mine:
        assert mine


def test_a_damaged_claim_is_stale_only_by_its_age(tmp_path: Path) -> None:
    file = write(tmp_path, "x", 1)
    file.write_text("{")
    with claimed(tmp_path, "a") as mine:
        assert not mine
