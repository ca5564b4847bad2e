"""Reads problems from JSONL: one object a line, its columns mapped to a `Problem`'s fields.

    problems = load_problems("gsm8k.jsonl", {"prompt": "question", "reference": "answer"})

A prompt is text, or a list of messages `{"role": ..., "content": ...}`. Every fault of the file is
reported at once, with its line number. Other columns become the problem's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pts.errors import ConfigError, DataError, did_you_mean
from pts.types import Message, Problem

FIELDS = ("id", "prompt", "reference")
SHOWN = 20
"""Faults listed at most in one message."""


def load_problems(
    path: Path | str, columns: Mapping[str, str] | None = None, *, chat: bool = False
) -> list[Problem]:
    """Read all problems of a JSONL file.

    `columns` names the columns that hold "id", "prompt" and "reference" where they are called
    otherwise. Without an id column the line numbers are the ids. References that are numbers
    become text. With `chat`, prompts that are text become one user message.

    Raises ConfigError for an unknown field in `columns`, DataError for everything that is wrong
    with the file, one line a fault.
    """
    path, columns = Path(path), dict(columns or {})
    unknown = [name for name in columns if name not in FIELDS]
    if unknown:
        raise ConfigError(*(f"no field {n!r}{did_you_mean(n, FIELDS)}" for n in unknown))
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    reader = _Reader(path, columns, chat)
    problems = [problem for problem in map(reader.read, _lines(path)) if problem is not None]
    if not problems and not reader.faults:
        reader.faults.append(f"{path}: holds no problems")
    reader.raise_faults()
    return problems


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        yield from ((n, line) for n, line in enumerate(file, 1) if line.strip())


class _Reader:
    """Turns lines into problems and gathers faults."""

    def __init__(self, path: Path, columns: Mapping[str, str], chat: bool) -> None:
        self._path, self._given, self._chat = path, columns, chat
        self._columns = {name: columns.get(name, name) for name in FIELDS}
        self._ids: dict[str, int] = {}
        self.faults: list[str] = []

    def raise_faults(self) -> None:
        if self.faults:
            more = len(self.faults) - SHOWN
            rest = [f"… and {more} more"] if more > 0 else []
            raise DataError("\n".join(self.faults[:SHOWN] + rest))

    def read(self, numbered: tuple[int, bytes]) -> Problem | None:
        number, line = numbered
        found = len(self.faults)
        row = self._row(number, line)
        if row is None:
            return None
        values = {name: self._field(number, row, name) for name in FIELDS}
        problem_id = self._id(number, values["id"])
        prompt = self._prompt(number, values["prompt"])
        reference = self._reference(number, values["reference"])
        metadata = {k: v for k, v in row.items() if k not in self._columns.values()}
        if prompt is None or len(self.faults) > found:
            return None
        return Problem(problem_id, prompt, reference, metadata)

    def _fault(self, number: int, what: str) -> None:
        self.faults.append(f"{self._path}, line {number}: {what}")

    def _row(self, number: int, line: bytes) -> dict[str, Any] | None:
        try:
            row = json.loads(line)
        except ValueError as error:
            self._fault(number, f"not JSON ({error})")
            return None
        if not isinstance(row, dict):
            self._fault(number, f"an object is needed, not {_kind(row)}")
        elif _broken_text(row):
            self._fault(number, "holds half a surrogate pair (\\ud800 to \\udfff); mend the text")
        else:
            return row
        return None

    def _field(self, number: int, row: Mapping[str, Any], name: str) -> Any:
        """The field's value, None if it is missing or null (a fault unless ids are implied)."""
        column = self._columns[name]
        value = row.get(column)
        if value is None and (name != "id" or "id" in self._given):
            hint = did_you_mean(column, row) or f"; it has {_names(row)}"
            what = "is null" if column in row else f"is missing{hint}"
            self._fault(number, f"column {column!r} (the {name}) {what}")
        return value

    def _id(self, number: int, value: Any) -> str:
        name = str(number) if value is None else str(value)
        if name in self._ids:
            self._fault(number, f"id {name!r} was used on line {self._ids[name]}")
        self._ids.setdefault(name, number)
        return name

    def _prompt(self, number: int, value: Any) -> str | tuple[Message, ...] | None:
        if isinstance(value, str) and value:
            return (Message("user", value),) if self._chat else value
        if isinstance(value, list) and value and all(map(_is_message, value)):
            return tuple(Message(turn["role"], turn["content"]) for turn in value)
        if value is not None:
            need = "text or messages with role and content are needed"
            self._fault(number, f"{self._columns['prompt']}: {need}, not {_kind(value)}")
        return None

    def _reference(self, number: int, value: Any) -> str:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        if value is not None:
            column = self._columns["reference"]
            self._fault(number, f"{column}: text or a number is needed, not {_kind(value)}")
        return ""


def _is_message(turn: object) -> bool:
    return (
        isinstance(turn, dict)
        and set(turn) == {"role", "content"}
        and all(isinstance(part, str) for part in turn.values())
    )


def _broken_text(value: object) -> bool:
    """JSON may spell halves of characters that no file or tokenizer can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _kind(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "no columns"
