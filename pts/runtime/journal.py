"""The journal of a run: every finished query, on one line each, as soon as it is finished.

It survives SIGKILL at any byte: a torn last line is dropped when the file is opened again, damage
anywhere else is an error that names the line. Lines reach the operating system one by one; they are
not synced to disk, so a power cut may cost the last ones. One run at a time holds a journal
(`fcntl` lock; POSIX only), and only its process writes to it: worker processes send it their lines
(`pts.runtime.worker`). Results and pairs are in `pts.runtime.results`.
"""

from __future__ import annotations

import fcntl
import io
import json
import operator
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pts.errors import JournalError
from pts.files import (
    complete_lines,
    damaged,
    dumps,
    leading_text,
    parse,
    prefix_digest,
    write_all,
)
from pts.packing import pack_numbers, unpack_numbers
from pts.types import Ids, Keep, Purpose, Rollout, Verdict, kept_length

FORMAT = 7
"""Version of the journal; up to 4 it held no rollouts to keep, up to 5 those of a confirmation
were drawn in two halves and those of a filter at once, up to 6 a policy was known by its weights in
memory."""

_FAIL, _PASS, _CUT = 0, 1, 2
_PURPOSES: dict[Purpose, str] = {"filter": "f", "search": "s", "confirm": "c", "sample": "n"}
_LETTERS = {letter: purpose for purpose, letter in _PURPOSES.items()}


@dataclass(slots=True)
class RecordedRollouts:
    """What a journal holds of one question: rollouts by (place digest, purpose) and index."""

    rollouts: dict[tuple[str, Purpose], dict[int, Rollout]] = field(default_factory=dict)
    redrawn: dict[tuple[str, Purpose], dict[int, tuple[int, int]]] = field(default_factory=dict)
    """By the same keys: (UNSCORED draws, their tokens) that preceded the rollouts of a line."""
    digest: str | None = None
    """Digest of the problem as it stood when it was begun."""


class Recorder(ABC):
    """Where a search records its questions: the journal, or what stands for it in a worker."""

    path: Path
    """The journal's."""

    def begin(self, question: str, digest: str) -> RecordedRollouts:
        """Start a question: return what is on file, and let go of it.

        `digest` stands for the problem. Raises JournalError if the question was begun with
        another one: its rollouts would answer a different prompt or be judged differently.
        """
        replay = self._take(question)
        if replay.digest is None:
            self.append(question, _line({"q": question, "d": digest}))
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
        rollouts: Iterable[Rollout],
        redrawn: tuple[int, int] = (0, 0),
        kept: str = "",
    ) -> None:
        """Record one finished query: rollouts `first`, `first`+1, … at the prefix digest `at`.

        `kept` is what the folder keeps of them besides (`kept_text`).
        """
        entry: dict[str, Any] = {"q": question, "at": at, "p": _PURPOSES[purpose], "i": first}
        entry["o"] = list(map(pack, rollouts))
        if redrawn[0]:
            entry["r"] = list(redrawn)
        if kept:
            entry["t"] = kept
        self.append(question, _line(entry))

    @abstractmethod
    def append(self, question: str, line: bytes) -> None:
        """Put a line about a question on file."""

    @abstractmethod
    def _take(self, question: str) -> RecordedRollouts:
        """What is on file of a question that begins; it will not be asked for again."""


class Journal(Recorder):
    """Append-only record of finished queries, opened for one run.

    Line formats: the header `{"format", "fingerprint"}`; `{"q", "d"}` when question q (problem
    digest d) begins; `{"q", "at", "p", "i", "o"}` for rollouts i, i+1, … of purpose p at the
    prefix with digest `at`, each rollout as `[code, length, *ids]` (code 0 fail, 1 pass, 2 cut),
    with `"r": [draws, tokens]` where UNSCORED draws were replaced and `"t"` where ids are kept that
    no search needs (`kept_text`).

    Only byte offsets are kept in memory, and those of a question until it begins here or, where a
    worker searches it or rollouts are kept, until it is forgotten.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: Mapping[str, Any],
        finished: Callable[[], Collection[str]] = frozenset,
        keep: Keep = "none",
    ) -> None:
        """Create the journal, or open it to resume.

        What it holds of `finished` questions is passed over; they are asked for once the journal
        is known to be this run's. `keep` says what `drawn` will give of a question.

        Raises JournalError if another process holds it, if it belongs to a run with another
        fingerprint (the message lists the fields that differ) or if it is damaged.
        """
        self.path, self.keep = path, keep
        self._places: dict[str, array[int]] = {}
        """Offsets of the lines about a question."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        try:
            self._lock()
            self._load(json.loads(dumps(fingerprint)), finished)
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

    def _load(self, fingerprint: dict[str, Any], finished: Callable[[], Collection[str]]) -> None:
        first = _first_line(self.path)
        if first.endswith(b"\n") and not _is_header(first):
            raise JournalError(
                f"{self.path}, line 1: damaged (it does not say what run this journal is of); "
                "restore the file, or use another output folder"
            )
        for _, _, header in islice(complete_lines(self.path), 1):
            check_header(self.path, parse(header) or {}, fingerprint)
        known = finished()
        for at, offset, line in islice(complete_lines(self.path), 1, None):
            # Read without parsing the line where that is possible.
            question = leading_text(line, b'{"q":') or (parse(line) or {}).get("q")
            if not isinstance(question, str):
                raise damaged(self.path, at, "the line names no question")
            if question not in known:
                self._places.setdefault(question, array("q")).append(offset)
        if not self._file.seek(0, io.SEEK_END):
            write_all(self._file, _line({"format": FORMAT, "fingerprint": fingerprint}))

    def on_file(self, question: str) -> RecordedRollouts:
        """What is on file of a question. Lines that are appended from now on will be found too."""
        replay = RecordedRollouts()
        self._each_line(question, partial(_collect, replay))
        return replay

    def drawn(self, question: str) -> dict[tuple[Ids, Purpose], list[Rollout]]:
        """All rollouts of a question by their prefix, in order of index, with the ids that are
        kept."""
        trunks: dict[int, Ids] = {}
        found: dict[tuple[Ids, Purpose], dict[int, Rollout]] = {}
        self._each_line(question, partial(_restore, found, trunks, self.keep))
        return {key: [indexed[i] for i in sorted(indexed)] for key, indexed in found.items()}

    def _each_line(self, question: str, read: Callable[[dict[str, Any]], None]) -> None:
        places = self._places.setdefault(question, array("q"))
        if not places:
            return
        with self.path.open("rb") as file:
            for offset in places:
                file.seek(offset)
                entry = parse(file.readline())
                if entry is None:
                    what = "it is not a JSON object"
                    raise damaged(self.path, self._line_at(offset), what)
                try:
                    read(entry)
                except (KeyError, TypeError, ValueError):
                    what = "it is no record of rollouts"
                    raise damaged(self.path, self._line_at(offset), what) from None

    def _line_at(self, offset: int) -> int:
        with self.path.open("rb") as file:
            return file.read(offset).count(b"\n") + 1

    def forget(self, question: str) -> None:
        """Let go of a question whose lines will not be asked for again."""
        self._places.pop(question, None)

    def _take(self, question: str) -> RecordedRollouts:
        replay = self.on_file(question)
        if self.keep == "none":
            self.forget(question)
        return replay

    def append(self, question: str, line: bytes) -> None:
        if question in self._places:
            self._places[question].append(self._file.tell())
        write_all(self._file, line)

    def close(self) -> None:
        """Release the lock."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _line(entry: Mapping[str, Any]) -> bytes:
    return (dumps(entry) + "\n").encode()


def has_header(path: Path) -> bool:
    """Whether there is a journal that says what run it is of."""
    return path.is_file() and _is_header(_first_line(path))


def _is_header(line: bytes) -> bool:
    return "format" in (parse(line) or {})


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.readline()


def read_header(path: Path) -> tuple[Any, dict[str, Any]]:
    """A journal's format, and what it says of its run. JournalError if it has no header."""
    header = parse(_first_line(path)) or {}
    fingerprint = header.get("fingerprint")
    if not isinstance(fingerprint, dict):
        raise JournalError(f"{path}: no header; this is not the journal of a run")
    return header.get("format"), dict(fingerprint)


def _collect(replay: RecordedRollouts, entry: Mapping[str, Any]) -> None:
    """Put a line's content down. KeyError, TypeError or ValueError for one that is damaged."""
    if "d" in entry:
        replay.digest = entry["d"]
        return
    key, first = (entry["at"], _LETTERS[entry["p"]]), entry["i"]
    replay.rollouts.setdefault(key, {}).update(enumerate(map(unpack, entry["o"]), first))
    if "r" in entry:
        draws, tokens = map(operator.index, entry["r"])
        replay.redrawn.setdefault(key, {})[first] = (draws, tokens)


def check_header(path: Path, header: dict[str, Any], fingerprint: dict[str, Any]) -> None:
    """Raise JournalError unless the header is that of a run with this fingerprint."""
    if header.get("format") != FORMAT:
        raise JournalError(
            f"{path}: format {header.get('format')!r}, this version reads and writes {FORMAT}; "
            "finish this run with the version that began it, or use another output folder"
        )
    found = differences("", header.get("fingerprint"), fingerprint)
    lines = [f"{name}: the journal has {old!r}, this run {new!r}" for name, old, new in found]
    if lines:
        raise JournalError(
            "\n  ".join([f"{path} belongs to another run:", *lines])
            + "\nrestore these settings to resume, or use another output folder"
        )


def differences(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Fields below `name` in which two fingerprints differ, each with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(f"{name}.{key}".lstrip("."), old.get(key), new.get(key))
    elif old != new:
        yield name, old, new


def pack(rollout: Rollout) -> list[int]:
    """A rollout as `[code, length, *ids]`."""
    code = _CUT if rollout.truncated else _PASS if rollout.success else _FAIL
    return [code, rollout.length, *rollout.ids]


def unpack(packed: list[int]) -> Rollout:
    """The inverse of `pack`. ValueError or TypeError for what is no packed rollout."""
    code, length, *ids = packed
    if not {*map(type, packed)} <= {int} or not 0 <= min(packed) <= max(packed) < 2**63:
        raise ValueError("a rollout is a list of whole numbers from 0")
    verdict = Verdict.PASS if code == _PASS else Verdict.FAIL
    return Rollout(tuple(ids), verdict, code == _CUT, length)


def kept_text(prefix: Ids, trunks: Mapping[int, Ids], tails: Iterable[Ids]) -> str:
    """What is kept of the rollouts of one query besides what a search needs: their prefix, and
    their further ids; empty if there is nothing to tell.

    `trunks` are the rollouts of the filter by index. A prefix that follows one of them up to its
    last token, as nearly all do, is told by that index, its length and this token.
    """
    head = prefix[:-1]
    follows = (i for i, ids in trunks.items() if ids[: len(head)] == head)
    trunk = next(follows, None) if prefix else None
    place = [0, 0, *prefix] if trunk is None else [trunk + 1, len(head), prefix[-1]]
    rest = [token for tail in tails for token in tail]
    return pack_numbers([len(place), *place, *rest]) if prefix or rest else ""


def _restore(
    found: dict[tuple[Ids, Purpose], dict[int, Rollout]],
    trunks: dict[int, Ids],
    keep: Keep,
    entry: Mapping[str, Any],
) -> None:
    """Put down a line's rollouts with all ids that are kept. ValueError for what does not fit."""
    if "d" in entry:
        return
    numbers = unpack_numbers(entry["t"]) if "t" in entry else [2, 0, 0]
    length, trunk, cut = numbers[:3]
    start = trunks[trunk - 1][:cut] if trunk else ()
    prefix, at = (*start, *numbers[3 : length + 1]), length + 1
    if prefix_digest(prefix) != entry["at"]:
        raise ValueError("it is another prefix")
    purpose = _LETTERS[entry["p"]]
    rollouts = found.setdefault((prefix, purpose), {})
    for index, told in enumerate(map(unpack, entry["o"]), entry["i"]):
        more = max(0, kept_length(keep, told.success, told.length) - len(told.ids))
        ids, at = (*told.ids, *numbers[at : at + more]), at + more
        rollouts[index] = replace(told, ids=ids)
        if purpose == "filter" and not prefix:
            trunks[index] = ids
    if at != len(numbers):
        raise ValueError("ids are missing or too many")
