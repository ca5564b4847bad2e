"""The journal of a run: every finished wish, on one line each, as soon as it is finished.

It survives SIGKILL at any byte: a torn last line is dropped when the file is opened again, damage
anywhere else is an error that names the line. Lines reach the operating system one by one; they
are not synced to disk, so a power cut may cost the last ones. One process at a time holds a
journal (`fcntl` lock; POSIX only). Results and pairs are in `pts.store`.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pts.errors import JournalError
from pts.types import Ids, Outcome, Purpose, Verdict

FORMAT = 2
"""Version of the journal's lines."""

_log = logging.getLogger(__name__)
_PURPOSES: dict[Purpose, str] = {"filter": "f", "search": "s", "confirm": "c"}
_FAIL, _PASS, _CUT = 0, 1, 2


def place_digest(at: Ids) -> str:
    """24 hex digits that stand for a completion prefix in the journal and in seeds."""
    return hashlib.blake2b(np.asarray(at, dtype="<i8").tobytes(), digest_size=12).hexdigest()


def dumps(value: object) -> str:
    """Compact JSON on one line; NaN and infinities are refused (ValueError)."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@dataclass(slots=True)
class Replay:
    """What a journal holds of one question: outcomes by (place digest, purpose) and index."""

    outcomes: dict[tuple[str, Purpose], dict[int, Outcome]] = field(default_factory=dict)
    redrawn: dict[tuple[str, Purpose], dict[int, tuple[int, int]]] = field(default_factory=dict)
    """By the same keys: (UNSCORED draws, their tokens) that preceded the outcomes of a line."""
    digest: str | None = None
    """Digest of the problem as it stood when it was begun."""


class Journal:
    """Append-only record of finished wishes, opened for one run.

    Line formats: the header `{"format", "fingerprint"}`; `{"q", "d"}` when question q (problem
    digest d) begins; `{"q", "at", "p", "i", "o"}` for outcomes i, i+1, … of purpose p at the
    prefix with digest `at`, each outcome as `[code, length, *ids]` (code 0 fail, 1 pass, 2 cut),
    with `"r": [draws, tokens]` where UNSCORED draws were replaced.

    Only byte offsets are kept in memory, and those of a question until it begins.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        """Create the journal, or open it to resume.

        Raises JournalError if another process holds it, if it belongs to a run with another
        fingerprint (the message lists the fields that differ) or if it is damaged.
        """
        self.path = path
        self._offsets: dict[str, array[int]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        try:
            self._lock()
            self._load(json.loads(dumps(fingerprint)))
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JournalError(
                f"{self.path}: another process is running this search; wait for it to end, "
                "or give this run another output folder"
            ) from None

    def _load(self, fingerprint: dict[str, Any]) -> None:
        header = None
        for number, offset, entry in _entries(self.path):
            if number == 1:
                header = entry
                _same_run(self.path, entry, fingerprint)
            elif (question := entry.get("q")) is None:
                raise _damaged(self.path, number, "the line names no question")
            else:
                self._offsets.setdefault(question, array("q")).append(offset)
        drop_torn_line(self.path)
        if header is None:
            self._append({"format": FORMAT, "fingerprint": fingerprint})

    def forget(self, questions: Iterable[str]) -> None:
        """Let go of questions that will not be begun again."""
        for question in questions:
            self._offsets.pop(question, None)

    def begin(self, question: str, digest: str) -> Replay:
        """Start a question: return what is on file, and let go of it.

        `digest` stands for the problem. Raises JournalError if the question was begun with
        another one: its rollouts would answer a different prompt or be judged differently.
        """
        replay = Replay()
        with self.path.open("rb") as file:
            for offset in self._offsets.pop(question, ()):
                file.seek(offset)
                _collect(replay, json.loads(file.readline()))
        if replay.digest is None:
            self._append({"q": question, "d": digest})
        elif replay.digest != digest:
            raise JournalError(
                f"{self.path}: question {question!r} has changed (prompt, reference, completions "
                "or chat template) since this run began; restore it, or use another output folder"
            )
        return replay

    def record(
        self,
        question: str,
        at: str,
        purpose: Purpose,
        first: int,
        outcomes: Iterable[Outcome],
        redrawn: tuple[int, int] = (0, 0),
    ) -> None:
        """Append one finished wish: outcomes `first`, `first`+1, … at the prefix digest `at`."""
        entry: dict[str, Any] = {"q": question, "at": at, "p": _PURPOSES[purpose], "i": first}
        entry["o"] = [_pack(outcome) for outcome in outcomes]
        if redrawn[0]:
            entry["r"] = list(redrawn)
        self._append(entry)

    def _append(self, entry: Mapping[str, Any]) -> None:
        write_all(self._file, (dumps(entry) + "\n").encode())

    def close(self) -> None:
        """Release the lock."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def write_all(file: io.FileIO, data: bytes) -> None:
    """One write where the system allows it, so that a kill tears at most this line."""
    while data:
        data = data[file.write(data) :]


def _entries(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield (line number, byte offset, entry); a torn last line is left out."""
    offset, size = 0, path.stat().st_size
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            start, offset = offset, offset + len(line)
            entry = _parse(line)
            if entry is not None:
                yield number, start, entry
            elif offset < size:
                raise _damaged(path, number, "it is not a JSON object")


def _parse(line: bytes) -> dict[str, Any] | None:
    """The object on a complete line, else None."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _damaged(path: Path, number: int, what: str) -> JournalError:
    return JournalError(
        f"{path}, line {number}: damaged ({what}); restore the file, or delete that line "
        "and the run will draw its rollouts again"
    )


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that a killed process left half-written."""
    with path.open("r+b") as file:
        keep, last = 0, b""
        for line in file:
            keep, last = keep + len(line), line
        if last and _parse(last) is None:
            _log.warning("%s: dropped a half-written last line (%d bytes)", path, len(last))
            file.truncate(keep - len(last))


def read_fingerprint(path: Path) -> dict[str, Any]:
    """What a run's journal says of it. Raises JournalError if the journal has no header."""
    for number, _, entry in _entries(path):
        if number == 1 and isinstance(entry.get("fingerprint"), dict):
            return dict(entry["fingerprint"])
        break
    raise JournalError(f"{path}: no header; this is not the journal of a run")


def _same_run(path: Path, header: dict[str, Any], fingerprint: dict[str, Any]) -> None:
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


def _collect(replay: Replay, entry: Mapping[str, Any]) -> None:
    if "d" in entry:
        replay.digest = entry["d"]
        return
    purpose = next(p for p, letter in _PURPOSES.items() if letter == entry["p"])
    key, first = (entry["at"], purpose), entry["i"]
    outcomes = replay.outcomes.setdefault(key, {})
    outcomes.update({first + k: _unpack(packed) for k, packed in enumerate(entry["o"])})
    if "r" in entry:
        draws, tokens = entry["r"]
        replay.redrawn.setdefault(key, {})[first] = (draws, tokens)


def _pack(outcome: Outcome) -> list[int]:
    code = _CUT if outcome.cut else _PASS if outcome.success else _FAIL
    return [code, outcome.length, *outcome.ids]


def _unpack(packed: list[int]) -> Outcome:
    code, length, *ids = packed
    verdict = Verdict.PASS if code == _PASS else Verdict.FAIL
    return Outcome(tuple(ids), verdict, code == _CUT, length)
