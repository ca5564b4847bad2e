"""p(success) along a completion, carried backwards from its verdict by the branches drawn along
it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pts.stats import Z95, exact, wilson_bounds
from pts.types import Estimate


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
    walk = BackwardPass(end)
    for k in reversed(range(len(exit_prob))):
        walk.step(exit_prob[k], successes[k], trials[k], z)
    return walk.result()


class BackwardPass:
    """State of the backward recursion: the estimate at the current boundary."""

    def __init__(self, end: float) -> None:
        self.mean = self.worst = self.best = self.end = end
        self.below = self.above = 0.0  # squared half-widths
        self.stay = 1.0
        self.n = 0
        self.points = [exact(end)]
        self.ranges = [(end, end)]
        self.exits: list[Estimate] = []

    def step(self, exit_prob: float, successes: int, n: int, z: float) -> None:
        stay = 1.0 - exit_prob
        if n:
            d, (low, high) = successes / n, wilson_bounds(successes, n, z)
            worst, best = d, d
        else:
            d, low, high = self.mean, 0.0, 1.0
            worst, best = 0.0, 1.0
        self.mean = stay * self.mean + exit_prob * d
        self.worst = stay * self.worst + exit_prob * worst
        self.best = stay * self.best + exit_prob * best
        self.below = stay * stay * self.below + (exit_prob * (worst - low)) ** 2
        self.above = stay * stay * self.above + (exit_prob * (high - best)) ** 2
        self.stay *= stay
        self.n += n
        self.exits.append(Estimate(d, low, high, n, "wilson" if n else "vacuous"))
        self._add_point()

    def _add_point(self) -> None:
        floor = self.stay * self.end
        ceiling = floor + 1.0 - self.stay
        worst = min(max(floor, self.worst), self.mean)
        best = max(min(ceiling, self.best), self.mean)
        low = max(min(floor, worst), worst - math.sqrt(self.below))
        high = min(max(ceiling, best), best + math.sqrt(self.above))
        self.points.append(Estimate(self.mean, low, high, self.n, "chain"))
        self.ranges.append((worst, best))

    def result(self) -> PathValues:
        return PathValues(
            tuple(reversed(self.points)),
            tuple(reversed(self.ranges)),
            tuple(reversed(self.exits)),
        )


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
