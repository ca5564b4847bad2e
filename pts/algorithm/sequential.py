"""The test of a proposed pair: a group-sequential comparison of two proportions, exact.

    test = sequential_test(128, 0.15)
    for look in test.looks:      # draw until both sides have look.n rollouts
        if look.decision[passed_chosen, passed_rejected] != GO_ON:
            break
    test.pvalue(look.n, passed_chosen, passed_rejected)

H0: p(chosen) - p(rejected) <= margin. Both sides grow together, look by look (`look_sizes`). At
each look the score statistic of Farrington & Manning (1990) decides:

- *futile*, if it lies below a line that rises from FUTILE[0] to FUTILE[1] with the share of
  rollouts drawn: what is left would hardly help. The p-value is 1.
- *confirmed*, if the p-value is EARLY_LEVEL · √(share drawn) at most (a spending function in the
  sense of Lan & DeMets 1983, here a bound of the p-value itself). A p-value near such a bound has
  to do under Benjamini & Hochberg's step-up rule: it does wherever 3 % of a family are selected
  at a false discovery rate of 0.05 (0.05 · 0.03 = EARLY_LEVEL). A larger level would pay less for
  each pair and lose pairs where few are real; a smaller one pays more.
- at the last look, whatever it shows.

The p-value orders outcomes by stages (Tsiatis, Rosner & Mehta 1984; Jennison & Turnbull 2000,
section 8.4): a confirmation at an earlier look is more extreme than anything later, and within a
look the larger statistic is. It is the largest probability, over all p(rejected) with p(chosen) =
p(rejected) + margin, of an outcome at least as extreme, from the exact distribution of the counts:
no normal approximation is left. As confirmation and futility are decided by a statistic that rises
with the chosen side's passes and falls with the other's, more of the former and fewer of the latter
can only confirm sooner (couple the two runs rollout by rollout). So the largest probability over
the whole null hypothesis lies on its edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pts.errors import DataError
from pts.stats import Floats, constrained_mle, score_statistic
from pts.types import Estimate

EARLY_LEVEL = 0.0015
"""Probability at most that a true null is confirmed before the last look."""

FUTILE = (-0.8, 1.6)
"""The statistic below which a pair is given up: at no rollouts, and at all of them."""

GRID = 64
"""Points of p(rejected) at which the null's probabilities are computed …"""
GRID_ERROR = 1.005
"""… and the factor by which they may be larger between two points (0.4 % at 128 rollouts)."""

BISECTIONS = 15
"""Halvings of [-1, 1] that find the ends of an interval …"""
PRECISION = 1e-4
"""… and how near they come."""

CONFIRMED, GO_ON, FUTILE_STOP = 1, 0, -1
"""What a look decides."""


@dataclass(frozen=True, eq=False)
class Look:
    """One look of a test: `n` rollouts of each side, tables by (passed chosen, passed rejected)."""

    n: int
    statistic: Floats
    """[n + 1, n + 1], rises along the first axis and falls along the second."""
    decision: npt.NDArray[np.int8]
    """[n + 1, n + 1], CONFIRMED, GO_ON or FUTILE_STOP."""
    pvalues: Floats
    """[n + 1, n + 1], of the outcomes that end the test; 1 where it is futile."""


@dataclass(frozen=True, eq=False)
class SequentialTest:
    """A design: what each look decides, and the p-value of every end."""

    looks: tuple[Look, ...]

    def pvalue(self, n: int, chosen: int, rejected: int) -> float:
        """Of a test that ended at `n` rollouts of each side, with so many passed.

        Raises DataError for counts at which it does not end.
        """
        return float(self.end(n, chosen, rejected).pvalues[chosen, rejected])

    def end(self, n: int, chosen: int, rejected: int) -> Look:
        """The look at which the test ends so. Raises DataError for counts that do not end it."""
        for look in self.looks:
            if look.n == n and look.decision[chosen, rejected] != GO_ON:
                return look
        raise DataError(
            f"{chosen} and {rejected} passed of {n} rollouts a side do not end this test (looks at "
            f"{', '.join(str(look.n) for look in self.looks)}): the counts come from another "
            "version or other settings; search again"
        )


def look_sizes(most: int) -> tuple[int, ...]:
    """Rollouts of each side at the looks of a test of at most `most`.

    8, 12, 16, 20, 24, then in steps that double with the size (32, 40, 48, 64, 80, 96, 128, …):
    fatal forks are settled after 8 to 16, and the others do not need every step.
    """
    sizes, n = [], 8
    while n < most:
        sizes.append(n)
        n += 4 if n < 24 else 8 * 2 ** ((n // 24).bit_length() - 1)
    return (*sizes, most)


@lru_cache(maxsize=32)
def sequential_test(most: int, margin: float) -> SequentialTest:
    """The test of gap <= `margin` (0 <= margin < 1) with at most `most` rollouts of each side."""
    rejected = _null_points(margin)
    sizes, looks = look_sizes(most), list[Look]()
    reached = np.ones((GRID, 1, 1))
    before = np.zeros(GRID)
    for n in sizes:
        reached = _drawn(reached, n, rejected + margin, rejected)
        share, last = n / most, n == most
        statistic = _statistic(n, margin)
        futile = statistic < FUTILE[0] + (FUTILE[1] - FUTILE[0]) * share
        tails = _tails(reached, before, statistic)
        early = (tails <= EARLY_LEVEL * share**0.5) & ~futile
        stops = np.where(early, CONFIRMED, np.where(futile, FUTILE_STOP, GO_ON))
        decision = np.full_like(stops, CONFIRMED) if last else stops
        pvalues = np.where(decision == FUTILE_STOP, 1.0, tails)
        looks.append(Look(n, statistic, decision.astype(np.int8), pvalues))
        before = before + _mass(reached, decision == CONFIRMED)
        reached = reached * (decision == GO_ON)
    return SequentialTest(tuple(looks))


@lru_cache(maxsize=32)
def retested(test: SequentialTest, margin: float) -> SequentialTest:
    """The test with the p-values of gap <= `margin` instead; where it stops stays as it was."""
    rejected = _null_points(margin)
    looks, before = [], np.zeros(GRID)
    for look, reached in _walk(test, rejected + margin, rejected):
        tails = _tails(reached, before, look.statistic)
        pvalues = np.where(look.decision == FUTILE_STOP, 1.0, tails)
        looks.append(Look(look.n, look.statistic, look.decision, pvalues))
        before = before + _mass(reached, look.decision == CONFIRMED)
    return SequentialTest(tuple(looks))


def operating_characteristics(
    test: SequentialTest, chosen: Sequence[float], rejected: Sequence[float], level: float
) -> tuple[Floats, Floats]:
    """Exactly, for K pairs of true p: P(p-value <= level), and expected rollouts of each side.

    Both have the shape [K].
    """
    power, rollouts = np.zeros(len(chosen)), np.zeros(len(chosen))
    for look, reached in _walk(test, np.asarray(chosen), np.asarray(rejected)):
        ends = look.decision != GO_ON
        rollouts += look.n * _mass(reached, ends)
        power += _mass(reached, ends & (look.pvalues <= level))
    return power, rollouts


@lru_cache(maxsize=65536)
def gap_interval(
    test: SequentialTest, n: int, chosen: int, rejected: int, level: float
) -> Estimate:
    """p(chosen) - p(rejected) after a test that ended at `n` rollouts a side, so many passed.

    Its ends are ordered as in the p-value, futile ones below all others, the earliest lowest
    (Tsiatis, Rosner & Mehta 1984). The interval holds the gaps under which neither this end or a
    higher one nor this end or a lower one is rarer than (1 - level) / 2. The estimate is
    median-unbiased: a gap under which higher and lower ends are equally likely, half of this end
    counted to each. A gap alone does not say both p: they are the likeliest with that gap.

    Raises DataError for counts that do not end the test.
    """
    test.end(n, chosen, rejected)
    tail = (1 - level) / 2
    wanted = np.array([tail, 0.5, 1 - tail])
    low, high = np.full(3, -1.0), np.full(3, 1.0)
    for _ in range(BISECTIONS):
        gap = (low + high) / 2
        p, q = constrained_mle(chosen, n, rejected, n, gap)
        above, at = _above(test, n, chosen, rejected, p, q)
        short = above + at * np.array([1.0, 0.5, 0.0]) < wanted
        low, high = np.where(short, gap, low), np.where(short, high, gap)
    bounds = (low + high) / 2
    lower, middle, upper = (
        float(end if abs(end - bound) < PRECISION else bound)
        for end, bound in zip((-1.0, np.sign(bounds[1]), 1.0), bounds, strict=True)
    )
    return Estimate(middle, lower, upper, 2 * n, "group-sequential")


def _above(
    test: SequentialTest, n: int, chosen: int, rejected: int, p: Floats, q: Floats
) -> tuple[Floats, Floats]:
    """P(an end higher than this one) and P(this one, or one of equal rank), for K pairs of p."""
    confirmed, futile = np.zeros(len(p)), np.zeros(len(p))
    for look, reached in _walk(test, p, q):
        if look.n == n:
            break
        confirmed += _mass(reached, look.decision == CONFIRMED)
        futile += _mass(reached, look.decision == FUTILE_STOP)
    same = look.decision == look.decision[chosen, rejected]
    value = look.statistic[chosen, rejected]
    at = _mass(reached, same & (look.statistic == value))
    if look.decision[chosen, rejected] == CONFIRMED:
        return confirmed + _mass(reached, same & (look.statistic > value)), at
    lower = futile + _mass(reached, same & (look.statistic < value))
    return 1 - lower - at, at


def _walk(test: SequentialTest, chosen: Floats, rejected: Floats) -> Iterator[tuple[Look, Floats]]:
    """Each look with P(it is reached with these counts), shape [K, n + 1, n + 1]."""
    reached = np.ones((len(chosen), 1, 1))
    for look in test.looks:
        reached = _drawn(reached, look.n, chosen, rejected)
        yield look, reached
        reached = reached * (look.decision == GO_ON)


def _null_points(margin: float) -> Floats:
    """p(rejected) in [0, 1 - margin], dense at the ends, where probabilities change fastest."""
    return (1 - np.cos(np.linspace(0, np.pi, GRID))) / 2 * (1 - margin)


def _statistic(n: int, margin: float) -> Floats:
    """The score statistic of all counts; rounded, so that equal ones are equal everywhere."""
    passed = np.arange(n + 1)
    z = np.round(score_statistic(passed[:, None], n, passed[None, :], n, margin), 9)
    # It is monotone but for rounding; the proof in the module's docstring needs it to be.
    z = np.maximum.accumulate(z, axis=0)
    return np.asarray(np.maximum.accumulate(z[:, ::-1], axis=1)[:, ::-1])


def _tails(reached: Floats, before: Floats, statistic: Floats) -> Floats:
    """P-value of every count of a look: confirmed `before`, or here with so large a statistic."""
    flat = statistic.ravel()
    order = np.argsort(-flat, kind="stable")
    sums = np.cumsum(reached.reshape(len(reached), -1)[:, order], axis=1) + before[:, None]
    worst = np.minimum(1.0, GRID_ERROR * sums.max(axis=0))
    equal = np.searchsorted(-flat[order], -flat[order], side="right") - 1
    tails = np.empty_like(flat)
    tails[order] = worst[equal]
    return tails.reshape(statistic.shape)


def _mass(reached: Floats, where: npt.NDArray[np.bool_]) -> Floats:
    return np.asarray((reached * where).sum(axis=(1, 2)))


def _drawn(reached: Floats, n: int, chosen: Floats, rejected: Floats) -> Floats:
    """The distribution of the counts after both sides have grown to `n` rollouts."""
    have = reached.shape[1] - 1
    grown = np.matmul(_added(have, n, chosen).transpose(0, 2, 1), reached)
    return np.asarray(np.matmul(grown, _added(have, n, rejected)))


def _added(have: int, n: int, p: Floats) -> Floats:
    """P(from i passed of `have` to j passed of `n`), shape [K, have + 1, n + 1]."""
    more = binomial_probs(n - have, p)
    moves, start = np.zeros((len(p), have + 1, n + 1)), np.arange(have + 1)
    for passed in range(n - have + 1):
        moves[:, start, start + passed] = more[:, passed, None]
    return moves


def binomial_probs(n: int, p: Floats) -> Floats:
    """P(k of n pass), k = 0 … n, for K chances: shape [K, n + 1]."""
    from scipy.special import gammaln, xlog1py, xlogy

    k = np.arange(n + 1)
    ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return np.asarray(np.exp(ways + xlogy(k, p[:, None]) + xlog1py(n - k, -p[:, None])))
