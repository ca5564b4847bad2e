"""Which reader reads a source: text files, Parquet files and Hugging Face datasets.

table = open_table("gsm8k.csv")
for number, row in table: ...       # a row by column names, or the text of a fault
"""

from __future__ import annotations

import codecs
from pathlib import Path

from pts.data.datasets import disk_rows, hub_rows, parquet_rows
from pts.data.tables import Table, csv_table, json_table
from pts.errors import DataError, did_you_mean

ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


def open_table(source: str) -> Table:
    """The table at a path or, for `hf:NAME`, on the Hugging Face Hub.

    Files are known by their endings (`ENDINGS`), folders are those of `Dataset.save_to_disk`.
    Raises DataError for what is wrong with the source as a whole.
    """
    if source.startswith("hf:"):
        return hub_rows(source)
    path = Path(source)
    if path.is_dir():
        return disk_rows(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        hint = did_you_mean(ending, ENDINGS)
        raise DataError(
            f"{source}: unknown kind of file {ending!r}{hint or '; known: ' + ', '.join(ENDINGS)}, "
            "the folder of a saved dataset, hf:NAME"
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if ending == ".parquet":
        return parquet_rows(path)
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise DataError(f"{path}: is UTF-16 or UTF-32; save it as UTF-8")
    if ending in (".csv", ".tsv"):
        return csv_table(path, "\t" if ending == ".tsv" else ",")
    return json_table(path)
