"""`branch`: spend rollouts on alternatives to a path's tokens instead of on its prefixes.

Let p_i be p(success) after i tokens and q_i the probability of the next one. With d_i the
probability of success when another token is drawn instead, p_i = q_i p_{i+1} + (1 - q_i) d_i, so
the change at that token is (1 - q_i)(p_{i+1} - d_i). The finished path's verdict is known, and
estimates of the d_i carry it backwards (`pts.algorithm.values`). Tokens that the policy is almost
sure of cost nothing: they cannot change p by more than 1 - q_i.

Rounds: each gives a few rollouts to the blocks that narrow the intervals of undecided tokens most
per expected generated token, likely pivots far before unlikely ones (`RoundState.allocate` alone
says what is measured next). So a search that ends early has found most of what it could: best arm
first, as in thresholding bandits (Locatelli et al. 2016) and good-arm identification (Kano et al.
2019). It ends when every candidate is decided or inside the indifference margin (see
`pts.stats.decide`), when whatever is undecided is unlikely to be pivotal (`stop_below`), or when
the budget is spent. Tokens that it decides to be pivotal are its report; those that merely look so
when it ends are listed apart, as undecided.

Steps are searched by the same machinery. A step is followed with probability s, the product of its
tokens'; with D the probability of success when it is left at one of them, p before it is
s p_after + (1 - s) D, and it changes p by (1 - s)(p_after - D).

Estimates rest on the branches that this search drew and on nothing else. Their intervals know
nothing of the stopping rule; `z` is set such that they still cover 95 % when the search stops
(measured, not proved: benchmarks/results/search_tabular.md). Whoever publishes a difference
confirms it by fresh rollouts (`pts.algorithm.pairs.confirm`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pts.algorithm.paths import Branches, ScoredCompletion
from pts.algorithm.requests import SearchRoutine, request
from pts.algorithm.results import Stopped, completion_result, pivots_along
from pts.algorithm.siblings import BetaPrior, PathAnalysis, screening_budget
from pts.algorithm.tails import listed, resolved
from pts.algorithm.values import PathValues, chance, path_values, unit_change
from pts.config import SearchConfig
from pts.stats import (
    Decision,
    decide,
    smoothed_mean,
)
from pts.types import Estimate, Rollout, RolloutQuery

MIN_BRANCHES = 24
"""Branches of its own that a reported token has at least. The first looks are taken at every
candidate, so the luckiest of many report: on 60 paths without a pivotal token, 3 of 5 false reports
at z = 1.96 and both at z = 2.576 rested on 8 branches (2026-11-25)."""

EAGERNESS = 4
"""An undecided candidate counts by this power of its chance to be pivotal. On 60 completions with a
pivot (shape `reasoning`, tuning seeds) powers of 3 to 5 found about nine tenths of the pivots
within 300 rollouts, 2 found .83 and 1 .50 (2026-11-28)."""


def search_branch(
    path: ScoredCompletion,
    unforced: Sequence[Rollout],
    config: SearchConfig,
    rng: np.random.Generator,
) -> SearchRoutine[PathAnalysis]:
    """Find the pivotal tokens, or steps, of one path whose every token has π > 0.

    `unforced` are whole rollouts from the prompt (the filter's, the path itself left out). Each
    hints at what becomes of a branch where it leaves the path: since the question was kept because
    of these rollouts, they guide the allocation and the choice of siblings and enter no estimate.
    """
    pool = Branches(path, config.p_gap, rng)
    pool.record_unforced(unforced)
    budget = config.max_rollouts - screening_budget(config)
    while True:
        view = RoundState(pool, config)
        if not view.open or budget <= 0:
            pool.path = yield from listed(pool.path, pool.groups)
            return _finding(pool, view, config, max(0, budget) + screening_budget(config))
        draws = [draw for k, n in view.allocate(budget) for draw in pool.draw(k, n)]
        drawn = Counter((yield from resolved(path, draws)))
        budget -= drawn.total()
        queries = [
            RolloutQuery((*path.ids[: e.position], e.token), n, "search") for e, n in drawn.items()
        ]
        answers = yield from request(queries)
        for exit_, rollouts in zip(drawn, answers, strict=True):
            pool.record(exit_, rollouts)


class RoundState:
    """What the pool says between two rounds."""

    def __init__(self, pool: Branches, config: SearchConfig) -> None:
        self.pool, self.config = pool, config
        tallies = pool.tallies
        self.values: PathValues = path_values(
            [block.exit_prob for block in pool.blocks],
            [tally.successes for tally in tallies],
            [tally.n for tally in tallies],
            pool.path.end,
            config.z,
        )
        self.deltas: dict[int, Estimate] = {
            k: unit_change(self.values, k, block.exit_prob)
            for k, block in enumerate(pool.blocks)
            if block.candidate
        }
        self.decisions: dict[int, Decision] = {
            k: decide(delta, config.p_gap, config.indifference_margin)
            for k, delta in self.deltas.items()
        }
        few = {k for k in self.deltas if tallies[k].n < MIN_BRANCHES}
        self.short = {k for k in few if self.decisions[k] == "yes"}
        self.decisions |= dict.fromkeys(self.short, "open")
        self.chances: dict[int, float] = {
            k: chance(self.deltas[k], config.p_gap, config.z)
            for k, decision in self.decisions.items()
            if decision == "open"
        }
        self.open = {k for k, likely in self.chances.items() if likely >= config.stop_below}

    def allocate(self, budget: int) -> list[tuple[int, int]]:
        """(block, rollouts) of the next round, at most `budget` rollouts together.

        What only lacks `MIN_BRANCHES` to be reported comes first.
        """
        gains, short = self._gains(), self.short
        ranked = sorted(range(len(gains)), key=lambda k: (k not in short, -gains[k], k))
        useful = [k for k in ranked[: self.config.round_blocks] if gains[k] > 0]
        requests = []
        for k in useful or ranked[:1]:  # one at least, or the search would not end
            n = min(self.config.round_rollouts, budget)
            if n > 0:
                requests.append((k, n))
                budget -= n
        return requests

    def _gains(self) -> list[float]:
        """Expected fall of Σ c_i H_i² over open candidates i, per generated token, by block.

        c_i is the chance that i is pivotal, to the power of `EAGERNESS`. H_i is the half-width of
        Δ_i's interval, U_i + sqrt(V_i): the range that unsampled blocks leave open, and sampling
        errors. With x_k the probability that block k is left, block j enters Δ_i of an earlier
        candidate i with the weight w = x_i · ∏ (1 - x_k) · x_j (over the blocks k between them),
        and its own Δ_j with w = x_j. If it was sampled, m more rollouts shrink V_i by w² z² times
        what the variance of D_j falls by: under a Beta posterior of n + 1 pseudo-counts to
        (n + 1) / (n + 1 + m) of itself. If it was not, they take w / 2 from U_i and add the square
        of w times Wilson's half-width at s / m = 1 / 2, z² / 4 (m + z²), to V_i.
        """
        m, z2 = self.config.round_rollouts, self.config.z**2
        gains, linear, square = [], 0.0, 0.0  # Σ c w H and Σ c w² up to this block
        for k, block in enumerate(self.pool.blocks):
            stay, exit_prob, n = 1.0 - block.exit_prob, block.exit_prob, self.pool.tallies[k].n
            own = (0.0, 0.0)
            if k in self.open:
                weight = self.chances[k] ** EAGERNESS * exit_prob
                half = (self.deltas[k].high - self.deltas[k].low) / 2
                own = (weight * exit_prob, weight * half)
            w2, wh = exit_prob * exit_prob * square + own[0], exit_prob * linear + own[1]
            if n:
                gain = w2 * z2 * self._variance(k) * m / (m + n + 1)
            else:
                gain = wh - w2 * (1 + z2 / (m + z2)) / 4
            gains.append(gain / self._length(k))
            square, linear = stay * stay * square + own[0], stay * linear + own[1]
        return gains

    def _variance(self, k: int) -> float:
        """Posterior variance of D_k by its own branches, about a mean that heeds the hints too."""
        seen = self.pool.seen(k)
        mean = smoothed_mean(seen.successes, seen.n)
        return mean * (1 - mean) / (self.pool.tallies[k].n + 2)

    def _length(self, k: int) -> float:
        """Expected tokens of a branch of block k: at first what the path has left, later the
        mean."""
        block, seen = self.pool.blocks[k], self.pool.seen(k)
        rest = len(self.pool.path.ids) - (block.start + block.end) / 2
        return max(1.0, (seen.tokens + rest) / (seen.n + 1))

    def stopped(self) -> Stopped:
        if not self.deltas:
            return "no candidates"
        if self.open:
            return "budget"
        if self.chances:
            return "unlikely"
        return "indifferent" if "indifferent" in self.decisions.values() else "decided"


def _finding(
    pool: Branches, view: RoundState, config: SearchConfig, screening: int
) -> PathAnalysis:
    units = [(block.start, block.end) for block in pool.blocks]
    curve = dict(zip((0, *(end for _, end in units)), view.values.points, strict=True))
    deltas = {units[k]: delta for k, delta in view.deltas.items()}
    decided = [units[k] for k, decision in view.decisions.items() if decision == "yes"]
    pivots = pivots_along(pool.path, config, curve, deltas, decided)
    reported = [p for p in pivots if p.decided]
    undecided = [p for p in pivots if not p.decided]
    result = completion_result(pool.path, curve, reported, pool.groups, view.stopped(), undecided)
    after, left = _beliefs(pool, view.values, config.z)
    changes = {start: delta for (start, _), delta in deltas.items()}
    return PathAnalysis(pool.path, result, pool.groups, after, left, screening, changes)


def _beliefs(
    pool: Branches, chained: PathValues, z: float
) -> tuple[list[BetaPrior], list[BetaPrior]]:
    """What the chain says of p after each token of the path, and of p when it is left there."""
    after, left = [], []
    for k, block in enumerate(pool.blocks):
        end, out = chained.points[k + 1], chained.exits[k]
        sd = (end.high - end.low) / (2 * z)
        stay = np.exp(np.log1p(-pool.path.exit_prob[block.start : block.end])[::-1].cumsum()[::-1])
        for s in (*stay[1:], 1.0):  # the rest of the block, once its next token is passed
            after.append(BetaPrior.of(float(s * end.mean + (1 - s) * out.mean), sd))
        seen = pool.seen(k)
        mean = smoothed_mean(seen.successes, seen.n) if seen.n else out.mean
        left += [BetaPrior(mean)] * (block.end - block.start)
    return after, left
