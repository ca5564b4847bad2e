"""Evaluations of `align run`: a folder RUN/eval/STAGE, or its items.jsonl."""

from __future__ import annotations

from pathlib import Path

from align.compare.records import Reading, Readings, ScoredItem, digest
from align.errors import CompareError
from align.evaluation.records import read_evaluation

TASK = "evaluation"


def read_evaluation_items(path: Path) -> Readings:
    """Greedy verdicts, sampled verdicts, and rates at the best temperature where there are some.

    Raises:
        StageError: the folder is not what an evaluation writes.
        CompareError: two items have one id.
    """
    folder = path.parent if path.is_file() else path
    evaluation = read_evaluation(folder)
    source = str(folder)
    readings = {
        (TASK, measure): Reading(source, unscored=evaluation.summary.unscored)
        for measure in ("greedy", "sampled", "best T")
    }
    for number, item in enumerate(evaluation.items, 1):
        place = f"{folder / 'items.jsonl'}, line {number}"
        if item.id in readings[(TASK, "greedy")].items:
            raise CompareError(f"{place}: item {item.id!r} stands twice; evaluate again")
        content = digest(item.question, item.reference)
        verdicts = (1.0,) * item.passed + (0.0,) * (item.samples - item.passed)
        scores = {"greedy": (float(item.greedy),), "sampled": verdicts}
        if item.best is not None:
            scores["best T"] = (item.best,)
        for measure, values in scores.items():
            readings[(TASK, measure)].items[item.id] = ScoredItem(values, content, place)
    return {key: reading for key, reading in readings.items() if reading.items}
