"""Files of a run: results, pairs and their atomic writes.

A run folder holds

    journal.jsonl   every finished request, append-only (`pts.runtime.journal`)
    results.jsonl   one question a line: its `QuestionResult` and what its rollouts cost; appended
                    as questions finish, sorted at the end
    rollouts.jsonl  one question a line: the rollouts that are kept (`pts.data.rollouts`), written
                    from the journal just before the question's result
    pairs.jsonl     one confirmed `TokenPair` a line
    token_texts.json
                    text of every token id that the results mention: for reports without a model
    summary.json    totals of the run
    shard.json      of a shard: which of the run's questions are its own (`pts.runtime.shards`)

One process writes them all, whatever the number of workers. results.jsonl survives SIGKILL at any
byte (a torn last line is dropped and its question replayed from the journal); the files that are
written whole are replaced atomically.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, KeysView, Mapping
from dataclasses import dataclass
from operator import eq
from pathlib import Path

from pydantic import TypeAdapter

from pts.errors import DataError, JournalError
from pts.files import JsonLines, complete_lines, dumps, leading_text, replacing, write_all
from pts.types import Cost, Purpose, QuestionResult

WRITTEN = (
    "summary.json",
    "pairs.jsonl",
    "rollouts.jsonl",
    "token_texts.json",
    "report.html",
    "manifest.json",
    "shard.json",
)
"""Files that a search (or a run of `align`) writes beside its results and its journal."""


@dataclass(frozen=True, slots=True)
class RolloutCost(Cost):
    """Rollouts really sampled for one purpose; prefixes judged as they stand cost none.

    `passed`, `truncated` and `unscored` count among `rollouts`; UNSCORED draws were drawn again.
    """

    passed: int = 0
    truncated: int = 0
    unscored: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One line of results.jsonl: a question's result and what its rollouts cost."""

    result: QuestionResult
    spent: Mapping[Purpose, RolloutCost]
    asked: str = ""
    """Digest of the problem as it was given (`pts.files.asked_digest`)."""


RESULT_HEAD, ROLLOUTS_HEAD = b'{"result":{"problem_id":', b'{"problem_id":'
"""What stands before the id on a line of results.jsonl, and of rollouts.jsonl."""

_ASKED = re.compile(rb',"asked":"([0-9a-f]+)"}\n$')
_RECORD = TypeAdapter(Record)


def read_records(path: Path) -> JsonLines[Record]:
    """Results with their costs, lazily. Iterating raises DataError (with the line number)."""
    return JsonLines(path, _read, growing=True)


def read_results(path: Path | str) -> JsonLines[QuestionResult]:
    """The `QuestionResult`s of a results.jsonl, lazily; see `read_records`."""
    return JsonLines(path, lambda line: _read(line).result, growing=True)


def _read(line: bytes) -> Record:
    """The record on a line. Raises ValueError for one that is none or contradicts itself."""
    record = _RECORD.validate_json(line)
    for at, path in enumerate(record.result.paths):
        length = len(path.ids)
        if len(path.probs) != length or len(path.curve) != len(path.curve_at):
            raise ValueError(f"path {at}: its tokens, probabilities and curve do not fit together")
        places = [*path.curve_at, *(pair.position for pair in path.pairs)]
        if not all(0 <= place <= length for place in places):
            raise ValueError(f"path {at}: a position lies outside of its {length} tokens")
        sides = [s for pair in path.pairs for s in (pair.confirm_chosen, pair.confirm_rejected)]
        counts = [(side.successes, side.n) for side in sides]
        counts += [branch[2:] for drawn in path.siblings.values() for branch in drawn]
        if not all(0 <= successes <= n for successes, n in counts):
            raise ValueError(f"path {at}: more successes than rollouts")
        ids = [*path.ids, *(token for pair in path.pairs for token in (pair.chosen, pair.rejected))]
        if not all(0 <= token < 2**63 for token in (*record.result.prompt_ids, *ids)):
            raise ValueError(f"path {at}: a token id is out of range")
    return record


def record_line(record: Record) -> str:
    """A record as one line of JSON, without the newline. ValueError on NaN."""
    return dumps(_RECORD.dump_python(record, mode="json"))


class QuestionLines:
    """A file of a question a line, open for a run: appended as questions finish, sorted when all
    have.

    Only ids and byte offsets are kept in memory.
    """

    def __init__(self, path: Path, head: bytes, what: str) -> None:
        """Open the file; `head` is what stands before the id on each line, `what` a line holds."""
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._offsets: dict[str, int] = {}
        for number, offset, line in complete_lines(path):
            name = leading_text(line, head)
            if name is None:
                raise DataError(f"{path}, line {number}: not the {what}; restore the file")
            self._offsets[name] = offset

    @property
    def finished(self) -> KeysView[str]:
        """Ids of the questions that have a line."""
        return self._offsets.keys()

    def line(self, question: str) -> bytes:
        """The line of a finished question."""
        with self.path.open("rb") as file:
            file.seek(self._offsets[question])
            return file.readline()

    def write(self, question: str, line: str) -> None:
        """Add the line of a finished question."""
        offset = self._file.seek(0, io.SEEK_END)
        write_all(self._file, (line + "\n").encode())
        self._offsets[question] = offset

    def sort(self, order: Iterable[str]) -> bool:
        """Put the file into the order of the problems; results of others keep to the end.

        Returns False when it was in that order already. Nothing may be appended afterwards.
        """
        wanted = dict.fromkeys(name for name in order if name in self._offsets)
        wanted |= dict.fromkeys(self._offsets)
        if all(map(eq, wanted, self._offsets)):
            return False
        with self.path.open("rb") as file, replacing(self.path) as out:
            for name in wanted:
                file.seek(self._offsets[name])
                out.write(file.readline().decode())
        return True

    def close(self) -> None:
        self._file.close()


class ResultFile(QuestionLines):
    """results.jsonl."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, RESULT_HEAD, "result of a question")

    def asked(self, question: str) -> str:
        """The digest of a finished question's problem, "" where the file does not say."""
        found = _ASKED.search(self.line(question))
        return found[1].decode() if found else ""

    def append(self, record: Record) -> None:
        """Add a finished question."""
        self.write(record.result.problem_id, record_line(record))


class RolloutFile(QuestionLines):
    """rollouts.jsonl; every question of results.jsonl stands in it."""

    def __init__(self, path: Path, results: ResultFile) -> None:
        super().__init__(path, ROLLOUTS_HEAD, "rollouts of a question")
        if missing := results.finished - self.finished:
            raise JournalError(
                f"{path} lacks question {min(missing)!r} ({len(missing)} in all), which "
                f"{results.path.name} holds; restore it, or delete both, and the same command "
                "makes them again from the journal"
            )
