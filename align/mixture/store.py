"""Rows of ids in a file that a trainer reads through the operating system's memory map.

Neither writing nor training holds more than a few rows in memory. The file is written whole or not
at all, and what was counted stands beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.context import SourceRows
from align.data.chat import ChatIds, IdPair
from align.data.formats import IGNORED
from align.mixture.batches import BATCH, batches
from pts.files import write_json

if TYPE_CHECKING:
    from align.mixture.encode import Encoder

ROWS, COUNTS = "rows.arrow", "rows.json"
CHAT_COLUMNS = ("input_ids", "labels")
PAIR_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


def stored_rows(folder: Path, key: str, stage: str, encoder: Callable[[], Encoder]) -> SourceRows:
    """A stage's rows; written unless they are there already.

    Args:
        folder: where the file lies.
        key: stands for all that decides the rows; files with another key are written anew.
        stage: its name, for messages.
        encoder: opens the sources.

    Raises:
        StageError: rows cannot be encoded, or more is lost than the recipe allows.
    """
    path, told = folder / ROWS, folder / COUNTS
    held = _held(told) if path.is_file() else {}
    if held.get("key") == key:
        return SourceRows(path, held["counts"])
    folder.mkdir(parents=True, exist_ok=True)
    told.unlink(missing_ok=True)
    made = encoder()
    write_rows(path, (row.settled.row for row in made.rows() if row.settled.row is not None))
    made.check(stage)
    counts = {name: found.plain() for name, found in made.counts.items()}
    write_json(told, {"key": key, "counts": counts})
    return SourceRows(path, counts)


def _held(path: Path) -> dict[str, Any]:
    """What is told beside the rows; nothing where the file is missing or damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def write_rows(path: Path, rows: Iterable[ChatIds | IdPair]) -> None:
    """Write rows of one kind as an Arrow stream, atomically."""
    import pyarrow as pa

    temporary = path.with_name(f".{path.name}.tmp")
    writer: Any = None
    with temporary.open("wb") as file:
        for columns in _columns(rows):
            arrays = [pa.array(values, pa.list_(pa.int32())) for values in columns.values()]
            batch = pa.record_batch(arrays, names=list(columns))
            writer = writer or pa.ipc.new_stream(file, batch.schema)
            writer.write_batch(batch)
        if writer is not None:
            writer.close()
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _columns(rows: Iterable[ChatIds | IdPair]) -> Iterator[dict[str, list[Any]]]:
    for batch in batches(rows, BATCH):
        values = [_values(row) for row in batch]
        yield {name: [row[name] for row in values] for name in values[0]}


def _values(row: ChatIds | IdPair) -> dict[str, Any]:
    if isinstance(row, IdPair):
        return dict(zip(PAIR_COLUMNS, (row.prompt, row.chosen, row.rejected), strict=True))
    labels = [token if flag else IGNORED for token, flag in zip(row.ids, row.mask, strict=True)]
    return dict(zip(CHAT_COLUMNS, (row.ids, labels), strict=True))
