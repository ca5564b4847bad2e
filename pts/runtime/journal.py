"""The journal of a run: every finished query, on one line each, as soon as it is finished.

It survives SIGKILL at any byte: a torn last line is dropped when the file is opened again, damage
anywhere else is an error that names the line. Lines reach the operating system one by one; they are
not synced to disk, so a power cut may cost the last ones. One run at a time holds a journal
(`fcntl` lock; POSIX only). Each worker process of a run has a file of its own beside it
(`JournalPart`), so that no two processes write to one. Results and pairs are in
`pts.runtime.results`.
"""

from __future__ import annotations

import fcntl
import io
import json
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from pts.errors import JournalError
from pts.files import complete_lines, damaged, dumps, leading_text, parse, write_all
from pts.types import Purpose, Rollout, Verdict

__all__ = [
    "Journal",
    "JournalPart",
    "Places",
    "RecordedRollouts",
    "read_fingerprint",
]

FORMAT = 3
"""Version of the journal's lines."""

PART_SECONDS = 60.0
"""How long a part is waited for whose worker has lost its run and is about to end."""

Places: TypeAlias = "array[int]"
"""Where lines of a question are: file (0 the journal, k + 1 the part of worker k), offset, …"""

_FAIL, _PASS, _CUT = 0, 1, 2
_PURPOSES: dict[Purpose, str] = {"filter": "f", "search": "s", "confirm": "c", "sample": "n"}


@dataclass(slots=True)
class RecordedRollouts:
    """What a journal holds of one question: rollouts by (place digest, purpose) and index."""

    rollouts: dict[tuple[str, Purpose], dict[int, Rollout]] = field(default_factory=dict)
    redrawn: dict[tuple[str, Purpose], dict[int, tuple[int, int]]] = field(default_factory=dict)
    """By the same keys: (UNSCORED draws, their tokens) that preceded the rollouts of a line."""
    digest: str | None = None
    """Digest of the problem as it stood when it was begun."""


class Journal:
    """Append-only record of finished queries, opened for one run.

    Line formats: the header `{"format", "fingerprint"}`; `{"q", "d"}` when question q (problem
    digest d) begins; `{"q", "at", "p", "i", "o"}` for rollouts i, i+1, … of purpose p at the
    prefix with digest `at`, each rollout as `[code, length, *ids]` (code 0 fail, 1 pass, 2 cut),
    with `"r": [draws, tokens]` where UNSCORED draws were replaced.

    Only byte offsets are kept in memory, and those of a question until it begins. Parts that
    workers of earlier sessions have left are read too, however many workers there are now.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: Mapping[str, Any],
        finished: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        """Create the journal, or open it to resume.

        What it holds of `finished` questions is passed over; they are asked for once the journal
        is known to be this run's.

        Raises JournalError if another process holds it, if it belongs to a run with another
        fingerprint (the message lists the fields that differ) or if it is damaged.
        """
        self.path = path
        self.fingerprint: dict[str, Any] = json.loads(dumps(fingerprint))
        self._places: dict[str, Places] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _locked(path, 0.0)
        try:
            self._load(finished)
            self._head()
        except BaseException:
            self._file.close()
            raise

    def _load(self, finished: Callable[[], Collection[str]]) -> None:
        for _, _, header in islice(complete_lines(self.path), 1):
            check_header(self.path, parse(header) or {}, self.fingerprint)
        known = finished()
        self._index(0, known)
        for number in _parts(self.path):
            with _locked(_file(self.path, number), PART_SECONDS):
                self._index(number, known)

    def _head(self) -> None:
        if not self._file.seek(0, io.SEEK_END):
            self._append({"format": FORMAT, "fingerprint": self.fingerprint})

    def _index(self, number: int, finished: Collection[str]) -> None:
        path = _file(self.path, number)
        for at, offset, line in complete_lines(path):
            if at == 1:
                check_header(path, parse(line) or {}, self.fingerprint)
                continue
            question = _question(path, at, line)
            if question not in finished:
                self._places.setdefault(question, array("q")).extend((number, offset))

    def take(self, question: str) -> Places:
        """Let go of a question that another process is to search: where its lines are."""
        return self._places.pop(question, array("q"))

    def regain(self, worker: int, start: int, questions: Collection[str]) -> dict[str, Places]:
        """What a dead worker has recorded of `questions` since its part was `start` bytes long."""
        found: dict[str, Places] = {}
        path = _file(self.path, worker + 1)
        if path.exists():
            for at, offset, line in complete_lines(path, start):
                question = None if offset == 0 else _question(path, at, line)
                if question is not None and question in questions:
                    found.setdefault(question, array("q")).extend((worker + 1, offset))
        return found

    def part_size(self, worker: int) -> int:
        """Bytes in a worker's part, 0 if it has none."""
        path = _file(self.path, worker + 1)
        return path.stat().st_size if path.exists() else 0

    def begin(self, question: str, digest: str) -> RecordedRollouts:
        """Start a question: return what is on file, and let go of it.

        `digest` stands for the problem. Raises JournalError if the question was begun with
        another one: its rollouts would answer a different prompt or be judged differently.
        """
        replay = RecordedRollouts()
        for entry in self._entries(self.take(question)):
            _collect(replay, entry)
        if replay.digest is None:
            self._append({"q": question, "d": digest})
        elif replay.digest != digest:
            raise JournalError(
                f"{self.path}: question {question!r} has changed (prompt, reference, completions "
                "or chat template) since this run began; restore it, or use another output folder"
            )
        return replay

    def _entries(self, places: Places) -> Iterator[dict[str, Any]]:
        files: dict[int, io.BufferedReader] = {}
        try:
            for number, offset in zip(places[::2], places[1::2], strict=True):
                path = _file(self.path, number)
                if number not in files:
                    files[number] = path.open("rb")
                files[number].seek(offset)
                entry = parse(files[number].readline())
                if entry is None:
                    raise damaged(path, _line_number(path, offset), "it is not a JSON object")
                yield entry
        finally:
            for file in files.values():
                file.close()

    def record(
        self,
        question: str,
        at: str,
        purpose: Purpose,
        first: int,
        rollouts: Iterable[Rollout],
        redrawn: tuple[int, int] = (0, 0),
    ) -> None:
        """Append one finished query: rollouts `first`, `first`+1, … at the prefix digest `at`."""
        entry: dict[str, Any] = {"q": question, "at": at, "p": _PURPOSES[purpose], "i": first}
        entry["o"] = [pack(rollout) for rollout in rollouts]
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


class JournalPart(Journal):
    """The file of one worker, `journal-k.jsonl` beside `journal.jsonl`.

    The run that holds the journal has read and mended it, and says with each question where its
    lines are (`give`), so that nothing is indexed here.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any], worker: int) -> None:
        self.path, self.fingerprint = path, dict(fingerprint)
        self._places = {}
        self._file = _locked(_file(path, worker + 1), PART_SECONDS)
        self._head()

    def give(self, question: str, places: Places) -> None:
        """Say where the lines of a question are that will be begun."""
        self._places[question] = places


def _file(path: Path, number: int) -> Path:
    """The journal (0) or the part of worker `number` - 1."""
    return path.with_name(f"{path.stem}-{number - 1}{path.suffix}") if number else path


def _parts(path: Path) -> list[int]:
    """Numbers of the parts that lie beside a journal."""
    names = (p.stem[len(path.stem) + 1 :] for p in path.parent.glob(f"{path.stem}-*{path.suffix}"))
    return sorted(int(name) + 1 for name in names if name.isdecimal())


def _locked(path: Path, seconds: float) -> io.FileIO:
    """The file, opened to append and locked; JournalError if it is still held after `seconds`."""
    file, end = path.open("a+b", buffering=0), time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() < end:
                time.sleep(0.01)
                continue
            file.close()
            raise JournalError(
                f"{path}: another process is running this search; wait for it to end, "
                "or give this run another output folder"
            ) from None


def _question(path: Path, number: int, line: bytes) -> str:
    """The question that a line is about, read without parsing the line where that is possible."""
    question = leading_text(line, b'{"q":')
    if question is None:
        question = (parse(line) or {}).get("q")
        if not isinstance(question, str):
            raise damaged(path, number, "the line names no question")
    return question


def _line_number(path: Path, offset: int) -> int:
    with path.open("rb") as file:
        return file.read(offset).count(b"\n") + 1


def read_fingerprint(path: Path) -> dict[str, Any]:
    """What a run's journal says of it. Raises JournalError if the journal has no header."""
    with path.open("rb") as file:
        fingerprint = (parse(file.readline()) or {}).get("fingerprint")
    if not isinstance(fingerprint, dict):
        raise JournalError(f"{path}: no header; this is not the journal of a run")
    return dict(fingerprint)


def _collect(replay: RecordedRollouts, entry: Mapping[str, Any]) -> None:
    if "d" in entry:
        replay.digest = entry["d"]
        return
    purpose = next(p for p, letter in _PURPOSES.items() if letter == entry["p"])
    key, first = (entry["at"], purpose), entry["i"]
    rollouts = replay.rollouts.setdefault(key, {})
    rollouts.update({first + k: unpack(packed) for k, packed in enumerate(entry["o"])})
    if "r" in entry:
        draws, tokens = entry["r"]
        replay.redrawn.setdefault(key, {})[first] = (draws, tokens)


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


def pack(rollout: Rollout) -> list[int]:
    """A rollout as `[code, length, *ids]`."""
    code = _CUT if rollout.truncated else _PASS if rollout.success else _FAIL
    return [code, rollout.length, *rollout.ids]


def unpack(packed: list[int]) -> Rollout:
    """The inverse of `pack`."""
    code, length, *ids = packed
    verdict = Verdict.PASS if code == _PASS else Verdict.FAIL
    return Rollout(tuple(ids), verdict, code == _CUT, length)
