"""Intervals, tests and decisions.

Everything here is a function of counts: no randomness, no model. Proportions get Jeffreys
intervals (Brown, Cai & DasGupta 2001), differences of two proportions Newcombe's hybrid score
interval (Newcombe 1998, method 10), weighted sums its generalisation (Zou & Donner 2008, MOVER),
one-sided tests against a margin the score test with the constrained maximum likelihood of
Farrington & Manning (1990), several tests together the step-up rule of Benjamini & Hochberg (1995).

Not covered: intervals that stay valid under optional stopping. An interval computed while a
search decides where to sample next is nominal; a published number rests on fresh rollouts
(`pts.algorithm.pairs.confirm`).

scipy is imported by the functions that need it: it is slow to import, and the check of a recipe
needs none of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pts.types import Estimate

Floats = npt.NDArray[np.float64]
Occurrences = npt.NDArray[np.int64]
Numbers: TypeAlias = int | float | Floats | Occurrences

Z95 = 1.959963984540054
"""Half-width of a two-sided 95 % normal interval, in standard errors."""

MIN_EXPECTED = 8.0
"""Draws expected at least in each cell of a chi-square test; smaller cells are pooled."""

Decision: TypeAlias = Literal["yes", "no", "indifferent", "open"]


def half_width(level: float) -> float:
    """Of a two-sided normal interval of that level, in standard errors."""
    from scipy.special import ndtri

    return float(ndtri((1 + level) / 2))


@lru_cache(maxsize=65536)
def jeffreys_bounds(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Equal-tailed bounds of the Beta(s + 1/2, n - s + 1/2) posterior, closed at 0 and 1.

    The lower bound is 0 when nothing passed and the upper bound 1 when everything did, as Brown,
    Cai & DasGupta advise; with n = 0 the bounds are (0, 1).
    """
    from scipy.special import betaincinv, ndtr

    tail = float(ndtr(-z))
    a, b = successes + 0.5, n - successes + 0.5
    low = 0.0 if successes == 0 else float(betaincinv(a, b, tail))
    high = 1.0 if successes == n else float(betaincinv(a, b, 1.0 - tail))
    return low, high


def jeffreys(successes: int, n: int, z: float = Z95) -> Estimate:
    """The raw proportion s / n (one half when n = 0) with its Jeffreys interval."""
    low, high = jeffreys_bounds(successes, n, z)
    return Estimate(successes / n if n else 0.5, low, high, n, "jeffreys")


def exact(value: float) -> Estimate:
    """A probability known without sampling: the verdict on a finished completion."""
    return Estimate(value, value, value, 0, "exact")


def wilson_bounds(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score bounds of a proportion (Wilson 1927), 0 and 1 where nothing and all passed.

    n > 0 may be an effective sample size, and then neither number need be whole.
    """
    p, z2 = successes / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def wilson(successes: int, n: int, z: float = Z95) -> Estimate:
    """The raw proportion s / n (n >= 1) with Wilson's interval."""
    low, high = wilson_bounds(successes, n, z)
    return Estimate(successes / n, low, high, n, "wilson")


def newcombe(s1: int, n1: int, s2: int, n2: int, z: float = Z95) -> Estimate:
    """p1 - p2 from two independent samples (n1, n2 >= 1), Newcombe's hybrid score interval."""
    return square_and_add(wilson(s1, n1, z), wilson(s2, n2, z))


def square_and_add(first: Estimate, second: Estimate) -> Estimate:
    """first - second, their one-sided half-widths added in quadrature (Newcombe 1998)."""
    mean = first.mean - second.mean
    below = math.hypot(first.mean - first.low, second.high - second.mean)
    above = math.hypot(first.high - first.mean, second.mean - second.low)
    low, high = max(-1.0, mean - below), min(1.0, mean + above)
    return Estimate(mean, low, high, first.n + second.n, "newcombe")


def constrained_mle(
    s1: Numbers, n1: int, s2: Numbers, n2: int, margin: Numbers
) -> tuple[Floats, Floats]:
    """Maximum-likelihood (p1, p2) subject to p1 - p2 = margin, -1 < margin < 1.

    The root of the cubic score equation in closed form (Farrington & Manning 1990, appendix).
    Successes and margins may be arrays of shapes that go together; so are the results.
    """
    p1, p2, margin = np.asarray(s1) / n1, np.asarray(s2) / n2, np.asarray(margin, dtype=np.float64)
    ratio = n2 / n1
    a = 1 + ratio
    b = -(1 + ratio + p1 + ratio * p2 + margin * (ratio + 2))
    c = margin * margin + margin * (2 * p1 + ratio + 1) + p1 + ratio * p2
    d = -p1 * margin * (1 + margin)
    v = b**3 / (3 * a) ** 3 - b * c / (6 * a * a) + d / (2 * a)
    u = np.copysign(np.sqrt(np.maximum(0.0, b * b / (3 * a) ** 2 - c / (3 * a))), v)
    angle = np.arccos(np.clip(np.divide(v, u**3, out=np.zeros_like(u), where=u != 0), -1.0, 1.0))
    root = 2 * u * np.cos((np.pi + angle) / 3) - b / (3 * a)
    root = np.clip(root, np.maximum(0.0, margin), np.minimum(1.0, 1.0 + margin))
    return root, root - margin


def score_statistic(s1: Numbers, n1: int, s2: Numbers, n2: int, margin: Numbers) -> Floats:
    """(p1 - p2 - margin) in standard errors under p1 - p2 = margin.

    The constrained estimate of Farrington & Manning (1990) with the (N / (N - 1)) variance factor
    of Miettinen & Nurminen (1985); infinite where that variance is 0. Successes may be arrays.
    """
    q1, q2 = constrained_mle(s1, n1, s2, n2, margin)
    total = n1 + n2
    variance = (q1 * (1 - q1) / n1 + q2 * (1 - q2) / n2) * total / (total - 1)
    distance = np.asarray(s1) / n1 - np.asarray(s2) / n2 - margin
    known = variance > 1e-15
    error = np.sqrt(np.where(known, variance, 1.0))
    return np.where(known, distance / error, np.where(distance > 1e-12, np.inf, -np.inf))


def score_test(s1: int, n1: int, s2: int, n2: int, margin: float) -> float:
    """One-sided p-value of H0: p1 - p2 <= margin, n1 and n2 fixed in advance.

    Asymptotic: at margin 0.15 with 16 to 64 rollouts a side a test at 0.05 rejects a true null with
    probability 0.070 at most (all tables enumerated), one at 0.01 with 0.022, the worst cases lying
    where p1 is nearly 1. Exact, for a test that stops early: `pts.algorithm.sequential`.
    """
    from scipy.special import ndtr

    return float(ndtr(-score_statistic(s1, n1, s2, n2, margin)))


def chi_square(counts: Occurrences, probs: Floats, least: float = MIN_EXPECTED) -> float:
    """p-value of Pearson's test that counts [K] were drawn with probabilities [K].

    Cells that expect fewer than `least` draws are pooled, and the pool, if it is still too small,
    joins the smallest other cell. With one cell left there is nothing to test: 1.
    """
    from scipy.special import chdtrc

    expected = probs / probs.sum() * counts.sum()
    order = np.argsort(expected)[::-1]
    expected, counts = expected[order], counts[order]
    kept = int((expected >= least).sum())
    cells = np.append(expected[:kept], expected[kept:].sum())
    seen = np.append(counts[:kept], counts[kept:].sum())
    if kept and cells[-1] < least:
        cells[-2] += cells[-1]
        seen[-2] += seen[-1]
        cells, seen = cells[:-1], seen[:-1]
    if len(cells) < 2:
        return 1.0
    return float(chdtrc(len(cells) - 1, float(((seen - cells) ** 2 / cells).sum())))


def benjamini_hochberg(pvalues: Sequence[float], fdr: float) -> list[bool]:
    """Which hypotheses the step-up rule rejects at false discovery rate `fdr`, in given order."""
    m = len(pvalues)
    ranked = sorted(pvalues)
    passed = [p for rank, p in enumerate(ranked, start=1) if p <= fdr * rank / m]
    threshold = max(passed, default=-1.0)
    return [p <= threshold for p in pvalues]


def reaches(value: float, p_gap: float) -> bool:
    """|value| >= p_gap, where 7/10 - 5/10 reaches 0.2 although floats fall short of it."""
    return abs(value) >= p_gap - 1e-9


def decide(delta: Estimate, p_gap: float, indifference_margin: float) -> Decision:
    """Is |delta| >= p_gap? Errors in [p_gap - indifference margin, p_gap + indifference margin) are
    accepted, others are not.

    "yes": the estimate reaches p_gap and its interval lies above p_gap - indifference margin (or
    mirrored below zero). "no": the estimate falls short and its interval inside ±(p_gap +
    indifference margin). "indifferent": the interval lies inside the indifference
    indifference margin, so that more rollouts would buy nothing.
    """
    low, high = (delta.low, delta.high) if delta.mean >= 0 else (-delta.high, -delta.low)
    above = low >= p_gap - indifference_margin
    below = not reaches(high, p_gap + indifference_margin) and not reaches(
        min(low, 0.0), p_gap + indifference_margin
    )
    if above and below:
        return "indifferent"
    if above and reaches(delta.mean, p_gap):
        return "yes"
    return "no" if below and not reaches(delta.mean, p_gap) else "open"


def smoothed_mean(successes: float, n: float) -> float:
    """Mean of the Jeffreys posterior, (s + 1/2) / (n + 1): never 0 or 1, for guidance only."""
    return (successes + 0.5) / (n + 1)
