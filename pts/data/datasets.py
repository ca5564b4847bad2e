"""Tables that Arrow reads: Parquet files and Hugging Face datasets, from disk or from the Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pts.data.tables import Row, Table, not_utf8
from pts.errors import DataError, did_you_mean

BATCH = 256
"""Rows that are in memory at a time."""


def _table(place: str, columns: Sequence[str], batches: Callable[[], Iterator[Any]]) -> Table:
    """Rows of Arrow's batches, counted from 1; `batches` begins them anew."""

    def rows() -> Iterator[tuple[int, Row]]:
        number = 0
        try:
            for batch in batches():
                for row in _rows(batch):
                    number += 1
                    yield number, row
        except (OSError, pa_errors()) as error:
            raise DataError(
                f"{place}: cannot be read behind row {number:,} ({_first_line(error)}); "
                "fetch or write it again"
            ) from None

    return Table(place, "row", columns, rows)


def _rows(batch: Any) -> list[Row]:
    """Rows of a record batch or table; row by row where text is broken, to name the right one."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [not_utf8(error)]
    return [row for at in range(batch.num_rows) for row in _rows(batch.slice(at, 1))]


def pa_errors() -> type[Exception]:
    """The root of what Arrow raises, imported when it is needed."""
    import pyarrow as pa

    found: type[Exception] = pa.ArrowException
    return found


def parquet_rows(path: Path) -> Table:
    """Rows of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not Parquet ({_first_line(error)})") from None

    def batches() -> Iterator[Any]:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH)

    return _table(str(path), columns, batches)


def disk_rows(folder: Path) -> Table:
    """The dataset in a folder: of `save_to_disk`, or files as they lie on the Hub."""
    from datasets import load_dataset, load_from_disk

    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        loaded = load_from_disk(str(folder)) if saved else load_dataset(str(folder))
    except Exception as error:  # scripts, clashing types, damaged files: what the library raises
        raise DataError(
            f"{folder}: no dataset here ({_first_line(error)}); give a folder of save_to_disk, one "
            "with the files of a dataset, or a file"
        ) from None
    named = "{0}/{1}" if saved else "the {1} file itself"
    return _one_split(str(folder), loaded, lambda split: named.format(folder, split))


def _one_split(place: str, loaded: Any, named: Callable[[str], str]) -> Table:
    """Rows of a dataset, or of the only split; the data stay on disk, memory-mapped.

    `named` tells how another split is asked for.
    """
    if isinstance(loaded, Mapping):
        splits = list(loaded)
        if len(splits) != 1:
            raise DataError(
                f"{place}: holds the splits {', '.join(map(repr, splits))}; give one of them, "
                f"e.g. {named(splits[0] if splits else 'train')}"
            )
        loaded = loaded[splits[0]]
    rows = loaded.with_format("arrow")
    return _table(place, loaded.column_names, lambda: rows.iter(BATCH))


def hub_rows(source: str) -> Table:
    """`hf:NAME`, `hf:NAME:SPLIT` or `hf:NAME:CONFIG:SPLIT`, downloaded once to the cache.

    Raises DataError when it cannot be had: offline, no such dataset, no such config or split.
    """
    from datasets import load_dataset

    # One word behind the name is the split: the group of the config takes none if it can.
    parts = re.fullmatch("hf:([^:]+)(?::([^:]+))??(?::([^:]+))?", source)
    if parts is None:
        raise DataError(
            f"{source}: give hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT, e.g. "
            "hf:openai/gsm8k:main:train"
        )
    name, config, split = parts.groups()
    try:
        loaded = load_dataset(name, config, split=split)
    except Exception as error:
        reason = _first_line(error)
        raise DataError(f"{source}: cannot be read: {reason}; {_remedy(error, name)}") from None
    start = f"hf:{name}:{f'{config}:' if config else ''}"
    return _one_split(source, loaded, lambda split: start + split)


def _remedy(error: Exception, name: str) -> str:
    if isinstance(error, ConnectionError):
        return (
            "if this machine has no access to huggingface.co, save the dataset on one that has "
            f"(load_dataset({name!r}, ...).save_to_disk(FOLDER)) and give the folder"
        )
    told = re.search(r"""["'](.+?)["'].*\[(.*)\]""", str(error))  # wrong name, list of right ones
    known = [word.strip(" '\"") for word in told[2].split(",")] if told else []
    hint = did_you_mean(told[1], known).removeprefix("; ") if told else ""
    return hint or "give hf:NAME:CONFIG:SPLIT as the dataset's page names them"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
