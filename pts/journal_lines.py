"""Lines of a journal: written whole, read back, torn or damaged ones found; checks of its header.

Kept apart from `pts.journal`, which knows what the lines mean.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pts.errors import JournalError
from pts.types import Ids, Outcome, Verdict

FORMAT = 3
"""Version of the journal's lines."""

_FAIL, _PASS, _CUT = 0, 1, 2
_log = logging.getLogger(__name__)


def place_digest(at: Ids) -> str:
    """24 hex digits that stand for a completion prefix in the journal and in seeds."""
    return hashlib.blake2b(np.asarray(at, dtype="<i8").tobytes(), digest_size=12).hexdigest()


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


def complete_lines(path: Path, start: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number, byte offset, line) from `start` on, then cut off a torn last line.

    Lines are counted from `start`. Raises JournalError for a damaged line before the last.
    """
    offset, size = start, path.stat().st_size
    with path.open("rb") as file:
        file.seek(start)
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


def check_header(path: Path, header: dict[str, Any], fingerprint: dict[str, Any]) -> None:
    """Raise JournalError unless the header is that of a run with this fingerprint."""
    if header.get("format") != FORMAT:
        raise JournalError(
            f"{path}: format {header.get('format')!r}, this version writes {FORMAT}; "
            "use another output folder"
        )
    differences = list(_differences("", header.get("fingerprint"), fingerprint))
    if differences:
        raise JournalError(
            f"{path} belongs to another run:\n  "
            + "\n  ".join(differences)
            + "\nrestore these settings to resume, or use another output folder"
        )


def _differences(name: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(f"{name}.{key}".lstrip("."), old.get(key), new.get(key))
    elif old != new:
        yield f"{name}: the journal has {old!r}, this run {new!r}"


def pack(outcome: Outcome) -> list[int]:
    """An outcome as `[code, length, *ids]`."""
    code = _CUT if outcome.cut else _PASS if outcome.success else _FAIL
    return [code, outcome.length, *outcome.ids]


def unpack(packed: list[int]) -> Outcome:
    """The inverse of `pack`."""
    code, length, *ids = packed
    verdict = Verdict.PASS if code == _PASS else Verdict.FAIL
    return Outcome(tuple(ids), verdict, code == _CUT, length)
