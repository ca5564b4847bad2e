"""Totals of a long run from a few of its questions.

The questions of a probe are taken for a sample of all. A total is what the probe has cost plus
what the questions that are left will cost; its interval is a bootstrap (Efron 1979) over the
probe's questions in which the questions that are left are drawn anew from each resample, so that
it covers both how little a small probe says of the mean and how much questions differ. Percentiles
are widened for small samples as Hesterberg advises (2015, "What Teachers Should Know About the
Bootstrap", expanded percentile interval).

Not covered: a probe that is no random sample (a file sorted by difficulty), and kinds of questions
so rare that the probe holds none of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Forecast:
    """An expected total and its 95 % interval."""

    mean: float
    low: float
    high: float

    def times(self, factor: float) -> Forecast:
        """The same in another unit."""
        return Forecast(self.mean * factor, self.low * factor, self.high * factor)


def forecast(
    rows: Sequence[Sequence[float]], total: int, *, none_searched: bool = False
) -> list[Forecast]:
    """Totals of each column over `total` questions.

    Args:
        rows: [N, K], what each of N >= 2 probed questions has cost or brought, in K ways.
        total: questions in all, the probed ones among them, unless `none_searched`.

    Returns:
        K forecasts. They are exact (low = mean = high) when no question is left.
    """
    values = np.asarray(rows, dtype=np.float64)
    n, seen = len(values), np.zeros(1) if none_searched else values.sum(axis=0)
    left = total if none_searched else max(0, total - n)
    means = seen + left * values.mean(axis=0)
    draw = np.random.default_rng(0)
    resamples = draw.multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n
    totals = seen + draw.multinomial(left, resamples) @ values
    tail = expanded_tail(n)
    low, high = np.quantile(totals, [tail, 1 - tail], axis=0)
    return [
        Forecast(float(m), float(min(lo, m)), float(max(hi, m)))
        for m, lo, hi in zip(means, low, high, strict=True)
    ]


def expanded_tail(n: int) -> float:
    """Probability below the lower end of an expanded percentile interval, n >= 2."""
    return float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 - LEVEL) / 2)))
