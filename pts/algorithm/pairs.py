"""Preference pairs of one question: which siblings to compare, and whether fresh rollouts agree.

A `PairProposer` looks at one path: for `path` it sets the token that moved p(success) against the
sibling that moves it the other way most, for `fork` the best against the worst of the likely
siblings at a position, whichever of them the path took. It names the siblings still to be
measured and, when nothing more is worth measuring, proposes pairs.

The estimate that makes a search propose a pair is biased upwards, so a pair is judged by rollouts
of purpose "confirm" alone. Half of them are drawn first; a pair whose half shows less than p_gap -
indifference margin is dropped with p-value 1. Stopping for futility only ever takes rejections
away, so the test keeps the error rate of the undivided one. What a run keeps of its pairs is
decided for all of them together (`pts.algorithm.selection`). Pairs are token ids throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from math import hypot, sqrt
from typing import Literal, TypeAlias

from pts.algorithm.paths import ScoredCompletion, SiblingCounts, SuccessCount
from pts.algorithm.requests import SearchRoutine, request
from pts.config import SearchConfig
from pts.stats import score_test, smoothed_mean
from pts.types import CandidatePair, CompletionResult, Estimate, Ids, PivotalToken, RolloutQuery

Criterion: TypeAlias = Literal["path", "fork"]

WEAK_PRIOR = 2.0
"""Pseudo-rollouts of a belief that rests on the neighbourhood only."""

MAX_PRIOR = 1e4
"""Pseudo-rollouts at most; a belief with sd 0 (the judged end of a path) has this many."""

SCREENING_SHARE = 0.25
"""Share of `max_rollouts` that is kept for measuring siblings that may become pairs …"""
SCREENING_MOST = 100
"""… but not more than this many: they depend on `max_pairs`, not on how long a search takes."""


@dataclass(frozen=True, slots=True)
class BetaPrior:
    """What is thought of a probability before its own rollouts: a mean worth `strength`
    rollouts.

    It shrinks the choice of a sibling, never a published number.
    """

    mean: float
    strength: float = WEAK_PRIOR

    @classmethod
    def of(cls, mean: float, sd: float) -> BetaPrior:
        """A belief as strong as a Beta distribution with this mean and standard deviation."""
        inner = min(max(mean, 0.01), 0.99)
        strength = inner * (1 - inner) / (sd * sd) - 1 if sd > 0 else MAX_PRIOR
        return cls(mean, min(max(strength, WEAK_PRIOR), MAX_PRIOR))


@dataclass(frozen=True, slots=True)
class PathAnalysis:
    """What a search method hands on: its result, and all it learnt of siblings.

    `after[i]` is the belief in p(success) after token i of the path, `left[i]` in that of its
    siblings at position i; `screening` is the number of rollouts left for measuring siblings;
    `deltas` the change of p(success) at every position where it was estimated by itself.
    """

    path: ScoredCompletion
    result: CompletionResult
    groups: SiblingCounts
    after: Sequence[BetaPrior]
    left: Sequence[BetaPrior]
    screening: int
    deltas: Mapping[int, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SiblingEstimate:
    """One next token at a position: its probability and the shrunk estimate of its success."""

    token: int
    prob: float
    mean: float
    sd: float
    measured: bool


@dataclass(frozen=True, slots=True)
class Proposal:
    """A pair as the search sees it, before confirmation."""

    prefix: Ids
    chosen: SiblingEstimate
    rejected: SiblingEstimate
    criterion: Criterion

    @property
    def position(self) -> int:
        return len(self.prefix)

    @property
    def gap(self) -> float:
        """Shrunk estimate of p(chosen) - p(rejected)."""
        return self.chosen.mean - self.rejected.mean

    @property
    def measured(self) -> bool:
        return self.chosen.measured and self.rejected.measured

    @property
    def optimistic_gap(self) -> float:
        """The gap if it is measured, what it may turn out to be (one sd more) if it is not."""
        return self.gap if self.measured else self.gap + hypot(self.chosen.sd, self.rejected.sd)

    @property
    def expected_gain(self) -> float:
        """π(rejected) times the gap less one sd: the luckiest of many estimates is no reason."""
        return self.rejected.prob * (self.gap - hypot(self.chosen.sd, self.rejected.sd))

    @property
    def key(self) -> tuple[Ids, int, int]:
        return self.prefix, self.chosen.token, self.rejected.token


class PairProposer:
    """All comparisons that one searched path offers."""

    def __init__(self, finding: PathAnalysis, config: SearchConfig) -> None:
        self.finding, self.config = finding, config
        path = finding.path
        found = (*finding.result.tokens, *finding.result.undecided)
        tokens = [token for token in found if isinstance(token, PivotalToken)]
        self.pivots = {token.position: token.delta.mean > 0 for token in tokens}
        self.likely = [
            [int(token) for token in row.ids[row.probs >= config.min_sibling_prob]]
            for row in path.rows
        ]
        self.forks = [i for i, tokens in enumerate(self.likely) if len(tokens) > 1]

    def option(self, position: int, token: int) -> SiblingEstimate:
        on_path = token == self.finding.path.ids[position]
        belief = (self.finding.after if on_path else self.finding.left)[position]
        tally = self.finding.groups.get((position, token))
        s, n = (tally.successes, tally.n) if tally else (0, 0)
        mean = (s + belief.strength * belief.mean) / (n + belief.strength)
        # Smoothed: a belief of 0 or 1 that rests on nothing must not look certain.
        spread = smoothed_mean(s + belief.strength * belief.mean, n + belief.strength)
        sd = sqrt(spread * (1 - spread) / (n + belief.strength + 1))
        weight = n + (belief.strength if belief.strength > WEAK_PRIOR else 0.0)
        prob = self.finding.path.rows[position].prob(token)
        return SiblingEstimate(token, prob, mean, sd, weight >= self.config.fork_rollouts)

    def path_pairs(self) -> list[Proposal]:
        """For each pivotal token the most promising opponent among its likely siblings."""
        if "path" not in self.config.criteria:
            return []
        found = [self._best(self._against_path(at, up)) for at, up in self.pivots.items()]
        return [pair for pair in found if pair is not None]

    def fork_pairs(self) -> list[Proposal]:
        """The most promising pair of each fork, by what it may gain, `max_pairs` of
        them."""
        if "fork" not in self.config.criteria:
            return []
        found = [self._best(self._at_fork(at)) for at in self.forks]
        pairs = [pair for pair in found if pair is not None]
        pairs.sort(key=lambda pair: (-pair.rejected.prob * pair.optimistic_gap, pair.position))
        return pairs[: self.config.max_pairs]

    def _best(self, pairs: Iterable[Proposal]) -> Proposal | None:
        kept = [pair for pair in pairs if pair.optimistic_gap >= self.config.p_gap]
        return max(kept, key=lambda pair: pair.optimistic_gap, default=None)

    def _against_path(self, position: int, up: bool) -> Iterator[Proposal]:
        own = self.option(position, self.finding.path.ids[position])
        prefix = self.finding.path.ids[:position]
        for token in self.likely[position]:
            if token != own.token:
                other = self.option(position, token)
                yield Proposal(prefix, *((own, other) if up else (other, own)), "path")

    def _at_fork(self, position: int) -> Iterator[Proposal]:
        prefix = self.finding.path.ids[:position]
        options = [self.option(position, token) for token in self.likely[position]]
        for chosen, rejected in permutations(options, 2):
            yield Proposal(prefix, chosen, rejected, "fork")

    def wanted(self, budget: int) -> list[tuple[Ids, int]]:
        """(prefix with its next token, rollouts) worth measuring next; empty when done.

        Pivotal tokens come first. Half of `fork_rollouts` at a time: a sibling that falls behind
        is not measured further.
        """
        open_path = [pair for pair in self.path_pairs() if not pair.measured]
        open_fork = [pair for pair in self.fork_pairs() if not pair.measured]
        wanted: dict[Ids, int] = {}
        for pair in open_path + open_fork[: self.config.round_blocks]:
            for option in (pair.chosen, pair.rejected):
                at = (*pair.prefix, option.token)
                if not option.measured and at not in wanted:
                    n = min(self._step(pair.position, option.token), budget)
                    budget -= n
                    wanted[at] = n
        return [(at, n) for at, n in wanted.items() if n > 0]

    def _step(self, position: int, token: int) -> int:
        tally = self.finding.groups.get((position, token))
        missing = self.config.fork_rollouts - (tally.n if tally else 0)
        return max(1, min(missing, (self.config.fork_rollouts + 1) // 2))

    def proposals(self) -> list[Proposal]:
        """Pairs whose estimated gap reaches p_gap, `path` before `fork`, none twice."""
        found: dict[tuple[Ids, int, int], Proposal] = {}
        for pair in self.path_pairs() + self.fork_pairs():
            if pair.gap >= self.config.p_gap:
                found.setdefault(pair.key, pair)
        return list(found.values())


def rank_proposals(proposals: Iterable[Proposal], max_pairs: int) -> list[Proposal]:
    """The `max_pairs` proposals of a question with the best cautious expected gain, none twice."""
    unique: dict[tuple[Ids, int, int], Proposal] = {}
    for pair in proposals:
        unique.setdefault(pair.key, pair)
    ranked = sorted(unique.values(), key=lambda p: (-p.expected_gain, p.key))
    return ranked[:max_pairs]


def screening_budget(config: SearchConfig) -> int:
    """Rollouts of one path that are kept for measuring siblings, whatever its search takes.

    None at unit "step", which makes no pairs.
    """
    if config.unit == "step":
        return 0
    return min(round(config.max_rollouts * SCREENING_SHARE), SCREENING_MOST)


def screen(finding: PathAnalysis, config: SearchConfig) -> SearchRoutine[list[Proposal]]:
    """Measure promising siblings of one path within its budget, then propose pairs."""
    board, budget = PairProposer(finding, config), finding.screening
    while wanted := board.wanted(budget):
        budget -= sum(n for _, n in wanted)
        answers = yield from request([RolloutQuery(at, n, "search") for at, n in wanted])
        for (at, _), rollouts in zip(wanted, answers, strict=True):
            finding.groups.add(len(at) - 1, at[-1], rollouts)
    return board.proposals()


def confirm(
    proposals: Sequence[Proposal], config: SearchConfig
) -> SearchRoutine[list[CandidatePair]]:
    """Test each proposal with up to `confirm_rollouts` fresh rollouts a side, in its order."""
    trials = [PairTest(proposal, config) for proposal in proposals]
    first = config.confirm_rollouts // 2
    for n in (first, config.confirm_rollouts - first):
        sides = [side for trial in trials if not trial.dropped for side in trial.sides]
        answers = yield from request([RolloutQuery(at, n, "confirm") for at, _ in sides])
        for (_, tally), rollouts in zip(sides, answers, strict=True):
            for rollout in rollouts:
                tally.add(rollout)
        for trial in trials:
            trial.review()
    return [trial.result() for trial in trials]


class PairTest:
    """The confirmation of one pair."""

    def __init__(self, proposal: Proposal, config: SearchConfig) -> None:
        self.proposal, self.config = proposal, config
        self.dropped = False
        self.chosen, self.rejected = SuccessCount(), SuccessCount()
        self.sides: tuple[tuple[Ids, SuccessCount], ...] = (
            ((*proposal.prefix, proposal.chosen.token), self.chosen),
            ((*proposal.prefix, proposal.rejected.token), self.rejected),
        )

    def review(self) -> None:
        """Drop a pair that shows less than p_gap - indifference margin while rollouts are still to
        come."""
        gap = self.chosen.successes / self.chosen.n - self.rejected.successes / self.rejected.n
        unfinished = self.chosen.n < self.config.confirm_rollouts
        if unfinished and gap < self.config.p_gap - self.config.indifference_margin:
            self.dropped = True

    def result(self) -> CandidatePair:
        c, r = self.chosen.counts, self.rejected.counts
        margin = self.config.p_gap - self.config.indifference_margin
        pvalue = 1.0 if self.dropped else score_test(c.successes, c.n, r.successes, r.n, margin)
        return CandidatePair(
            position=self.proposal.position,
            chosen=self.proposal.chosen.token,
            rejected=self.proposal.rejected.token,
            chosen_prob=self.proposal.chosen.prob,
            rejected_prob=self.proposal.rejected.prob,
            criterion=self.proposal.criterion,
            search_gap=self.proposal.gap,
            confirm_chosen=c,
            confirm_rejected=r,
            pvalue=pvalue,
        )
