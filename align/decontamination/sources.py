"""Rows in and out: all that `pts.data.sources.open_table` reads, written in its own format."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from align.decontamination.index import Item
from align.decontamination.words import texts_of
from pts.data.rows import missing
from pts.data.sources import open_table
from pts.errors import DataError

RowOf = tuple[int, dict[str, Any]]
"""A row and its number (its line, in text files)."""
PARQUET_ROWS = 1024
"""Rows of a Parquet file that are written at a time."""


def rows_of(source: str, columns: Sequence[str] = ()) -> Iterator[RowOf]:
    """The rows of a source, one after the other.

    Raises:
        DataError: a row cannot be read, or lacks one of the columns.
    """
    table = open_table(source)
    for number, row in table:
        place = f"{table.place}, {table.unit} {number}"
        if isinstance(row, str):
            raise DataError(f"{place}: {row}")
        for column in columns:
            if column not in row:
                raise DataError(f"{place}: {missing(column, row)}")
        yield number, row


def columns_of(row: Mapping[str, Any], columns: Sequence[str]) -> list[tuple[str, str]]:
    """(column, text) of every text of a row, in the given columns, or in all."""
    chosen = {column: row[column] for column in columns} if columns else dict(row)
    return list(texts_of(chosen))


def evaluation_texts(
    sources: Sequence[str], columns: Sequence[str] = ()
) -> Iterator[tuple[Item, str]]:
    """All texts of evaluation sets, for an `EvaluationIndex`.

    Raises:
        DataError: as `rows_of`, or a set has no rows or no text: nothing would be looked for.
    """
    for source in sources:
        rows = texts = 0
        for number, row in rows_of(source, columns):
            rows += 1
            for column, text in columns_of(row, columns):
                texts += 1
                yield Item(source, number, column), text
        if not texts:
            where = f" in {', '.join(map(repr, columns))}" if rows and columns else ""
            raise DataError(
                f"{source}: holds no {'text' if rows else 'rows'}{where}, so nothing of it can be "
                "looked for; name a set that holds questions"
            )


class Writer:
    """A file of rows in the format of its ending, on the disk for good when the block ends."""

    def __init__(self, path: Path, source: str) -> None:
        self._path = path
        self._source = source
        self._waiting: list[dict[str, Any]] = []
        self._file: Any = None
        self._csv: csv.DictWriter[str] | None = None
        self._parquet: Any = None

    def __enter__(self) -> Writer:
        ending = self._path.suffix
        if ending == ".parquet":
            import pyarrow.parquet as pq

            self._schema = pq.read_schema(self._source)
            self._parquet = pq.ParquetWriter(self._path, self._schema)
            return self
        self._file = self._path.open("w", encoding="utf-8", newline="")
        if ending in (".csv", ".tsv"):
            columns = open_table(self._source).columns or ()
            self._csv = csv.DictWriter(
                self._file, columns, delimiter="\t" if ending == ".tsv" else ",",
                lineterminator="\n",
            )  # fmt: skip
            self._csv.writeheader()
        return self

    def write(self, number: int, row: dict[str, Any]) -> None:
        """Add a row; its number is for messages.

        Raises:
            DataError: a value that the file cannot hold.
        """
        if self._parquet is not None:
            self._waiting.append(row)
            if len(self._waiting) >= PARQUET_ROWS:
                self._flush()
        elif self._csv is not None:
            self._csv.writerow(row)
        else:
            self._file.write(json_line(row, self._source, number))

    def _flush(self) -> None:
        import pyarrow as pa

        if self._waiting:
            self._parquet.write_batch(pa.RecordBatch.from_pylist(self._waiting, self._schema))
            self._waiting.clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._parquet is not None:
            if kind is None:
                self._flush()
            self._parquet.close()
        else:
            self._file.close()
        if kind is None:
            with self._path.open("rb") as file:
                os.fsync(file.fileno())


def json_line(row: Mapping[str, Any], source: str, number: int) -> str:
    """A row as a line of JSON.

    Raises:
        DataError: a value that JSON cannot hold.
    """
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    except TypeError as error:
        fault = f"{error}; write the data as Parquet and give that file, whose types stay"
    except ValueError:
        fault = (
            "holds NaN or Infinity, which JSON has no number for; write null there, or give the "
            "data as Parquet"
        )
    table = open_table(source)
    raise DataError(f"{table.place}, {table.unit} {number}: {fault}")


def clean_names(sources: Sequence[str]) -> list[str]:
    """A file name for each source, its own where no other has it; datasets become JSONL."""
    names: list[str] = []
    for source in sources:
        path = Path(source)
        if source.startswith("hf:") or path.is_dir():
            stem, ending = source.removeprefix("hf:").strip("/").replace("/", "-"), ".jsonl"
            stem = stem.replace(":", "-")
        else:
            stem, ending = path.stem, path.suffix.lower()
        name, k = f"{stem}{ending}", 2
        while name in names:
            name, k = f"{stem}-{k}{ending}", k + 1
        names.append(name)
    return names
