"""How hard the questions are for a policy: p(success) over them as a Beta distribution.

One distribution gives the share that the filter keeps, the questions with right and wrong answers,
and the filter's early stops, for every number of samples; so what was seen with 6 answers a
question tells what 16 would show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pts.algorithm.filtering import equal_verdicts, keeps, lost
from pts.config import SearchConfig

Floats = npt.NDArray[np.float64]
CELLS = 400
"""Of the grid of p on which integrals are taken."""


@dataclass(frozen=True, slots=True)
class Difficulty:
    """Beta(a, b) over the questions."""

    a: float
    b: float

    @property
    def mean(self) -> float:
        """p(success) of a question drawn at random."""
        return self.a / (self.a + self.b)

    def between(self, low: int, high: int, n: int) -> float:
        """Share of the questions of which low to high of n answers are right."""
        p, weight = self._grid()
        return float(weight @ _between(p, low, high, n))

    def mixed(self, n: int) -> float:
        """Share of the questions with right and wrong answers among n."""
        return self.between(1, n - 1, n) if n > 1 else 0.0

    def kept(self, config: SearchConfig) -> float:
        """Share of the questions that a search's filter keeps."""
        p, weight = self._grid()
        n, first = config.filter_rollouts, equal_verdicts(config)
        kept = np.flatnonzero(keeps(np.arange(n + 1), n, config.p_min, config.p_max))
        if not kept.size:
            return 0.0
        held = _between(p, int(kept[0]), int(kept[-1]), n)
        if first < n:
            held = held - lost(p, n, first, config.p_min, config.p_max)
        return float(weight @ held)

    def filter_rollouts(self, config: SearchConfig) -> float:
        """Rollouts of the filter a question, its early stops counted."""
        p, weight = self._grid()
        n, first = config.filter_rollouts, equal_verdicts(config)
        return float(weight @ (n - (n - first) * (p**first + (1 - p) ** first)))

    def _grid(self) -> tuple[Floats, Floats]:
        """Middles of cells of p, and the distribution's mass in each."""
        from scipy.special import betainc

        edges = np.linspace(0, 1, CELLS + 1)
        return (edges[1:] + edges[:-1]) / 2, np.diff(betainc(self.a, self.b, edges))


def fitted(counts: Sequence[int], low: int, high: int, n: int) -> Difficulty | None:
    """The Beta distribution under which these counts of questions are likeliest.

    Args:
        counts: questions with fewer than `low`, with `low` to `high`, and with more right answers
            of `n`.

    Returns:
        None where nothing was counted.
    """
    from scipy.optimize import minimize

    seen = np.array(counts, float)
    if not seen.sum():
        return None

    def surprise(logs: Floats) -> float:
        tried = Difficulty(*np.exp(np.clip(logs, -4, 5)))
        shares = [tried.between(*ends, n) for ends in ((0, low - 1), (low, high), (high + 1, n))]
        # Half a question in each class, so that an empty one does not send the fit to infinity.
        return -float((seen + 0.5) @ np.log(np.maximum(shares, 1e-12)))

    found = minimize(surprise, np.log([0.5, 0.5]), method="Nelder-Mead")
    a, b = np.exp(np.clip(found.x, -4, 5))
    return Difficulty(float(a), float(b))


def _between(p: Floats, low: int, high: int, n: int) -> Floats:
    """P(low <= S <= high) of n answers, by p."""
    from scipy.special import bdtr

    if high < low:
        return np.zeros_like(p)
    upper = bdtr(min(high, n), n, p) if high >= 0 else 0.0
    return np.asarray(upper - (bdtr(low - 1, n, p) if low > 0 else 0.0) + np.zeros_like(p))
