"""Reads problems from tables: columns mapped to a `Problem`'s fields, every fault told at once.

    problems = load_problems("gsm8k.jsonl", {"prompt": "question", "reference": "answer"})

Sources are JSONL, CSV and Parquet files, folders of saved Hugging Face datasets, and `hf:NAME`
(`pts.data.sources`). A prompt is text, or a list of messages `{"role": ..., "content": ...}`.
Other columns become the problem's metadata.

The source is read once to check it and again whenever the problems are iterated. Neither keeps
rows; the check keeps 8 bytes of each id, by which repeated ones are found.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pts.data.rows import FIELDS, Faults, RowReader
from pts.data.sources import open_table
from pts.data.tables import Table
from pts.errors import ConfigError, did_you_mean
from pts.files import hash64
from pts.types import Problem


class Problems:
    """The problems of a source that was found to be sound: read anew at every iteration."""

    def __init__(self, table: Table, reader: RowReader, count: int) -> None:
        self._table, self._reader, self._count = table, reader, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Problem]:
        """Raises DataError if the source has changed since it was checked, and is wrong now."""
        faults = Faults(self._table)
        for number, row in self._table:
            problem = self._reader.read(number, row, faults)
            faults.raise_all()
            if problem is not None:
                yield problem


def load_problems(
    source: Path | str,
    columns: Mapping[str, str] | None = None,
    *,
    chat: bool = False,
    check: Callable[[Problem], str | None] | None = None,
) -> Problems:
    """Check a source of problems and return them, to be iterated.

    Args:
        source: a file (.jsonl, .csv, .tsv, .parquet), the folder of a saved dataset, or
            `hf:NAME`, `hf:NAME:SPLIT`, `hf:NAME:CONFIG:SPLIT`.
        columns: the columns that hold "id", "prompt" and "reference" where they are called
            otherwise, and the one that holds "completions" if problems bring some. Without an id
            column the numbers of the rows (in text files, of the lines) are the ids.
        chat: ask prompts that are text as one user message.
        check: tells what else is wrong with a problem, None if nothing; told with its row.

    References that are numbers become text, whole ones without a decimal point.

    Raises ConfigError for an unknown field in `columns`, DataError for everything that is wrong
    with the source, one line a fault.
    """
    unknown = [name for name in columns or () if name not in FIELDS]
    if unknown:
        raise ConfigError(*(f"no field {n!r}{did_you_mean(n, FIELDS)}" for n in unknown))
    table = open_table(str(source))
    reader = RowReader(columns or {}, chat)
    faults = Faults(table)
    if table.columns is not None:
        reader.check_columns(table.columns, faults)
        faults.raise_all()
    digests, rows = array("Q"), 0
    for number, row in table:
        rows += 1
        problem = reader.read(number, row, faults)
        if problem and check and (what := check(problem)) is not None:
            faults.add(number, what)
        if isinstance(row, dict):
            digests.append(hash64(reader.id_of(number, row)))
    if not rows:
        faults.add(None, "holds no problems")
    _add_repeated(table, reader, digests, faults)
    faults.raise_all(rows)
    return Problems(table, reader, rows)


def _add_repeated(table: Table, reader: RowReader, digests: array[int], faults: Faults) -> None:
    """Rows whose id an earlier row has; the source is read again only if digests are equal."""
    import numpy as np

    values = np.frombuffer(digests, np.uint64)
    values.sort()
    repeated = {int(value) for value in values[1:][values[1:] == values[:-1]]}
    first: dict[str, int] = {}
    for number, row in table if repeated else ():
        name = reader.id_of(number, row) if isinstance(row, dict) else None
        if name is None or hash64(name) not in repeated:
            continue
        if name in first:
            faults.add(number, f"id {name!r} was used on {table.unit} {first[name]}")
        first.setdefault(name, number)
