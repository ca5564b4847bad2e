"""What a search has learnt of the siblings along one completion: estimates of likely next tokens.

A search method hands on a `PathAnalysis`; `PathSiblings` answers what is thought of a next token at
a position: its own rollouts, shrunk towards what the search believes of the place. Shrunk estimates
choose siblings and never become published numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import hypot, sqrt

from pts.algorithm.paths import ScoredCompletion, SiblingCounts, SuccessCount
from pts.config import SearchConfig
from pts.stats import smoothed_mean
from pts.types import CompletionResult, Estimate, Ids, PivotalToken

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
class PairProposal:
    """A pair as the search sees it, before confirmation."""

    prefix: Ids
    chosen: SiblingEstimate
    rejected: SiblingEstimate
    criterion: str

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


class PathSiblings:
    """The siblings along one searched path, as criteria see them."""

    def __init__(self, analysis: PathAnalysis, config: SearchConfig) -> None:
        self.analysis, self.config, self.path = analysis, config, analysis.path
        found = (*analysis.result.tokens, *analysis.result.undecided)
        self.pivots = {t.position: t.delta.mean > 0 for t in found if isinstance(t, PivotalToken)}
        """Positions of the tokens that move p(success), and whether upwards."""
        self.likely = [
            [int(token) for token in row.ids[row.probs >= config.min_sibling_prob]]
            for row in self.path.rows
        ]
        """Tokens of each position that are likely enough to enter a pair."""

    def estimate(self, position: int, token: int) -> SiblingEstimate:
        """What is thought of a next token at a position."""
        on_path = token == self.path.ids[position]
        prior = (self.analysis.after if on_path else self.analysis.left)[position]
        s, n = self._counted(position, token)
        mean = (s + prior.strength * prior.mean) / (n + prior.strength)
        # Smoothed: a prior of 0 or 1 that rests on nothing must not look certain.
        spread = smoothed_mean(s + prior.strength * prior.mean, n + prior.strength)
        sd = sqrt(spread * (1 - spread) / (n + prior.strength + 1))
        weight = n + (prior.strength if prior.strength > WEAK_PRIOR else 0.0)
        prob = self.path.rows[position].prob(token)
        return SiblingEstimate(token, prob, mean, sd, weight >= self.config.fork_rollouts)

    def best(self, pairs: Iterable[PairProposal]) -> PairProposal | None:
        """The most promising pair, None where none may reach p_gap."""
        kept = [pair for pair in pairs if pair.optimistic_gap >= self.config.p_gap]
        return max(kept, key=lambda pair: pair.optimistic_gap, default=None)

    def missing(self, position: int, token: int) -> int:
        """Rollouts of the next measurement: half of `fork_rollouts` at a time, so that a sibling
        which falls behind is not measured further."""
        left = self.config.fork_rollouts - self._counted(position, token)[1]
        return max(1, min(left, (self.config.fork_rollouts + 1) // 2))

    def _counted(self, position: int, token: int) -> tuple[int, int]:
        count = self.analysis.groups.get((position, token), SuccessCount())
        return count.successes, count.n


def screening_budget(config: SearchConfig) -> int:
    """Rollouts of one path that are kept for measuring siblings, whatever its search takes.

    None at unit "step", which makes no pairs.
    """
    if config.unit == "step":
        return 0
    return min(round(config.max_rollouts * SCREENING_SHARE), SCREENING_MOST)
