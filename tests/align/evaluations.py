"""Small evaluations on disk, made from verdicts and rates that a test writes down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from align.evaluation.records import (
    BestTemperature,
    EvalSummary,
    Evaluation,
    FamilyScores,
    Item,
    write_evaluation,
)
from align.evaluation.statistics import mean_interval, rate_interval, wilson
from pts.types import Estimate

SAMPLES = 8


def store(
    run: Path,
    stage: str,
    greedy: Sequence[int],
    passed: Sequence[int],
    best: Sequence[float] | None = None,
    kl: Estimate | None = None,
    question: str = "What is 2 + {}?",
) -> Evaluation:
    """Write eval/STAGE of a run; item k is of family `even` or `odd`."""
    items = tuple(
        Item(
            id=f"q{k}",
            family=("even", "odd")[k % 2],
            question=question.format(k),
            reference=str(k + 2),
            greedy=bool(greedy[k]),
            greedy_length=20,
            greedy_truncated=False,
            greedy_text=f"The answer of {stage} is {k + 2 if greedy[k] else k + 3}.",
            samples=SAMPLES,
            passed=passed[k],
            truncated=0,
            length=21.5,
            best=None if best is None else best[k],
        )
        for k in range(len(greedy))
    )
    evaluation = Evaluation(_summary(stage, items, kl), items)
    folder = run / "eval" / stage
    folder.mkdir(parents=True, exist_ok=True)
    write_evaluation(evaluation, folder)
    return evaluation


def _summary(stage: str, items: Sequence[Item], kl: Estimate | None) -> EvalSummary:
    best = None
    if items[0].best is not None:
        accuracy = rate_interval([item.best for item in items])
        best = BestTemperature(0.3, accuracy, ((0.0, accuracy), (0.3, accuracy)))
    return EvalSummary(
        stage=stage,
        problems=len(items),
        unscored=0,
        samples=SAMPLES,
        temperature=0.7,
        greedy=wilson(sum(i.greedy for i in items), len(items)),
        sampled=rate_interval([i.passed / SAMPLES for i in items]),
        pass_at_k=rate_interval([float(i.passed > 0) for i in items]),
        length=mean_interval([i.length for i in items]),
        unfinished=rate_interval(np.zeros(len(items))),
        entropy=Estimate(0.21, 0.2, 0.22, len(items), "ratio"),
        kl=kl,
        best=best,
        families={
            name: _scores([i for i in items if i.family == name]) for name in ("even", "odd")
        },
    )


def _scores(items: Sequence[Item]) -> FamilyScores:
    return FamilyScores(
        wilson(sum(i.greedy for i in items), len(items)),
        rate_interval([i.passed / SAMPLES for i in items]),
    )
