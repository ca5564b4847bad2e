"""Intervals and paired tests for evaluations. Pure functions on numpy arrays.

    wilson(962, 1000)                      one greedy accuracy
    rate_interval(rates)                   accuracy over several samples a problem
    paired_binary(before, after)           two stages, the same problems, one verdict each
    paired_mean(before, after)             two stages, the same problems, success rates
    combine_seeds(before, after)           the same comparison over several training seeds

The unit is always the problem. Eight samples of one problem are not eight problems: they are
averaged first, and intervals come from the spread between problems (clustering by item). All
tests are two-sided. Not covered: unpaired comparisons and sequential looks at the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import special

from pts.stats import wilson_bounds
from pts.types import Estimate

Floats = npt.NDArray[np.float64]
LEVEL = 0.95
"""Confidence level of every interval that is published."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired difference, after minus before.

    `worse` and `better` count the items whose value fell and rose.
    """

    difference: Estimate
    pvalue: float
    better: int
    worse: int
    test: str
    df: float | None = None
    """Degrees of freedom, of the tests that have some."""


@dataclass(frozen=True, slots=True)
class SeedComparison:
    """A paired difference over several seeds; see `combine_seeds`."""

    per_seed: tuple[float, ...]
    by_item: Comparison
    """These seeds, new problems."""
    by_item_and_seed: Comparison | None
    """New seeds and new problems; None for a single seed."""


def z_of(level: float) -> float:
    """Two-sided standard normal quantile, 1.96 for 0.95."""
    return float(special.ndtri(0.5 + level / 2))


def t_of(level: float, df: float) -> float:
    """Two-sided Student quantile."""
    return float(special.stdtrit(df, 0.5 + level / 2))


def t_pvalue(t: float, df: float) -> float:
    """Two-sided p value of a Student statistic."""
    return float(2 * special.stdtr(df, -abs(t)))


def wilson(successes: float, n: int, level: float = LEVEL) -> Estimate:
    """Wilson's score interval of a proportion (Wilson 1927).

    Raises:
        ValueError: no trials, or successes outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"got {successes} successes in {n} trials; need 0 <= successes <= n >= 1")
    return Estimate(successes / n, *wilson_bounds(successes, n, z_of(level)), n, "wilson")


def rate_interval(rates: npt.ArrayLike, level: float = LEVEL) -> Estimate:
    """Interval of a mean success rate, one rate an item: Wilson's for the effective sample size.

    That size, p(1 - p) / (variance of the mean), counts how many independent verdicts would be as
    informative as these clusters (Kish 1965): the number of items less one for single verdicts,
    more where items have several samples. Unlike Student's, the interval stays inside 0..1 and
    does not collapse where every item has the same rate.

    Raises:
        ValueError: no items, or rates outside 0..1.
    """
    x = _vector(rates)
    mean, effective = float(x.mean()), effective_size(x)
    bounds = wilson_bounds(mean * effective, effective, z_of(level))
    return Estimate(mean, *bounds, len(x), "wilson clustered")


def effective_size(rates: npt.ArrayLike) -> float:
    """How many independent verdicts would tell as much as these rates, one an item (Kish 1965).

    Raises:
        ValueError: no items, or rates outside 0..1.
    """
    x = _vector(rates)
    mean, n = float(x.mean()), len(x)
    if x.min() < 0 or x.max() > 1:
        raise ValueError(f"rates must lie in 0..1, got {x.min():g} to {x.max():g}")
    spread = float(x.var(ddof=1)) / n if n > 1 else 0.0
    return mean * (1 - mean) / spread if spread > 1e-18 else float(n)


def mean_interval(values: npt.ArrayLike, level: float = LEVEL) -> Estimate:
    """Student's interval of a mean over items, one value an item.

    Raises:
        ValueError: fewer than two items.
    """
    x = _vector(values)
    mean, n = float(x.mean()), len(x)
    if n < 2:
        raise ValueError("an interval of a mean needs at least 2 items, got 1")
    half = t_of(level, n - 1) * float(x.std(ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n, "t")


def ratio_interval(totals: npt.ArrayLike, sizes: npt.ArrayLike, level: float = LEVEL) -> Estimate:
    """Interval of sum(totals) / sum(sizes), such as a mean per token over completions.

    Tokens of one completion are not independent, so the completion is the unit; the ratio is
    linearised (Cochran 1977, section 2.11).

    Raises:
        ValueError: fewer than two items, different lengths, or sizes that sum to 0.
    """
    y, x = _pair(totals, sizes)
    if x.sum() <= 0:
        raise ValueError("the sizes sum to 0; a ratio needs at least one token")
    ratio = float(y.sum() / x.sum())
    spread = mean_interval((y - ratio * x) / x.mean(), level)
    return Estimate(ratio, ratio + spread.low, ratio + spread.high, len(y), "ratio")


def pass_at_k(n: npt.ArrayLike, passed: npt.ArrayLike, k: int) -> Floats:
    """Unbiased chance that one of k samples passes, item by item (Chen et al. 2021, eq. 1).

    1 - C(n - c, k) / C(n, k) for n samples of which c passed.

    Raises:
        ValueError: an item with fewer than k samples, or with more passes than samples.
    """
    total, c = _pair(n, passed)
    if k < 1 or (total < k).any():
        raise ValueError(
            f"pass@{k} needs at least {max(k, 1)} samples an item, got {total.min():g}"
        )
    if (c > total).any() or (c < 0).any():
        raise ValueError("an item has more passes than samples")
    steps = np.arange(k, dtype=np.float64)
    failures = np.clip(total - c, 0, None)
    missed = np.clip(failures[:, None] - steps, 0, None) / (total[:, None] - steps)
    return np.asarray(1 - missed.prod(axis=1), dtype=np.float64)


def paired_binary(before: npt.ArrayLike, after: npt.ArrayLike, level: float = LEVEL) -> Comparison:
    """Exact McNemar test of paired verdicts, with Newcombe's interval of the difference.

    Given the items whose verdict changed, each direction has probability 1/2 under H0
    (McNemar 1947, exact form). The interval is method 10 of Newcombe (1998, Stat. Med. 17:2635):
    Wilson's limits of both proportions, squared and added with their correlation.

    Raises:
        ValueError: no items, different lengths, or values other than 0 and 1.
    """
    a, b = _pair(before, after)
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise ValueError("paired verdicts must be 0 or 1; for success rates use paired_mean")
    better, worse = int((b > a).sum()), int((b < a).sum())
    changed = better + worse
    tail = float(special.bdtr(min(better, worse), changed, 0.5)) if changed else 1.0
    difference = _newcombe(a, b, level)
    return Comparison(difference, min(1.0, 2 * tail), better, worse, "McNemar, exact")


def _newcombe(a: Floats, b: Floats, level: float) -> Estimate:
    n = len(a)
    before, after = wilson(float(a.sum()), n, level), wilson(float(b.sum()), n, level)
    phi = _phi(a, b)
    difference = after.mean - before.mean

    def reach(up: float, down: float) -> float:
        return math.sqrt(max(0.0, up * up - 2 * phi * up * down + down * down))

    low = difference - reach(after.mean - after.low, before.high - before.mean)
    high = difference + reach(after.high - after.mean, before.mean - before.low)
    return Estimate(difference, low, high, n, "newcombe paired")


def _phi(a: Floats, b: Floats) -> float:
    """Correlation of two verdicts, with Newcombe's correction towards 0 where it is positive."""
    n = len(a)
    both, neither = float((a * b).sum()), float(((1 - a) * (1 - b)).sum())
    only_a, only_b = float(a.sum()) - both, float(b.sum()) - both
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if margins == 0:
        return 0.0
    product = both * neither - only_a * only_b
    corrected = max(product - n / 2, 0.0) if product > 0 else product
    return corrected / math.sqrt(margins)


def paired_mean(before: npt.ArrayLike, after: npt.ArrayLike, level: float = LEVEL) -> Comparison:
    """Student's paired test of per-item values, with the interval that belongs to it.

    Chosen over a sign-flip permutation test because its null is what a table claims (the *mean*
    over problems did not change, while single problems may) and because test and interval cannot
    contradict each other; bounded differences of hundreds of items are far inside its range.
    Differences without any spread, where t is undefined, get the sign-flip test's exact value, and
    of rates (0..1) the interval of `_without_spread`.

    Raises:
        ValueError: fewer than two items, or different lengths.
    """
    a, b = _pair(before, after)
    if len(a) < 2:
        raise ValueError(f"a paired test needs at least 2 items, got {len(a)}")
    d = b - a
    difference = mean_interval(d, level)
    error, df = float(d.std(ddof=1)) / math.sqrt(len(d)), len(d) - 1
    if error < 1e-12:
        pvalue = 1.0 if abs(difference.mean) < 1e-12 else 2.0 ** (1 - len(d))
        if min(a.min(), b.min()) >= 0 and max(a.max(), b.max()) <= 1:
            difference = _without_spread(difference, level)
    else:
        pvalue = t_pvalue(difference.mean / error, df)
    return Comparison(difference, pvalue, int((d > 0).sum()), int((d < 0).sum()), "paired t", df)


def _without_spread(difference: Estimate, level: float) -> Estimate:
    """The same difference of rates in each of n items does not make it certain.

    Of further items a share could behave otherwise, by Wilson's upper limit of 0 in n, each by as
    much as a difference of rates can: up to 1, down to -1.
    """
    share = wilson(0, difference.n, level).high
    low, high = (difference.mean + share * (end - difference.mean) for end in (-1.0, 1.0))
    return Estimate(difference.mean, low, high, difference.n, "wilson, no spread")


def holm(pvalues: Sequence[float]) -> list[float]:
    """Step-down adjusted p values (Holm 1979): p <= alpha after it controls the family's error."""
    order = sorted(range(len(pvalues)), key=pvalues.__getitem__)
    adjusted, highest = [0.0] * len(pvalues), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(pvalues) - rank) * pvalues[index]))
        adjusted[index] = highest
    return adjusted


def combine_seeds(
    before: npt.ArrayLike, after: npt.ArrayLike, level: float = LEVEL
) -> SeedComparison:
    """Compare two stages trained with several seeds and measured on the same items.

    Args:
        before, after: shape [seeds, items], one value a seed and item.

    `by_item` averages each item over the seeds and tests item by item: it speaks of these trained
    models on new problems. `by_item_and_seed` treats both as random and crossed (items are shared
    by the seeds): Var(mean) = (MS_seed + MS_item - MS_residual) / (seeds x items) with
    Satterthwaite's degrees of freedom, at most seeds - 1: however many the items, what is said of
    new training runs rests on so few of them.

    Raises:
        ValueError: not two arrays of the same shape [seeds, items].
    """
    a, b = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if a.ndim != 2 or a.shape != b.shape or 0 in a.shape:
        raise ValueError(f"need two arrays [seeds, items] of one shape, got {a.shape}, {b.shape}")
    d = b - a
    by_item = paired_mean(a.mean(axis=0), b.mean(axis=0), level)
    both = _crossed(d, by_item, level) if len(d) > 1 else None
    return SeedComparison(tuple(float(m) for m in d.mean(axis=1)), by_item, both)


def _crossed(d: Floats, by_item: Comparison, level: float) -> Comparison:
    seeds, items = d.shape
    mean = float(d.mean())
    of_seed, of_item = d.mean(axis=1, keepdims=True), d.mean(axis=0, keepdims=True)
    squares = (
        items * float(((of_seed - mean) ** 2).sum()) / (seeds - 1),
        seeds * float(((of_item - mean) ** 2).sum()) / (items - 1),
        float(((d - of_seed - of_item + mean) ** 2).sum()) / ((seeds - 1) * (items - 1)),
    )
    total = squares[0] + squares[1] - squares[2]
    largest = max(squares[0], squares[1])
    if largest < 1e-24:  # the same change everywhere: as sure as so few seeds can be
        return replace(by_item, pvalue=max(by_item.pvalue, 2.0 ** (1 - seeds)), df=None)
    if total > largest:
        freedom = (seeds - 1, items - 1, (seeds - 1) * (items - 1))
        df = total**2 / sum(s * s / f for s, f in zip(squares, freedom, strict=True))
    else:
        total, df = largest, float(seeds - 1 if squares[0] >= squares[1] else items - 1)
    df = min(df, seeds - 1.0)
    error = math.sqrt(total / (seeds * items))
    half = t_of(level, df) * error
    estimate = Estimate(mean, mean - half, mean + half, seeds, "crossed t")
    pvalue = t_pvalue(mean / error, df)
    return Comparison(estimate, pvalue, by_item.better, by_item.worse, "crossed t", df)


def _vector(values: npt.ArrayLike) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"need one value an item, at least one item; got shape {x.shape}")
    return x


def _pair(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Floats, Floats]:
    a, b = _vector(first), _vector(second)
    if len(a) != len(b):
        raise ValueError(f"the items do not match: {len(a)} and {len(b)}")
    return a, b
