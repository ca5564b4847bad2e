"""Tables of rows, read one row at a time; those in text files: JSONL and CSV.

A table can be read again and again, and never holds more than a few rows. What is wrong with a
file as a whole is a DataError when it is opened; a faulty row is yielded as its fault.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from pts.errors import DataError
from pts.plain_text import read_json

Row: TypeAlias = dict[str, Any] | str
"""Values by column, or what is wrong with the row."""

FIELD_CHARACTERS = 2**24
"""A longer field of a CSV file is taken for a quote that was left open."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that can be read again and again."""

    place: str
    """Where the rows come from, for messages."""
    unit: str
    """What the numbers of the rows count: "line" or "row"."""
    columns: Sequence[str] | None
    """Names of the columns; None if each row has its own."""
    rows: Callable[[], Iterator[tuple[int, Row]]]
    """Reads them from the first on, each with its number."""

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        return self.rows()


def json_table(path: Path) -> Table:
    """One JSON object a line; blank lines are passed over."""
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    first = first.removeprefix(codecs.BOM_UTF8).strip()
    if first == b"[" or (first.startswith(b"[") and b"{" in first[:200]):
        raise DataError(f"{path}: holds a JSON array; write one object a line (JSONL)")
    return Table(str(path), "line", None, partial(_json_rows, path))


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _json_row(line)


def _json_row(line: bytes) -> Row:
    try:
        row = read_json(line.removeprefix(codecs.BOM_UTF8))
    except UnicodeDecodeError as error:
        return not_utf8(error)
    except ValueError as error:
        return f"not JSON ({error})"
    except RecursionError:
        return "not JSON that can be read (nested too deeply)"
    if not isinstance(row, dict):
        return f"an object is needed, not {shown(row)}"
    if b"\\u" in line and broken_text(row):
        return BROKEN_TEXT
    return row


def csv_table(path: Path, delimiter: str) -> Table:
    """Comma- or tab-separated text with a header; numbered by the line on which a row starts.

    Cells stay as they are written ("007" is not 7); empty ones are null.
    """
    csv.field_size_limit(max(csv.field_size_limit(), FIELD_CHARACTERS))
    first = next(_records(path, delimiter), None)
    if first is None:
        raise DataError(f"{path}: is empty; a header with the names of the columns is needed")
    number, columns = first
    if isinstance(columns, str):
        raise DataError(f"{path}, line {number}: {columns}")
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the header names {', '.join(map(repr, twice))} twice")
    return Table(str(path), "line", columns, partial(_csv_rows, path, delimiter, columns))


def _csv_rows(path: Path, delimiter: str, columns: Sequence[str]) -> Iterator[tuple[int, Row]]:
    for number, cells in islice(_records(path, delimiter), 1, None):
        if isinstance(cells, str):
            yield number, cells
        elif len(cells) == len(columns):
            yield number, {name: cell or None for name, cell in zip(columns, cells, strict=True)}
        else:
            yield (
                number,
                f"{len(cells)} cells under {len(columns)} columns; put cells that hold "
                f"{delimiter!r} or line breaks into double quotes",
            )


def _records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str] | str]]:
    """(first line, cells or fault) of every record, the header included."""
    faults: list[str] = []
    with path.open("rb") as file:
        reader = csv.reader(_decoded(file, faults), delimiter=delimiter, strict=True)
        while True:
            number = reader.line_num + 1
            faults.clear()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, f"not CSV ({error}); is a double quote left open?"
                continue
            if faults:
                yield number, faults[0]
            elif cells:
                yield number, cells


def _decoded(lines: Iterator[bytes] | Any, faults: list[str]) -> Iterator[str]:
    """Lines as text, a byte order mark dropped; faults are put down and the line kept readable."""
    for number, line in enumerate(lines):
        if not number:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            faults.append(not_utf8(error))
            yield line.decode(errors="replace")


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with bytes that are no UTF-8."""
    byte = error.object[error.start]
    return f"not UTF-8 (byte 0x{byte:02x} at {error.start}); save the file as UTF-8"


BROKEN_TEXT = "holds half a surrogate pair (\\ud800 to \\udfff); mend the text"


def broken_text(value: object) -> bool:
    """JSON may spell halves of characters that no file or tokenizer can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def shown(value: object) -> str:
    """A value in a message: as JSON where it is JSON, and short."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 40 else text[:39] + "…"
