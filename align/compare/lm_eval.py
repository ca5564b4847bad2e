"""Files that lm-evaluation-harness writes with `--log_samples`: samples_TASK_DATE.jsonl.

A line is one item under one filter; each of its `metrics` becomes a measure, named with its filter
unless that is "none". Repeats that a filter leaves apart are samples of the item. Values that are
no numbers (such as the parts of a corpus-wide score) are counted as unscored. Lines of 0.4.0 to
0.4.2, which do not name their metrics, are read too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from align.compare.records import Reading, Readings, ScoredItem, digest, score_of
from align.errors import CompareError
from pts.data.tables import json_table, shown

_NAME = re.compile(r"samples_(?P<task>.+?)(_\d{4}-\d\d-\d\dT[\d.:-]+)?")
_FIELDS = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics",
    "doc_hash", "prompt_hash", "target_hash",
}  # fmt: skip


def task_of(file: Path) -> str:
    """The task that a file is named after."""
    found = _NAME.fullmatch(file.stem)
    return found["task"] if found else file.stem


def read_samples(file: Path) -> Readings:
    """All measures of one file.

    Raises:
        CompareError: a line is not what lm-evaluation-harness writes, or an item stands twice.
        DataError: the file cannot be read.
    """
    task, readings = task_of(file), Readings()
    for number, row in json_table(file):
        place = f"{file}, line {number}"
        if isinstance(row, str):
            raise CompareError(f"{place}: {row}")
        if "doc_id" not in row or "doc" not in row:
            raise CompareError(f"{place}: no line of lm-evaluation-harness (no doc_id and doc)")
        content = "/".join(str(row[key]) for key in ("doc_hash", "target_hash") if key in row)
        content = content or digest(row["doc"], row.get("target"))
        metrics = row.get("metrics", sorted(row.keys() - _FIELDS))
        named = isinstance(metrics, list) and all(isinstance(one, str) for one in metrics)
        if not named or len(set(metrics)) < len(metrics):
            raise CompareError(
                f"{place}: metrics: must be a list of names, each once, got {shown(metrics)}; "
                "write the file again with --log_samples"
            )
        for metric in metrics:
            kept = row.get("filter", "none")
            measure = metric if kept == "none" else f"{metric}, {kept}"
            reading = readings.setdefault((task, measure), Reading(str(file)))
            scores = _numbers(row.get(metric))
            name = str(row["doc_id"])
            if name in reading.items:
                raise CompareError(
                    f"{place}: item {name} stands twice for {measure} (first: "
                    f"{reading.items[name].place}); keep the lines of one run"
                )
            if scores:
                reading.items[name] = ScoredItem(scores, content, place)
            else:
                readings[(task, measure)] = Reading(
                    reading.source, reading.items, reading.unscored + 1
                )
    return {key: reading for key, reading in readings.items() if reading.items}


def _numbers(value: Any) -> tuple[float, ...]:
    """The scores of an item: a number, a verdict, or a list of these; nothing for all else."""
    values = value if isinstance(value, list) else [value]
    scores = tuple(score for score in map(score_of, values) if score is not None)
    return scores if len(scores) == len(values) else ()
