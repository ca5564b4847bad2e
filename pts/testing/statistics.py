"""Do sampled tokens follow given rows? Tests with a stated error, and a second look.

`SUSPICION` is the level of one test. A test that falls below it is made again with fresh draws,
and only what fails both times is reported, so a right engine is accused by one test with
probability SUSPICION squared. That needs the tail of each test to be right down to 1e-3 only,
where the chi-square approximation holds once every cell expects `MIN_EXPECTED` draws
(`pts.stats.chi_square`).

Tests along whole rollouts use the probability integral transform: with F the cumulative
distribution of a row, most likely token first, u = F(before the token) + v · π(token), v uniform,
is uniform and independent from step to step exactly if every token was drawn from its row
(Rosenblatt 1952; randomised for discrete distributions as in Smith 1985).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from pts.stats import MIN_EXPECTED, Floats, Occurrences, chi_square
from pts.types import Ids, TokenDistribution

SUSPICION = 1e-3
"""A test with a smaller p-value is repeated with fresh draws."""

FALSE_ALARM = SUSPICION**2
"""Probability that one test of a right engine fails both times."""

BINS = 8
SURE = 0.98
"""Steps whose likeliest token has more than this say nothing about a sampler."""


def tally(row: TokenDistribution, tokens: Sequence[int]) -> tuple[Occurrences, list[int]]:
    """How often each token of a row occurs, and the occurrences of tokens outside of it."""
    left = Counter(tokens)
    counts = [
        left.pop(int(token), 0) if prob > 0 else 0
        for token, prob in zip(row.ids, row.probs, strict=True)
    ]
    return np.asarray(counts, np.int64), list(left.elements())


def likeliest_but(row: TokenDistribution, excluded: Collection[int]) -> int | None:
    """The most likely token apart from some; None when no other is possible."""
    allowed = [k for k, token in enumerate(row.ids) if token not in excluded and row.probs[k] > 0]
    return int(row.ids[max(allowed, key=lambda k: row.probs[k])]) if allowed else None


def kept(row: TokenDistribution, which: npt.NDArray[np.bool_]) -> TokenDistribution:
    """The row with some of its tokens and their probabilities renormalised."""
    probs = row.probs[which]
    return TokenDistribution(row.ids[which], probs / probs.sum())


def without(row: TokenDistribution, token: int) -> TokenDistribution:
    """The row with one token removed and the rest renormalised: truncated first, removed second."""
    return kept(row, row.ids != token)


def pit(rows: Sequence[TokenDistribution], tokens: Ids, rng: np.random.Generator) -> Floats:
    """u of each step of a rollout that was in doubt (likeliest token at most `SURE`).

    Which steps count is read from rows alone, so the u of those that do stay uniform. Tokens
    outside their row are left out; they are findings of their own.
    """
    found = []
    for row, token in zip(rows, tokens, strict=True):
        at = np.flatnonzero(row.ids == token)
        if at.size and row.probs.max() <= SURE:
            k = int(at[0])
            found.append(row.probs[:k].sum() + rng.random() * row.probs[k])
    return np.asarray(found, dtype=np.float64)


def uniformity(u: Floats) -> float:
    """p-value that u are uniform: their mean and a chi-square test in `BINS` bins, together.

    A token drawn from another row than its own is less likely under its own on average, which
    raises the mean even where the errors of many rows cancel in the bins. Bonferroni over both.
    """
    bins = min(BINS, int(len(u) / MIN_EXPECTED))
    if bins < 2:
        return 1.0
    counts = np.bincount(np.minimum((u * bins).astype(np.int64), bins - 1), minlength=bins)
    mean = float(2 * ndtr(-abs(u.mean() - 0.5) * math.sqrt(12 * len(u))))
    return min(1.0, 2 * min(mean, chi_square(counts, np.ones(bins))))


def serial(rollouts: Sequence[Floats]) -> float:
    """Two-sided p-value that the u of neighbouring steps of a rollout are uncorrelated.

    Under independence the sum of 12 (u_i − ½)(u_{i+1} − ½) over n pairs has mean 0 and
    variance n.
    """
    products = [12 * (u[1:] - 0.5) * (u[:-1] - 0.5) for u in rollouts if len(u) > 1]
    n = sum(map(len, products))
    if n < 30:
        return 1.0
    return float(2 * ndtr(-abs(sum(float(p.sum()) for p in products)) / math.sqrt(n)))


def distance(a: TokenDistribution, b: TokenDistribution) -> float:
    """Total variation distance of two rows."""
    _, place = np.unique(np.concatenate([a.ids, b.ids]), return_inverse=True)
    change = np.bincount(place, np.concatenate([a.probs, -b.probs]))
    return float(np.abs(change).sum() / 2)
