"""One row of a table as a `Problem`, and the faults of many rows."""

from __future__ import annotations

import ast
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from pts.data.tables import Row, Table, shown
from pts.errors import DataError, did_you_mean
from pts.types import Ids, Message, Problem

NEEDED = ("prompt", "reference")
FIELDS = (*NEEDED, "id", "completions")

SHOWN = 20
"""Faults listed at most in one message."""


class Faults:
    """Faults of a table: the first `SHOWN` in the order of its rows, and how many there are.

    A column that is missing in every row is one fault.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._kept: dict[str, list[tuple[int, str]]] = {"": []}
        self._counts: Counter[str] = Counter()
        self.total = 0

    def add(self, number: int | None, what: str, *, absent: str = "") -> None:
        """A fault of a row, or of the whole table; `absent` names a column that the row lacks."""
        self.total += 1
        self._counts[absent] += 1
        kept = self._kept.setdefault(absent, [])
        kept.append((number or 0, what))
        if len(kept) > 2 * SHOWN:  # repeated ids come last and may belong further up
            kept.sort(key=lambda fault: fault[0])
            del kept[SHOWN:]

    def raise_all(self, rows: int = 0) -> None:
        """Raise one DataError if there is a fault; `rows` counts them if all were read."""
        if not self.total:
            return
        place, unit = self._table.place, self._table.unit
        faults, more = [], self.total
        for column, kept in self._kept.items():
            if column and self._counts[column] == rows > 1:
                faults.append((0, f"{kept[0][1]} (in all {rows:,} {unit}s)"))
                more -= rows - 1
            else:
                faults += kept
        faults.sort(key=lambda fault: fault[0])
        lines = [f"{place}{f', {unit} {n}' if n else ''}: {what}" for n, what in faults[:SHOWN]]
        more -= len(lines)
        if more > 0:
            lines.append(f"{place}: … and {more:,} more")
        raise DataError("\n".join(lines))


class RowReader:
    """Turns rows into problems. `columns` maps fields to the columns that were named."""

    def __init__(self, columns: Mapping[str, str], chat: bool) -> None:
        self._columns = {name: columns.get(name, name) for name in FIELDS}
        if "completions" not in columns:  # a chance column of that name is metadata
            del self._columns["completions"]
        self._needed = {*NEEDED, *columns}
        self._parsers: dict[str, Callable[[Any], Any]] = {
            "id": _plain,
            "prompt": partial(_prompt, chat=chat),
            "reference": _plain,
            "completions": _completions,
        }

    def check_columns(self, known: Sequence[str], faults: Faults) -> None:
        """One fault for each column that is needed and that a table does not have."""
        for name in sorted(self._needed):
            if self._columns[name] not in known:
                faults.add(None, missing(self._columns[name], known, f" (the {name})"))

    def id_of(self, number: int, row: Mapping[str, Any]) -> str:
        """The row's id: what its column says, or else its number."""
        value = row.get(self._columns["id"])
        try:
            return _plain(value) or str(number)
        except _Unfit:
            return str(number)

    def read(self, number: int, row: Row, faults: Faults) -> Problem | None:
        """The problem of a row; None, and its faults put down, if it has any."""
        if isinstance(row, str):
            faults.add(number, row)
            return None
        before, read = faults.total, {}
        for name, column in self._columns.items():
            value = row.get(column)
            null = value is None or (isinstance(value, float) and math.isnan(value))
            if not null:
                try:
                    read[name] = self._parsers[name](value)
                except _Unfit as need:
                    faults.add(number, f"{column}: {need} needed, not {shown(value)}")
            elif name in self._needed and column not in row:
                faults.add(number, missing(column, row, f" (the {name})"), absent=column)
            elif name in self._needed and name != "completions":
                faults.add(number, f"column {column!r} (the {name}) is null or empty")
        if faults.total > before:
            return None
        metadata = {name: v for name, v in row.items() if name not in self._columns.values()}
        return Problem(**{**read, "id": read.get("id") or str(number)}, metadata=metadata)


def missing(column: str, known: Iterable[str], use: str = "") -> str:
    """The message for a column that is not among the known ones; `use` says what it is for."""
    names = list(known)
    has = f"; it has {', '.join(map(repr, names)) or 'no columns'}"
    return f"column {column!r}{use} is missing{did_you_mean(column, names) or has}"


class _Unfit(Exception):
    """A value that does not fit its field; the text says what is needed instead."""


def _plain(value: Any) -> str:
    """Text of text or a finite number. A whole number has no decimal point: nulls make floats of
    whole columns."""
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value) if value.is_integer() else value)
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise _Unfit("text or a number is")


def _prompt(value: Any, chat: bool) -> str | tuple[Message, ...]:
    if isinstance(value, str) and spells_messages(value):
        raise _Unfit("messages are given as text; lists of messages (JSONL, Parquet) are")
    if isinstance(value, str) and value:
        return (Message("user", value),) if chat else value
    messages = read_messages(value)
    if not messages:
        raise _Unfit("text or messages with role and content are")
    return messages


def read_messages(value: object) -> tuple[Message, ...]:
    """The messages of a list of objects with role and content, both text; none if it is no such.

    Further keys must be null: Arrow adds those that other messages have.
    """
    messages = []
    for turn in value if isinstance(value, list) else ():
        said = {k: v for k, v in turn.items() if v is not None} if isinstance(turn, dict) else {}
        if set(said) != {"role", "content"} or not all(isinstance(v, str) for v in said.values()):
            return ()
        messages.append(Message(said["role"], said["content"]))
    return tuple(messages)


def spells_messages(text: str) -> bool:
    """Whether a text is a list of messages, written as JSON or as Python."""
    if not text.lstrip().startswith("[") or "role" not in text:
        return False
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            return all("role" in turn for turn in value)
    return False


def _completions(value: Any) -> tuple[Ids | str, ...]:
    """A text, a list of texts, token ids, or a list of lists of token ids."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value and all(map(_is_id, value)):
        return (tuple(value),)
    if isinstance(value, list) and all(isinstance(v, str) and v for v in value):
        return tuple(value)
    if isinstance(value, list) and all(isinstance(v, list) and all(map(_is_id, v)) for v in value):
        return tuple(tuple(ids) for ids in value)
    raise _Unfit("texts, or lists of token ids, are")


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
