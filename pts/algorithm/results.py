"""The record of one searched path: the units that are pivotal, the curve, what was drawn."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from pts.algorithm.paths import ScoredCompletion, SiblingCounts
from pts.config import SearchConfig
from pts.stats import reaches
from pts.types import CompletionResult, Estimate, PivotalStep, PivotalToken

Unit: TypeAlias = tuple[int, int]
"""A token or a step of a path: its positions `start <= i < end`."""

Pivot: TypeAlias = PivotalToken | PivotalStep

Stopped: TypeAlias = Literal[
    "decided", "indifferent", "unlikely", "budget", "no candidates", "impossible"
]


def pivots_along(
    path: ScoredCompletion,
    config: SearchConfig,
    curve: Mapping[int, Estimate],
    deltas: Mapping[Unit, Estimate],
    decided: Collection[Unit],
) -> list[Pivot]:
    """The units whose estimated change reaches p_gap. `curve` is p(success) by place."""
    found: list[Pivot] = []
    for unit, delta in deltas.items():
        if reaches(delta.mean, config.p_gap):
            start, end = unit
            prob = float(np.prod(path.probs[start:end]))
            told = (prob, curve[start], curve[end], delta, unit in decided)
            if config.unit == "token":
                found.append(PivotalToken(start, path.ids[start], *told))
            else:
                found.append(PivotalStep(start, end, path.ids[start:end], *told))
    return found


def completion_result(
    path: ScoredCompletion,
    curve: Mapping[int, Estimate],
    pivots: Sequence[Pivot],
    groups: SiblingCounts,
    stopped: Stopped,
    undecided: Sequence[Pivot] = (),
) -> CompletionResult:
    """What a search found along a path; `pivots` are its report."""
    return CompletionResult(
        ids=path.ids,
        verdict=path.verdict,
        probs=tuple(float(q) for q in path.probs),
        curve_at=tuple(curve),
        curve=tuple(curve.values()),
        tokens=tuple(p for p in pivots if isinstance(p, PivotalToken)),
        siblings=groups.table(path),
        stopped=stopped,
        steps=tuple(p for p in pivots if isinstance(p, PivotalStep)),
        undecided=tuple(undecided),
    )
