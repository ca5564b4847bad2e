"""p(success) along a completion, carried backwards from its verdict by the branches drawn along
it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pts.stats import Z95, exact, wilson
from pts.types import Estimate

SQRT2 = math.sqrt(2.0)


@dataclass(frozen=True, slots=True)
class PathValues:
    """p(success) at every block boundary of a completion, and D of every block.

    `points` has B + 1 entries (the last one is the exact verdict), the others B. `ranges[k]` holds
    what the mean of p_k would be with the worst and the best D of all unsampled blocks; the rest of
    its interval is sampling error.
    """

    points: tuple[Estimate, ...]
    ranges: tuple[tuple[float, float], ...]
    exits: tuple[Estimate, ...]


def path_values(
    exit_prob: Sequence[float],
    successes: Sequence[int],
    trials: Sequence[int],
    end: float,
    z: float = Z95,
) -> PathValues:
    """Carry the verdict `end` backwards through the blocks of a completion.

    Block k is left with probability x_k = `exit_prob[k]` and then passes with probability D_k, so
    `p_k = (1 - x_k) p_{k+1} + x_k D_k`. `successes` and `trials` count its branches.

    A sampled block has its raw proportion and Wilson's bounds of D_k. (Posterior means would pull
    every D_k towards 1/2; along a path of many blocks that bias adds up, where half-widths only add
    in quadrature.) The mean takes an unsampled block to change nothing: D_k = p_{k+1}. The interval
    does not: its lower bound has D_k = 0 in every unsampled block, its upper one D_k = 1, for what
    nobody looked at may all lie on one side. To these bounds come the weighted half-widths of the
    sampled blocks, in quadrature, as their pools are independent (MOVER). Every p_k stays inside
    what the end of the path alone proves: s p_T <= p_k <= s p_T + 1 - s, with s the probability of
    the rest of the path.
    """
    mean = worst = best = end
    below = above = 0.0  # squared half-widths
    stayed, drawn = 1.0, 0  # the probability of the rest of the path, and its branches
    points, ranges, exits = [exact(end)], [(end, end)], list[Estimate]()
    for x, s, n in zip(exit_prob[::-1], successes[::-1], trials[::-1], strict=True):
        stay = 1.0 - x
        out = wilson(s, n, z) if n else Estimate(mean, 0.0, 1.0, 0, "vacuous")
        least, most = (out.mean, out.mean) if n else (0.0, 1.0)
        mean = stay * mean + x * out.mean
        worst = stay * worst + x * least
        best = stay * best + x * most
        below = stay * stay * below + (x * (least - out.low)) ** 2
        above = stay * stay * above + (x * (out.high - most)) ** 2
        stayed *= stay
        drawn += n
        floor, ceiling = stayed * end, stayed * end + 1.0 - stayed
        lowest, highest = min(max(floor, worst), mean), max(min(ceiling, best), mean)
        low = max(min(floor, lowest), lowest - math.sqrt(below))
        high = min(max(ceiling, highest), highest + math.sqrt(above))
        points.append(Estimate(mean, low, high, drawn, "chain"))
        ranges.append((lowest, highest))
        exits.append(out)
    return PathValues(tuple(points[::-1]), tuple(ranges[::-1]), tuple(exits[::-1]))


def unit_change(chained: PathValues, k: int, exit_prob: float) -> Estimate:
    """Δ of a one-token block: `exit_prob (p_{k+1} - D_k)`, never beyond what 0 <= D_k <= 1 allows.

    As in `path_values`, the range that unsampled blocks leave open is added to the sampling errors
    of p_{k+1} and D_k, which are added to each other in quadrature.
    """
    after, out = chained.points[k + 1], chained.exits[k]
    worst, best = chained.ranges[k + 1]
    least, most = -exit_prob * (1.0 - after.low), exit_prob * after.high
    if out.n == 0:
        return Estimate(0.0, least, most, after.n, "chain")
    mean = exit_prob * (after.mean - out.mean)
    below = math.hypot(worst - after.low, out.high - out.mean)
    above = math.hypot(after.high - best, out.mean - out.low)
    low = max(least, exit_prob * (worst - out.mean - below))
    high = min(most, exit_prob * (best - out.mean + above))
    return Estimate(mean, min(low, mean), max(high, mean), after.n + out.n, "chain")


def chance(delta: Estimate, p_gap: float, z: float) -> float:
    """How likely |Δ| >= p_gap is, Δ taken to be normal about the middle of its interval.

    Its standard deviation is the half-width over z, so that what nobody looked at counts as
    uncertain too. For choosing what is measured next; no claim rests on it. At least 1e-12: an
    undecided candidate is never given up.
    """
    middle, sd = (delta.low + delta.high) / 2, (delta.high - delta.low) / (2 * z)
    if sd == 0.0:
        return max(float(abs(middle) >= p_gap), 1e-12)
    tails = math.erfc((p_gap - middle) / (sd * SQRT2)) + math.erfc((p_gap + middle) / (sd * SQRT2))
    return max(tails / 2, 1e-12)
