"""The filter of a question: how many equal verdicts set it aside before all rollouts are drawn.

A question is kept if between p_min and p_max of its filter rollouts pass. When the first few of
them all fail (or all pass) it very likely will not be, and the rest is not drawn. How few these may
be is settled by exact binomial probabilities, not by the questions that are met.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pts.config import SearchConfig
from pts.stats import Floats

MOST_LOST = 0.05
"""Share of questions well inside the range that stopping early may lose at most: of those that all
rollouts would have kept and the first few set aside."""

INSIDE = 1 / 12
"""Well inside is what lies this share of the range from both ends: 0.25 to 0.75 of 0.2 to 0.8."""

FEWEST = 4
"""Equal verdicts at least, where `p_min` and `p_max` keep next to nothing anyway."""


def equal_verdicts(config: SearchConfig) -> int:
    """Rollouts that set a question aside if all pass or all fail; `filter_rollouts` for never."""
    return _equal_verdicts(config.filter_rollouts, config.p_min, config.p_max)


@lru_cache(maxsize=64)
def _equal_verdicts(n: int, p_min: float, p_max: float) -> int:
    if p_min <= 0 and p_max >= 1:
        return n
    margin = (p_max - p_min) * INSIDE
    inside = np.linspace(p_min + margin, p_max - margin, 401)
    for first in range(min(FEWEST, n), n):
        if lost(inside, n, first, p_min, p_max).max() <= MOST_LOST:
            return first
    return n


def lost(p: Floats, n: int, first: int, p_min: float, p_max: float) -> Floats:
    """P(the first verdicts are equal and set aside a question that all n would keep), by true p."""
    kept = np.flatnonzero(keeps(np.arange(n + 1), n, p_min, p_max))
    none = np.zeros_like(p)
    if not kept.size:
        return none
    few, many = int(kept[0]), int(kept[-1])
    failed = (1 - p) ** first * _between(few, many, n - first, p) if few > 0 else none
    passed = p**first * _between(few - first, many - first, n - first, p) if many < n else none
    return np.asarray(failed + passed)


def keeps(
    passed: npt.NDArray[np.int64], n: int, p_min: float, p_max: float
) -> npt.NDArray[np.bool_]:
    """Whether so many passed of n rollouts keep a question."""
    return np.asarray((passed / n >= p_min) & (passed / n <= p_max))


def _between(low: int, high: int, n: int, p: Floats) -> Floats:
    """P(low <= S <= high), S of n."""
    from scipy.special import bdtr

    upper = bdtr(min(high, n), n, p) if high >= 0 else 0.0
    return np.asarray(upper - (bdtr(low - 1, n, p) if low > 0 else 0.0) + np.zeros_like(p))
