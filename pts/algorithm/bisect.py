"""`bisect`: the search that the Phi-4 report publishes (Abdin et al. 2024, section 4.3, figure 4).

A segment whose ends differ in p(success) by p_gap is cut in two, until single tokens (or single
steps, between which alone it is cut then) are left.
Where the report is silent: a segment is cut after the first token at which the cumulative
-log π reaches half of the segment's total, so that both sides hold a token, and in the middle if
the total is 0; every prefix gets `bisect_rollouts` rollouts, once; the finished path is judged.

What it cannot see: opposite changes inside a segment whose ends have equal p(success), however
many rollouts are spent. What it reports falsely: noise, when rollouts are few (at n = 10 the
standard error of a difference is 0.22 at p = 0.5).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from pts.algorithm.paths import Pivot, ScoredCompletion, SiblingCounts, SuccessCount, pivot
from pts.algorithm.requests import SearchRoutine, request
from pts.algorithm.siblings import BetaPrior, PathAnalysis, screening_budget
from pts.config import SearchConfig
from pts.stats import decide, exact, jeffreys, reaches, square_and_add, wilson_bounds
from pts.types import (
    CompletionResult,
    Estimate,
    Ids,
    PivotalStep,
    PivotalToken,
    Rollout,
    RolloutQuery,
)

Segment = tuple[int, int]


def split_point(
    probs: Sequence[float], start: int, end: int, cuts: Sequence[int] | None = None
) -> int:
    """Where to cut the tokens `start <= i < end` (at least two): the second half's first token.

    `cuts` are the places to choose from, in order (by default all): those between its units.
    """
    places = range(start + 1, end) if cuts is None else cuts
    surprise = -np.log(np.asarray(probs[start:end], dtype=np.float64))
    total = float(surprise.sum())
    if total <= 0.0:
        return places[(len(places) - 1) // 2]
    reached = np.cumsum(surprise)
    return next((at for at in places if reached[at - start - 1] >= total / 2), places[-1])


def search_bisect(
    paths: Sequence[ScoredCompletion], config: SearchConfig
) -> SearchRoutine[list[PathAnalysis]]:
    """Search paths of one question level by level; prefixes that they share are sampled once."""
    memo: dict[Ids, list[Rollout]] = {}
    tracks = [_Track(path, memo, config) for path in paths]
    while True:
        wanted = {at: None for track in tracks for at in track.wanted()}
        if not wanted:
            return [track.finding() for track in tracks]
        samples = [RolloutQuery(at, config.bisect_rollouts, "search") for at in wanted]
        answers = yield from request(samples)
        memo.update(zip(wanted, answers, strict=True))
        for track in tracks:
            track.advance()


class _Track:
    """One path: the segments still to be judged, and the ends that were measured."""

    def __init__(
        self, path: ScoredCompletion, memo: dict[Ids, list[Rollout]], config: SearchConfig
    ) -> None:
        self.path, self.memo, self.config = path, memo, config
        self.measured: set[int] = {len(path.ids)}
        self.pending: list[Segment] = [(0, len(path.ids))]

    def wanted(self) -> list[Ids]:
        """Prefixes to be sampled before the pending segments can be judged."""
        ends = {at for segment in self.pending for at in segment if at < len(self.path.ids)}
        return [self.path.ids[:at] for at in sorted(ends) if self.path.ids[:at] not in self.memo]

    def advance(self) -> None:
        """Judge all pending segments whose ends are known, down to unsampled midpoints."""
        while self.pending and not self.wanted():
            children: list[Segment] = []
            for start, end in self.pending:
                self.measured |= {start, end}
                cuts = self.path.cuts(start, end)
                change = self.mean(end) - self.mean(start)
                if cuts and reaches(change, self.config.p_gap):
                    middle = split_point(list(self.path.probs), start, end, cuts)
                    children += [(start, middle), (middle, end)]
            self.pending = children

    def mean(self, at: int) -> float:
        """Estimated p(success) after `at` tokens: the raw proportion, or the verdict."""
        if at == len(self.path.ids):
            return self.path.end
        rollouts = self.memo[self.path.ids[:at]]
        return sum(rollout.success for rollout in rollouts) / len(rollouts)

    def tally(self, at: int) -> SuccessCount:
        tally = SuccessCount()
        for rollout in self.memo[self.path.ids[:at]]:
            tally.add(rollout)
        return tally

    def point(self, at: int) -> Estimate:
        if at == len(self.path.ids):
            return exact(self.path.end)
        tally = self.tally(at)
        return jeffreys(tally.successes, tally.n, self.config.z)

    def delta(self, start: int, end: int) -> Estimate:
        return square_and_add(self._scored(end), self._scored(start), "newcombe")

    def _scored(self, at: int) -> Estimate:
        if at == len(self.path.ids):
            return exact(self.path.end)
        tally = self.tally(at)
        bounds = wilson_bounds(tally.successes, tally.n, self.config.z)
        return Estimate(tally.successes / tally.n, *bounds, tally.n, "wilson")

    def finding(self) -> PathAnalysis:
        groups = self._groups()
        marks = sorted(self.measured)
        pivots = self._pivots(marks)
        result = CompletionResult(
            ids=self.path.ids,
            verdict=self.path.verdict,
            probs=tuple(float(q) for q in self.path.probs),
            curve_at=tuple(marks),
            curve=tuple(self.point(at) for at in marks),
            tokens=tuple(p for p in pivots if isinstance(p, PivotalToken)),
            siblings=groups.table(self.path),
            stopped="decided",
            steps=tuple(p for p in pivots if isinstance(p, PivotalStep)),
        )
        after, left = self._beliefs(marks)
        budget = screening_budget(self.config)
        deltas = {start: delta for start, _, delta in self._deltas(marks)}
        return PathAnalysis(self.path, result, groups, after, left, budget, deltas)

    def _pivots(self, marks: Sequence[int]) -> list[Pivot]:
        """Single tokens or steps with both ends measured and an estimate that reaches p_gap."""
        found = []
        for start, end, delta in self._deltas(marks):
            if reaches(delta.mean, self.config.p_gap):
                yes = decide(delta, self.config.p_gap, self.config.indifference_margin) == "yes"
                around = (self.point(start), self.point(end))
                found.append(pivot(self.path, self.config.unit, (start, end), around, delta, yes))
        return found

    def _deltas(self, marks: Sequence[int]) -> Iterator[tuple[int, int, Estimate]]:
        """Single tokens or steps with both ends measured: their places and estimated changes."""
        for start, end in pairwise(marks):
            if not self.path.cuts(start, end):
                yield start, end, self.delta(start, end)

    def _groups(self) -> SiblingCounts:
        """First tokens of the rollouts from each measured prefix, with what became of them."""
        groups = SiblingCounts()
        for at in sorted(self.measured - {len(self.path.ids)}):
            for rollout in self.memo[self.path.ids[:at]]:
                groups.add(at, rollout.ids[0], [rollout])
        return groups

    def _beliefs(self, marks: Sequence[int]) -> tuple[list[BetaPrior], list[BetaPrior]]:
        """p after each token: measured, or interpolated and then hardly believed."""
        line = np.interp(np.arange(len(self.path.ids) + 1), marks, [self.mean(m) for m in marks])
        after = [
            BetaPrior.of(float(p), (point.high - point.low) / (2 * self.config.z))
            if (point := self._known(at + 1)) is not None
            else BetaPrior(float(p))
            for at, p in enumerate(line[1:])
        ]
        return after, [BetaPrior(float(p)) for p in line[:-1]]

    def _known(self, at: int) -> Estimate | None:
        return self.point(at) if at in self.measured else None
