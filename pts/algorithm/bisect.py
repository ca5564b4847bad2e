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

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from pts.algorithm.paths import ScoredCompletion, SiblingCounts
from pts.algorithm.requests import SearchRoutine, request
from pts.algorithm.results import completion_result, pivots_along
from pts.algorithm.siblings import BetaPrior, PathAnalysis, screening_budget
from pts.algorithm.tails import listed
from pts.config import SearchConfig
from pts.stats import decide, exact, jeffreys, reaches, square_and_add, wilson
from pts.types import Estimate, Ids, Rollout, RolloutQuery


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
            for track in tracks:
                track.path = yield from listed(track.path, track.siblings())
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
        self.pending: list[tuple[int, int]] = [(0, len(path.ids))]

    def wanted(self) -> list[Ids]:
        """Prefixes to be sampled before the pending segments can be judged."""
        ends = {at for segment in self.pending for at in segment if at < len(self.path.ids)}
        return [self.path.ids[:at] for at in sorted(ends) if self.path.ids[:at] not in self.memo]

    def advance(self) -> None:
        """Judge all pending segments whose ends are known, down to unsampled midpoints."""
        while self.pending and not self.wanted():
            children: list[tuple[int, int]] = []
            for start, end in self.pending:
                self.measured |= {start, end}
                cuts = self.path.cuts(start, end)
                if cuts and reaches(self.delta(start, end).mean, self.config.p_gap):
                    middle = split_point(list(self.path.probs), start, end, cuts)
                    children += [(start, middle), (middle, end)]
            self.pending = children

    def delta(self, start: int, end: int) -> Estimate:
        """Estimated change of p(success) between two measured places, with Newcombe's interval."""
        return square_and_add(self.estimate(end, wilson), self.estimate(start, wilson))

    def estimate(self, at: int, interval: Callable[[int, int, float], Estimate]) -> Estimate:
        """p(success) after `at` tokens: the raw proportion with an interval, or the verdict."""
        if at == len(self.path.ids):
            return exact(self.path.end)
        rollouts = self.memo[self.path.ids[:at]]
        return interval(sum(r.success for r in rollouts), len(rollouts), self.config.z)

    def siblings(self) -> SiblingCounts:
        """The first tokens of the rollouts from each measured prefix."""
        groups = SiblingCounts()
        for at in sorted(self.measured)[:-1]:
            for rollout in self.memo[self.path.ids[:at]]:
                groups.add(at, rollout.ids[0], [rollout])
        return groups

    def finding(self) -> PathAnalysis:
        path, config, marks = self.path, self.config, sorted(self.measured)
        points = {at: self.estimate(at, jeffreys) for at in marks}
        deltas = {
            (start, end): self.delta(start, end)
            for start, end in pairwise(marks)
            if not path.cuts(start, end)
        }
        margin = config.indifference_margin
        decided = [u for u, d in deltas.items() if decide(d, config.p_gap, margin) == "yes"]
        pivots = pivots_along(path, config, points, deltas, decided)
        groups = self.siblings()
        result = completion_result(path, points, pivots, groups, "decided")
        after, left = self._beliefs(points)
        changes = {start: delta for (start, _), delta in deltas.items()}
        budget = screening_budget(config)
        return PathAnalysis(path, result, groups, after, left, budget, changes)

    def _beliefs(self, points: Mapping[int, Estimate]) -> tuple[list[BetaPrior], list[BetaPrior]]:
        """p after each token: measured, or interpolated and then hardly believed."""
        means = [point.mean for point in points.values()]
        line = np.interp(np.arange(len(self.path.ids) + 1), list(points), means)
        beliefs = [BetaPrior(float(p)) for p in line]
        after = beliefs[1:]
        for at, point in points.items():
            if at > 0:
                sd = (point.high - point.low) / (2 * self.config.z)
                after[at - 1] = BetaPrior.of(float(line[at]), sd)
        return after, beliefs[:-1]
