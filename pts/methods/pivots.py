"""What a search reports of one unit of a path: a pivotal token, or a pivotal step."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from pts.branches import Path
from pts.config import SearchConfig
from pts.types import Estimate, PivotalStep, PivotalToken

Pivot: TypeAlias = PivotalToken | PivotalStep


def pivot(
    path: Path,
    config: SearchConfig,
    unit: tuple[int, int],
    around: tuple[Estimate, Estimate],
    delta: Estimate,
    decided: bool,
) -> Pivot:
    """The record of the unit `start <= i < end`; `around` is p(success) before and after it."""
    start, end = unit
    prob = float(np.prod(path.probs[start:end]))
    if config.unit == "token":
        return PivotalToken(start, path.ids[start], prob, *around, delta, decided)
    return PivotalStep(start, end, path.ids[start:end], prob, *around, delta, decided)
