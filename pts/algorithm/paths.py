"""Branches along one completion: where it can be left, what was drawn there, what became of it.

A completion is a row of units: its tokens, or its steps. It is cut into blocks. A unit that the
policy avoids with probability >= p_gap is a block of its own (only such a unit can move p(success)
by p_gap); all units between two of them form one block. Leaving a block means to follow it up to
some position and then to draw a sibling of the path's token from the truncated, renormalised row:
truncated first, the token removed second. All rollouts of one block are draws from one
distribution, hence one binomial.

Pure bookkeeping and seeded drawing; who is sampled next is decided in `pts.algorithm.branch`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pts.types import Ids, Rollout, TokenDistribution, Verdict

GOLDEN = (5**0.5 - 1) / 2
"""Step of the additive sequence that spreads the draws of a block evenly."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoredCompletion:
    """A finished completion with its rows. `exit_prob[i]` is 1 - q_i, summed over the siblings.

    Rows may be heads; the completion's own tokens are always listed.

    `ends` are the places where its units end, ascending up to its length: by default every token
    is a unit.
    """

    ids: Ids
    verdict: Verdict
    rows: tuple[TokenDistribution, ...]
    ends: tuple[int, ...] = ()
    probs: Floats = field(init=False)
    exit_prob: Floats = field(init=False)

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.ids):
            raise ValueError(f"{len(self.ids)} tokens need as many rows, got {len(self.rows)}")
        ends = self.ends or tuple(range(1, len(self.ids) + 1))
        if ends[-1:] != (len(self.ids),) or any(a >= b for a, b in pairwise((0, *ends))):
            raise ValueError(f"units must end in order, up to {len(self.ids)}, got {ends}")
        object.__setattr__(self, "ends", ends)
        pairs = list(zip(self.ids, self.rows, strict=True))
        others = [float(row.probs[row.ids != token].sum()) + row.tail for token, row in pairs]
        own = [row.prob(token) for token, row in pairs]
        total = np.asarray(own) + np.asarray(others)
        object.__setattr__(self, "probs", np.asarray(own) / total)
        object.__setattr__(self, "exit_prob", np.asarray(others) / total)

    def cuts(self, start: int, end: int) -> tuple[int, ...]:
        """Where units end strictly between two places; nothing within one unit."""
        return self.ends[bisect_right(self.ends, start) : bisect_left(self.ends, end)]

    @property
    def end(self) -> float:
        """p(success) of the finished completion, 0 or 1."""
        return float(self.verdict is Verdict.PASS)

    @property
    def possible(self) -> bool:
        """Whether the policy can sample this completion at all."""
        return bool(np.all(self.probs > 0))


@dataclass(frozen=True, slots=True)
class Block:
    """Positions `start <= i < end`; left with probability `exit_prob`, x in formulas."""

    start: int
    end: int
    exit_prob: float
    candidate: bool


def split_blocks(exit_prob: Floats, p_gap: float, ends: Sequence[int] = ()) -> list[Block]:
    """Cut positions into candidate blocks of one unit (left with >= p_gap) and the blocks between.

    `ends` are those of the units, every position by default.
    """
    units = pairwise((0, *(ends or range(1, len(exit_prob) + 1))))
    candidates = {(a, b) for a, b in units if left_within(exit_prob, a, b) >= p_gap}
    edges = sorted({0, len(exit_prob)}.union(*candidates))
    return [
        Block(start, end, left_within(exit_prob, start, end), (start, end) in candidates)
        for start, end in pairwise(edges)
    ]


def left_within(exit_prob: Floats, start: int, end: int) -> float:
    """P(the positions start <= i < end are not all followed)."""
    if end - start == 1:
        return float(exit_prob[start])
    return float(-np.expm1(np.log1p(-exit_prob[start:end]).sum()))


def exit_weights(exit_prob: Floats) -> Floats:
    """P(the block is left at position j | it is left): ∏_{k<j} (1 - x_k) · x_j, normed."""
    reach = np.exp(np.concatenate([[0.0], np.log1p(-exit_prob)[:-1].cumsum()]))
    weights = reach * exit_prob
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def pick(weights: Floats, u: float) -> tuple[int, float]:
    """Inverse CDF: the cell that u in [0, 1) falls into, and how far into it (again uniform).

    Cells of weight 0 are never picked.
    """
    edges = np.cumsum(weights)
    x = u * edges[-1]
    cell = min(int(np.searchsorted(edges, x, side="right")), int(np.flatnonzero(weights)[-1]))
    inside = (x - (edges[cell] - weights[cell])) / weights[cell]
    return cell, float(min(max(inside, 0.0), 1.0 - 1e-16))


@dataclass(frozen=True, slots=True)
class BranchPoint:
    """A branch: the path is left at `position` for `token`."""

    position: int
    token: int


@dataclass(frozen=True, slots=True)
class TailDraw:
    """A branch whose token is not listed: the cell of the whole row that `u` falls into."""

    position: int
    u: float


def draw_sibling(
    row: TokenDistribution, own: int, position: int, u: float
) -> BranchPoint | TailDraw:
    """The sibling of `own` that u in [0, 1) picks from a row by its inverse CDF.

    A head and its whole row pick the same one, or the head leaves it to the whole row.
    """
    weights = np.where(row.ids == own, 0.0, row.probs)
    if row.tail:
        listed = float(weights.sum())
        x = u * (listed + row.tail)
        if x >= listed:
            return TailDraw(position, u)
        u = x / listed
    cell, _ = pick(weights, u)
    return BranchPoint(position, int(row.ids[cell]))


@dataclass(slots=True)
class SuccessCount:
    """Rollouts of one sibling, or of one block."""

    successes: int = 0
    n: int = 0
    tokens: int = 0

    def add(self, rollouts: Iterable[Rollout], before: int = 0) -> None:
        """Count rollouts; the first `before` tokens of each do not belong to the branch."""
        for rollout in rollouts:
            self.successes += rollout.success
            self.n += 1
            self.tokens += rollout.length - before


class SiblingCounts(dict[tuple[int, int], SuccessCount]):
    """Rollouts by (position, next token), whoever drew them."""

    def add(self, position: int, token: int, rollouts: Iterable[Rollout]) -> None:
        self.setdefault((position, token), SuccessCount()).add(rollouts)

    def table(self, path: ScoredCompletion) -> dict[int, tuple[tuple[int, float, int, int], ...]]:
        """Siblings by position, likeliest first, for `CompletionResult.siblings`."""
        found: dict[int, list[tuple[int, float, int, int]]] = {}
        for (position, token), tally in self.items():
            if token != path.ids[position] and tally.n:
                row = (token, path.rows[position].prob(token), tally.successes, tally.n)
                found.setdefault(position, []).append(row)
        return {at: tuple(sorted(found[at], key=lambda r: (-r[1], r[0]))) for at in sorted(found)}


class Branches:
    """The pool of branch rollouts along one path.

    `tallies[k]` holds the draws of block k, each a fair draw of how the block is left: estimates
    rest on them alone. `hints[k]` holds unforced rollouts that left the path in block k, which
    were selected with the question and may only guide the search. `groups` holds the rollouts of
    both by position and first token, for choosing siblings to measure afresh.
    """

    def __init__(self, path: ScoredCompletion, p_gap: float, rng: np.random.Generator) -> None:
        self.path = path
        self.blocks = split_blocks(path.exit_prob, p_gap, path.ends)
        self.tallies = [SuccessCount() for _ in self.blocks]
        self.hints = [SuccessCount() for _ in self.blocks]
        self.groups = SiblingCounts()
        self._offsets = rng.random(len(self.blocks))
        self._drawn = [0] * len(self.blocks)
        self._block_of = np.repeat(
            np.arange(len(self.blocks)), [block.end - block.start for block in self.blocks]
        )

    def draw(self, k: int, n: int) -> list[BranchPoint | TailDraw]:
        """The next n ways to leave block k.

        Draw number c uses the uniform `(offset + c · golden ratio) mod 1`, with one random offset
        a block: every draw has exactly the conditional distribution of an exit, and the draws
        together follow it more closely than independent ones would.
        """
        block = self.blocks[k]
        weights = exit_weights(self.path.exit_prob[block.start : block.end])
        exits = list[BranchPoint | TailDraw]()
        for c in range(self._drawn[k], self._drawn[k] + n):
            place, u = pick(weights, float((self._offsets[k] + c * GOLDEN) % 1.0))
            position = block.start + place
            row, own = self.path.rows[position], self.path.ids[position]
            exits.append(draw_sibling(row, own, position, u))
        self._drawn[k] += n
        return exits

    def record(self, exit_: BranchPoint, rollouts: Sequence[Rollout]) -> None:
        """Enter rollouts of a branch that `draw` has drawn."""
        self.tallies[self._block_of[exit_.position]].add(rollouts)
        self.groups.add(exit_.position, exit_.token, rollouts)

    def seen(self, k: int) -> SuccessCount:
        """Draws and hints of block k together: for guidance, never for an estimate."""
        own, hint = self.tallies[k], self.hints[k]
        return SuccessCount(
            own.successes + hint.successes, own.n + hint.n, own.tokens + hint.tokens
        )

    def record_unforced(self, rollouts: Sequence[Rollout]) -> None:
        """Enter whole rollouts from the prompt, each as one hint at the place it leaves the path.

        One that repeats the path to its end says nothing of any branch.
        """
        for rollout in rollouts:
            at = departure(self.path.ids, rollout.ids)
            if at is not None:
                self.hints[self._block_of[at]].add([rollout], before=at + 1)
                self.groups.add(at, rollout.ids[at], [rollout])


def departure(path: Ids, other: Ids) -> int | None:
    """The first position at which `other` differs from `path`, None if one continues the other."""
    both = zip(path, other, strict=False)
    return next((position for position, (a, b) in enumerate(both) if a != b), None)


def completion_faults(
    problem_id: str, given: Sequence[Ids], limit: int, stop_ids: frozenset[int]
) -> list[str]:
    """A line for each completion that is empty, longer than `limit` or unfinished."""
    return [
        f"completion {i} of problem {problem_id!r}: {fault}"
        for i, ids in enumerate(given)
        if (fault := _unfinished(ids, limit, stop_ids))
    ]


def _unfinished(ids: Ids, limit: int, stop_ids: frozenset[int]) -> str:
    if not ids:
        return "has no tokens; give at least the stop token"
    if len(ids) > limit:
        return f"has {len(ids)} tokens, over the limit of {limit}; raise max_new_tokens or drop it"
    early = next((at for at, token in enumerate(ids[:-1]) if token in stop_ids), None)
    if early is not None:
        return f"goes on after the stop token at position {early}; cut it there"
    if len(ids) < limit and ids[-1] not in stop_ids:
        return f"ends in {ids[-1]}, no stop token ({sorted(stop_ids)}); append the one it ended by"
    return ""
