"""Forms of a table that other programs read: flat rows, CSV, Parquet, HTML.

A row is flat when nothing in it is nested: `summary.greedy.mean` is the name of a column, and a
list is its JSON.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any


def flat_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with a column for each number; all have the columns of all, None where one has no
    value."""
    found = [dict(_leaves(row, "")) for row in rows]
    columns = dict.fromkeys(column for row in found for column in row)
    return [{column: row.get(column) for column in columns} for row in found]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, json.dumps(value) if isinstance(value, list | tuple) else value


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Flat rows as CSV with a header; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0] if rows else (), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_parquet(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write flat rows as Parquet, whole or not at all."""
    import pyarrow
    import pyarrow.parquet

    temporary = file.with_name(f".{file.name}.tmp")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), temporary)
    temporary.replace(file)


def html_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table; the first column names the row."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return f"<table><caption>{escape(title)}</caption><tr>{head}</tr>{body}</table>"


def html_list(lines: Sequence[str]) -> str:
    """An HTML list."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
