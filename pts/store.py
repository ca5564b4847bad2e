"""Files of a run: results, pairs and their atomic writes.

A run folder holds

    journal.jsonl   every finished wish, append-only (`pts.journal`)
    results.jsonl   one question a line: its `QuestionResult` and what its rollouts cost; appended
                    as questions finish, sorted at the end
    pairs.jsonl     one confirmed `TokenPair` a line
    pieces.json     text of every token id that the results mention: for reports without a model
    summary.json    totals of the run

With several workers, journal-0.jsonl and so on beside journal.jsonl hold what each of them drew.
results.jsonl survives SIGKILL at any byte (a torn last line is dropped and its question replayed
from the journal); the files that are written whole are replaced atomically.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping
from dataclasses import dataclass
from operator import eq
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from pts.errors import DataError
from pts.journal_lines import complete_lines, dumps, leading_text, write_all
from pts.types import Purpose, QuestionResult, TokenPair

if TYPE_CHECKING:
    from datasets import Dataset

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Tally:
    """Rollouts really sampled for one purpose; prefixes judged as they stand cost none.

    `passed`, `cut` and `unscored` count among `rollouts`; UNSCORED draws were drawn again.
    """

    rollouts: int = 0
    tokens: int = 0
    passed: int = 0
    cut: int = 0
    unscored: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.rollouts + other.rollouts,
            self.tokens + other.tokens,
            self.passed + other.passed,
            self.cut + other.cut,
            self.unscored + other.unscored,
        )


@dataclass(frozen=True, slots=True)
class Record:
    """One line of results.jsonl: a question's result and what its rollouts cost."""

    result: QuestionResult
    spent: Mapping[Purpose, Tally]
    asked: str = ""
    """Digest of the problem as it was given (`pts.fingerprints`)."""


_ASKED = re.compile(rb',"asked":"([0-9a-f]+)"}\n$')
_RECORD = TypeAdapter(Record)
_PAIR = TypeAdapter(TokenPair)


class JsonLines(Generic[_T]):
    """Records of a JSONL file, read one at a time at every iteration; `len` counts the lines.

    With `growing`, a last line without its end is being written, or was torn by a kill: none yet.
    """

    def __init__(self, path: Path, read: Callable[[bytes], _T], growing: bool = False) -> None:
        self.path = path
        self._read = read
        self._growing = growing

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n") or not self._growing:
                    yield line

    def __iter__(self) -> Iterator[_T]:
        for number, line in enumerate(self._lines(), 1):
            try:
                yield self._read(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                what = f"{where}: {first['msg']}" if where else first["msg"]
                raise DataError(f"{self.path}, line {number}: {what}") from None

    def __len__(self) -> int:
        return sum(1 for _ in self._lines())


def read_records(path: Path) -> JsonLines[Record]:
    """Results with their costs, lazily. Iterating raises DataError (with the line number)."""
    return JsonLines(path, _RECORD.validate_json, growing=True)


def read_results(path: Path) -> JsonLines[QuestionResult]:
    """The `QuestionResult`s of a results.jsonl, lazily; see `read_records`."""
    return JsonLines(path, lambda line: _RECORD.validate_json(line).result, growing=True)


def record_line(record: Record) -> str:
    """A record as one line of JSON, without the newline. ValueError on NaN."""
    return dumps(_RECORD.dump_python(record, mode="json"))


class ResultFile:
    """results.jsonl, open for a run: appended as questions finish, sorted when all have.

    Only ids and byte offsets are kept in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._offsets = {
            _problem_id(path, number, line): offset for number, offset, line in complete_lines(path)
        }

    @property
    def finished(self) -> KeysView[str]:
        """Ids of the questions that have a result."""
        return self._offsets.keys()

    def asked(self, question: str) -> str:
        """The digest of a finished question's problem, "" where the file does not say."""
        with self.path.open("rb") as file:
            file.seek(self._offsets[question])
            found = _ASKED.search(file.readline())
        return found[1].decode() if found else ""

    def append(self, record: Record) -> None:
        """Add a finished question."""
        offset = self._file.seek(0, io.SEEK_END)
        write_all(self._file, (record_line(record) + "\n").encode())
        self._offsets[record.result.problem_id] = offset

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


def _problem_id(path: Path, number: int, line: bytes) -> str:
    name = leading_text(line, b'{"result":{"problem_id":')
    if name is None:
        raise DataError(f"{path}, line {number}: not the result of a question")
    return name


class replacing:  # noqa: N801 - reads as a verb in `with replacing(path) as file`
    """Context: a text file that takes the place of `path` when the block ends without error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.tmp")

    def __enter__(self) -> io.TextIOWrapper:
        self._file = self._temporary.open("w", encoding="utf-8", newline="\n")
        return self._file

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if kind is None:
            os.replace(self._temporary, self._path)
        else:
            self._temporary.unlink()


def write_json(path: Path, value: object) -> None:
    """Write an indented JSON file atomically; ASCII, as a token's text may be half a character."""
    with replacing(path) as file:
        file.write(json.dumps(value, allow_nan=False, indent=2) + "\n")


def pair_line(pair: TokenPair) -> str:
    """A pair as one line of JSON, without the newline. ValueError on NaN."""
    return dumps(_PAIR.dump_python(pair, mode="json"))


def write_pairs(path: Path, pairs: Iterable[TokenPair]) -> None:
    """Write token pairs as JSONL, atomically."""
    with replacing(path) as file:
        file.writelines(pair_line(pair) + "\n" for pair in pairs)


def read_pairs(path: Path) -> list[TokenPair]:
    """Read token pairs. Raises DataError with the line number."""
    return list(stream_pairs(path))


def stream_pairs(path: Path) -> JsonLines[TokenPair]:
    """Token pairs, lazily. Iterating raises DataError (with the line number)."""
    return JsonLines(path, _PAIR.validate_json)


def pairs_dataset(pairs: Iterable[TokenPair]) -> Dataset:
    """The pairs as a Hugging Face dataset, tokenised: no text is involved, nothing to retokenise.

    Columns `prompt_ids`, `chosen_ids`, `rejected_ids` (int64 lists; the last two of length 1), as
    TRL's DPOTrainer names them after its own tokenisation (stock TRL 1.16 tokenises again, so its
    trainer must be told to skip that step), and `problem_id`, `gap`, `worth`, `criterion`.
    """
    from datasets import Dataset, Features, List, Value

    ids, number, text = List(Value("int64")), Value("float64"), Value("string")
    features = {"prompt_ids": ids, "chosen_ids": ids, "rejected_ids": ids, "problem_id": text}
    features |= {"criterion": text, "gap": number, "worth": number}
    rows = [_row(pair) for pair in pairs]
    columns = {name: [row[name] for row in rows] for name in features}
    return Dataset.from_dict(columns, features=Features(features))


def _row(pair: TokenPair) -> dict[str, Any]:
    return {
        "prompt_ids": list(pair.prompt_ids),
        "chosen_ids": [pair.chosen],
        "rejected_ids": [pair.rejected],
        "problem_id": pair.problem_id,
        "criterion": pair.criterion,
        "gap": pair.gap.mean,
        "worth": pair.worth,
    }
