"""Arms over several training seeds: means with intervals, and differences paired twice.

    mean_over_seeds([rates of seed 0, rates of seed 1, ...])
    compare_arms(before, after, margin=0.01)        one array a seed in both, item by item

A difference is paired by item inside every seed, which speaks of that seed's two models on new
problems, and then by seed, which speaks of new training runs: Student's interval of the seeds'
differences with seeds - 1 degrees of freedom. Where every seed was measured on problems of its own,
that interval covers new problems as well, and its standard error is never below what the problems
inside the seeds explain: of a few seeds that happen to agree no more is known (the modified
Knapp-Hartung interval of Roever, Knapp and Friede 2015, BMC Med. Res. Methodol. 15:99). Where all
seeds share theirs, seeds and problems are crossed (`combine_seeds` in
`align.evaluation.statistics`). Not covered: seeds that share some problems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from align.evaluation.statistics import (
    LEVEL,
    Comparison,
    Floats,
    combine_seeds,
    mean_interval,
    paired_binary,
    paired_mean,
    rate_interval,
    t_of,
    t_pvalue,
)
from pts.types import Estimate

TOST_LEVEL = 0.90
"""An interval of this level inside the margin is two one-sided tests at 0.05 (Schuirmann 1987)."""


@dataclass(frozen=True, slots=True)
class SeedContrast:
    """One arm minus another."""

    per_seed: tuple[Comparison, ...]
    """Paired by item: each seed's two models on new problems."""
    over_seeds: Comparison | None
    """Paired by seed: new training runs; None for a single seed."""
    equivalent: bool | None
    """Whether the arms differ by less than the margin, at 0.05; None without margin or seeds."""

    @property
    def difference(self) -> Estimate:
        """The difference with the widest claim that these seeds allow."""
        return (self.over_seeds or self.per_seed[0]).difference


def mean_over_seeds(values: Sequence[Floats]) -> Estimate:
    """Mean of the seeds' mean rates with Student's interval; of one seed, its items' interval."""
    if len(values) == 1:
        return rate_interval(values[0])
    return mean_interval([float(rates.mean()) for rates in values])


def compare_arms(
    before: Sequence[Floats], after: Sequence[Floats], margin: float = 0.0, shared: bool = False
) -> SeedContrast:
    """Compare two arms, seed by seed and item by item.

    Args:
        before, after: one array [items] a seed, in the same order of seeds and items.
        margin: differences below it are called equivalent; 0 asks nothing of the kind.
        shared: all seeds were measured on the same items, in the same order.

    Raises:
        ValueError: different numbers of seeds or items, or fewer than two items.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"got {len(before)} and {len(after)} seeds; need the same seeds of both")
    binary = all(np.isin(rates, (0, 1)).all() for rates in (*before, *after))
    paired = paired_binary if binary else paired_mean
    per_seed = tuple(paired(a, b) for a, b in zip(before, after, strict=True))
    over_seeds = _over_seeds(before, after, shared, LEVEL)
    narrow = _over_seeds(before, after, shared, TOST_LEVEL) if margin else None
    equivalent = None
    if narrow is not None:
        equivalent = -margin < narrow.difference.low and narrow.difference.high < margin
    return SeedContrast(per_seed, over_seeds, equivalent)


def _over_seeds(
    before: Sequence[Floats], after: Sequence[Floats], shared: bool, level: float
) -> Comparison | None:
    if len(before) == 1:
        return None
    if shared:
        return combine_seeds(np.array(before), np.array(after), level).by_item_and_seed
    first, second = ([float(rates.mean()) for rates in arm] for arm in (before, after))
    return _at_least_by_item(paired_mean(first, second, level), before, after, level)


def _at_least_by_item(
    found: Comparison, before: Sequence[Floats], after: Sequence[Floats], level: float
) -> Comparison:
    """The comparison of the seeds' means, with their items' standard error where that is more."""
    inside = [float((b - a).var(ddof=1)) / len(a) for a, b in zip(before, after, strict=True)]
    spread = [float((b - a).mean()) for a, b in zip(before, after, strict=True)]
    floor = math.sqrt(sum(inside)) / len(inside)
    if floor <= float(np.std(spread, ddof=1)) / math.sqrt(len(spread)):
        return found
    mean, df = found.difference.mean, len(inside) - 1
    half = t_of(level, df) * floor
    difference = Estimate(mean, mean - half, mean + half, len(inside), "t, error by item")
    return replace(found, difference=difference, pvalue=t_pvalue(mean / floor, df))
