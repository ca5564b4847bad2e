"""What the searches of `search_tabular.py` stand beside: every token measured, and an oracle.

`every_token` is the published rule of cliff tokens (arXiv 2606.25524): n = 64 rollouts after every
token of a completion, and a cliff is where the share of passes changes by more than 0.1 + 1.645
standard errors (one-sided two-proportion z, unpooled). Rises are reported as well as falls, since
the other searches report both. The rollouts of a prefix are drawn from a binomial with its known
p(success), which is how they are distributed, and no tokens are counted.

`oracle` is told which tokens are pivotal and the true d of every block. It spends its rollouts for
these tokens alone, on the blocks that narrow their intervals most, and reads the outcomes once. The
estimate, its interval and the rule of reporting are those of `branch`: what it finds within a
budget bounds what a search that has to look for the pivotal tokens can find by these intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pts.algorithm.branch import MIN_BRANCHES
from pts.algorithm.paths import Block, ScoredCompletion, split_blocks
from pts.algorithm.values import path_values, unit_change
from pts.config import SearchConfig
from pts.stats import Floats, decide, wilson_bounds

CLIFF_ROLLOUTS, CLIFF_Z = 64, 1.645
STEP = 4
"""Rollouts that the oracle gives at once."""
NEGLIGIBLE = 1e-3
"""A block that moves Δ by less than this gets none of them."""


def every_token(curve: Floats, gap: float, rng: np.random.Generator) -> tuple[list[int], int]:
    """Positions whose change exceeds gap + 1.645 standard errors, and the rollouts spent.

    The verdict of the finished completion is known, so the last token costs no rollouts.
    """
    n = CLIFF_ROLLOUTS
    share = rng.binomial(n, np.clip(curve, 0, 1)) / n
    share[-1] = curve[-1]
    change = np.diff(share)
    spread = share * (1 - share) / n
    error = np.sqrt(spread[1:] + spread[:-1])
    found = np.flatnonzero(np.abs(change) > gap + CLIFF_Z * error)
    return found.tolist(), n * (len(curve) - 1)


def oracle(
    path: ScoredCompletion,
    curve: Floats,
    sought: Sequence[int],
    budget: int,
    config: SearchConfig,
    rng: np.random.Generator,
) -> list[int]:
    """The sought positions that `budget` rollouts, in equal parts for each of them, decide."""
    blocks = split_blocks(path.exit_prob, config.p_gap)
    left = [_left(curve, block) for block in blocks]
    found = []
    for position in sought:
        k = next(k for k, block in enumerate(blocks) if block.start == position)
        trials = _allocated(blocks, left, k, budget // len(sought), config.z)
        values = path_values(
            [block.exit_prob for block in blocks],
            [int(rng.binomial(n, d)) for n, d in zip(trials, left, strict=True)],
            trials,
            path.end,
            config.z,
        )
        delta = unit_change(values, k, blocks[k].exit_prob)
        yes = decide(delta, config.p_gap, config.indifference_margin) == "yes"
        if yes and trials[k] >= MIN_BRANCHES:
            found.append(position)
    return found


def _left(curve: Floats, block: Block) -> float:
    """p(success) once a block is left, from p before and after it."""
    before, after, out = curve[block.start], curve[block.end], block.exit_prob
    if out < 1e-9:
        return float(after)
    return float(np.clip((before - (1 - out) * after) / out, 0, 1))


def _allocated(
    blocks: Sequence[Block], left: Sequence[float], k: int, budget: int, z: float
) -> list[int]:
    """Rollouts by block: `MIN_BRANCHES` for k itself, then always where Δ_k's interval falls most.

    Block j enters Δ_k with x_k ∏ (1 - x) x_j over the blocks between them, block k with x_k.
    """
    weights, stay = {k: blocks[k].exit_prob}, blocks[k].exit_prob
    for j in range(k + 1, len(blocks)):
        weights[j] = stay * blocks[j].exit_prob
        stay *= 1 - blocks[j].exit_prob
    weights = {j: w for j, w in weights.items() if w > NEGLIGIBLE}
    trials = [0] * len(blocks)
    trials[k] = min(MIN_BRANCHES, budget)

    def half(j: int, n: int) -> float:
        low, high = wilson_bounds(left[j] * n, n, z) if n else (0.0, 1.0)
        return weights[j] * (high - low) / 2

    halves = {j: half(j, trials[j]) for j in weights}
    while sum(trials) + STEP <= budget:
        unseen = sum(h for j, h in halves.items() if not trials[j])
        error2 = sum(h * h for j, h in halves.items() if trials[j])
        widths = {}
        for j, h in halves.items():
            more = half(j, trials[j] + STEP) ** 2
            rest, still = (error2 - h * h, unseen) if trials[j] else (error2, unseen - h)
            widths[j] = float(np.sqrt(max(rest, 0.0) + more)) + still
        best = min(widths, key=lambda j: widths[j])
        trials[best] += STEP
        halves[best] = half(best, trials[best])
    return trials
