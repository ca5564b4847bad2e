"""Files and digests: atomic writes, JSON lines that survive a kill, the same text in every
process."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from pydantic import ValidationError

from pts.errors import DataError, JournalError
from pts.types import Ids, Problem

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

PAGE = r"(?i)\s*<!doctype html"
"""How an HTML page begins."""

OF_A_RUN = frozenset({
    "journal.jsonl", "results.jsonl", "rollouts.jsonl", "pairs.jsonl", "samples.jsonl",
    "token_texts.json", "summary.json", "plan.json", "shard.json", "manifest.json", "table.json",
})  # fmt: skip
"""Names of the files from which a run's folder is read again."""

_HEAD = 1 << 24
"""Bytes of a file that are looked at to know it by; a line of token ids may be long."""


@contextmanager
def replacing(path: Path) -> Iterator[io.TextIOWrapper]:
    """Context: a text file that takes the place of `path` when the block ends without error."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        try:
            yield file
        except BaseException:
            temporary.unlink()
            raise
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def output_fault(folder: Path, mark: str, written: Collection[str] = ()) -> str:
    """Why a folder cannot be written to; empty if it can.

    A folder with the file `mark` was written before. In another one no file of the names `written`
    (without names: nothing but hidden files) may stand: others' files are never written over.
    """
    fault = folder_fault(folder)
    if fault or not folder.exists() or (folder / mark).exists():
        return fault
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    names = [name for name in names if not written or name in written]
    if not names:
        return ""
    more = ", …" if len(names) > 3 else ""
    return (
        f"it holds {', '.join(names[:3])}{more} but no {mark}, so this command did not write it; "
        "give a new or an empty --output"
    )


def folder_fault(folder: Path) -> str:
    """Why a folder is none and cannot be made, or cannot be written to; empty if it can."""
    there = folder
    while not there.exists() and there != there.parent:
        if there.is_symlink():
            return _leads_nowhere(there)
        there = there.parent
    if not there.is_dir():
        return f"{there} is a file, not a folder; give another --output"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there} cannot be written to; give another --output"
    return ""


def file_fault(file: Path, begins: str = PAGE, what: str = "page") -> str:
    """Why a file cannot be written; empty if it can, its folder made first.

    A file that is there must begin with a match of the pattern `begins`, as `what` is written
    begins: others' files are never written over. Nor are those that a run keeps in its folder.
    """
    if file.is_dir():
        return "it is a folder; name a file"
    if fault := folder_fault(file.parent):
        return fault
    marks = (file.with_name("journal.jsonl"), file.with_name("manifest.json"))
    if file.name in OF_A_RUN and any(mark.exists() for mark in marks):
        return f"the run in {file.parent} keeps a file of its own there; give another file"
    if not file.exists():
        return _leads_nowhere(file) if file.is_symlink() else ""
    if not file.is_file():
        return f"{file} is neither a file nor a folder; give another file"
    with file.open("rb") as held:
        first = held.read(_HEAD).decode(errors="replace")
    if first and not re.match(begins, first):
        return f"{file} exists and holds no {what}; it is not written over, give another file"
    return ""


def _leads_nowhere(link: Path) -> str:
    target = os.readlink(link)
    return f"{link} is a link to {target}, which is not there; make it, or give another --output"


def context_length(model: Path) -> int | None:
    """The tokens that a model folder's config.json allows; None where it tells no number."""
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        held = {**config, **config.get("text_config", {})}
        length = held.get("max_position_embeddings", held.get("n_positions"))
    except (OSError, ValueError, TypeError, AttributeError):
        return None  # loading the model tells what is wrong
    return length if isinstance(length, int) and length > 0 else None


def cache_folder() -> Path:
    """Where what was converted once is kept for all runs; it need not exist yet."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "three-stage"


def write_json(path: Path, value: object) -> None:
    """Write an indented JSON file atomically; ASCII, as a token's text may be half a character."""
    with replacing(path) as file:
        file.write(json.dumps(value, allow_nan=False, indent=2) + "\n")


class JsonLines(Generic[_T]):
    """Records of a JSONL file, read one at a time at every iteration; `len` counts the lines.

    With `growing`, a last line without its end is being written, or was torn by a kill: none yet.
    """

    def __init__(
        self, path: Path | str, read: Callable[[bytes], _T], growing: bool = False
    ) -> None:
        self.path = Path(path)
        self._read = read
        self._growing = growing

    def _lines(self) -> Iterator[bytes]:
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file")
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n") or not self._growing:
                    yield line

    def __iter__(self) -> Iterator[_T]:
        for number, line in enumerate(self._lines(), 1):
            try:
                record = self._read(line)
            except ValueError as error:
                what = str(error)
                if isinstance(error, ValidationError):
                    first = error.errors()[0]
                    where = ".".join(map(str, first["loc"]))
                    got = first["input"]
                    simple = where and isinstance(got, str | int | float | None)
                    found = f" (found {repr(got)[:40]})" if simple else ""
                    what = f"{where}: {first['msg']}{found}" if where else first["msg"]
                raise DataError(f"{self.path}, line {number}: {what}; mend or restore it") from None
            yield record

    def __len__(self) -> int:
        return sum(1 for _ in self._lines())


def hash64(text: str) -> int:
    """64 bits that stand for a text in every process; seeds of rollouts are made by it."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def prefix_digest(prefix: Ids) -> str:
    """24 hex digits that stand for a completion prefix in the journal and in seeds."""
    return hashlib.blake2b(np.asarray(prefix, dtype="<i8").tobytes(), digest_size=12).hexdigest()


def dumps(value: object) -> str:
    """Compact JSON on one line; NaN and infinities are refused (ValueError)."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def write_all(file: io.FileIO, data: bytes) -> None:
    """One write where the system allows it, so that a kill tears at most this line."""
    while data:
        data = data[file.write(data) :]


def parse(line: bytes) -> dict[str, Any] | None:
    """The object on a complete line, else None."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


@lru_cache
def _leading(start: bytes) -> re.Pattern[bytes]:
    return re.compile(re.escape(start) + rb'"((?:[^"\\]|\\.)*)"')


def leading_text(line: bytes, start: bytes) -> str | None:
    """The string that follows `start` at the head of a line that looks whole, else None.

    A tenth of the cost of parsing the line, which matters when millions of them are passed over.
    """
    found = _leading(start).match(line)
    if found is None or not line.endswith(b"}\n"):
        return None
    try:
        return str(json.loads(b'"%s"' % found[1])) if b"\\" in found[1] else found[1].decode()
    except ValueError:
        return None


def complete_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number, byte offset, line) of each line, then cut off a torn last one.

    Raises JournalError for a damaged line before the last.
    """
    offset, size = 0, path.stat().st_size
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"}\n") and parse(line) is None:
                if offset + len(line) < size:
                    raise damaged(path, number, "it is not a JSON object")
                _log.warning("%s: dropped a half-written last line (%d bytes)", path, len(line))
                with path.open("r+b") as torn:
                    torn.truncate(offset)
                return
            yield number, offset, line
            offset += len(line)


def damaged(path: Path, number: int, what: str) -> JournalError:
    return JournalError(
        f"{path}, line {number}: damaged ({what}); restore the file, or delete that line "
        "and the run will make it again"
    )


def plain(value: Any) -> Any:
    """A value whose `repr` says the same in every process.

    Sets are sorted (their order depends on the process's hash seed), functions and classes become
    their names, objects that print an address the name of their class.
    """
    if isinstance(value, Mapping):
        items = [(plain(key), plain(item)) for key, item in value.items()]
        return sorted(items, key=repr)
    if isinstance(value, Set):
        return sorted(map(plain, value), key=repr)
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return type(value)(map(plain, value))
    if isinstance(value, re.Pattern):
        return value.pattern
    if hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    prints_address = getattr(type(value), "__repr__") is object.__repr__  # noqa: B009
    return type(value).__qualname__ if prints_address else value


def asked_digest(problem: Problem) -> str:
    """Stands for a problem as it was given: another one under the same id is another question."""
    about = (problem.prompt, problem.reference, problem.metadata, problem.completions)
    return _digest(about)


def rollouts_digest(problem: Problem, prompt: Ids) -> str:
    """Stands for all that decides a question's rollouts and verdicts, apart from the run."""
    about = (prompt, problem.reference, sorted(problem.metadata.items()))
    return _digest((*about, problem.completions) if problem.completions else about)


def _digest(about: tuple[Any, ...]) -> str:
    return hashlib.blake2b(repr(plain(about)).encode(), digest_size=12).hexdigest()
