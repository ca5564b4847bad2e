"""Measuring siblings before a pair is proposed, and testing proposed pairs by fresh rollouts.

The estimate that makes a search propose a pair is biased upwards, so a pair is judged by
rollouts of purpose "confirm" alone. Half of them are drawn first; a pair whose half shows less
than p_gap - zone is dropped with p-value 1. Stopping for futility only ever takes rejections
away, so the test keeps the error rate of the undivided one.
"""

from __future__ import annotations

from collections.abc import Sequence

from pts.branches import Tally
from pts.config import SearchConfig
from pts.estimate import score_test
from pts.methods.steps import Steps, ask
from pts.pairs import Board, Finding, Proposal
from pts.types import CandidatePair, Ids, Sample

SCREENING_SHARE = 0.25
"""Share of `max_rollouts` that is kept for measuring siblings that may become pairs …"""
SCREENING_MOST = 100
"""… but not more than this many: they depend on `max_pairs`, not on how long a search takes."""


def screening_budget(config: SearchConfig) -> int:
    """Rollouts of one path that are kept for measuring siblings, whatever its search takes.

    None at unit "step", which makes no pairs.
    """
    if config.unit == "step":
        return 0
    return min(round(config.max_rollouts * SCREENING_SHARE), SCREENING_MOST)


def screen(finding: Finding, config: SearchConfig) -> Steps[list[Proposal]]:
    """Measure promising siblings of one path within its budget, then propose pairs."""
    board, budget = Board(finding, config), finding.screening
    while wanted := board.wanted(budget):
        budget -= sum(n for _, n in wanted)
        answers = yield from ask([Sample(at, n, "search") for at, n in wanted])
        for (at, _), outcomes in zip(wanted, answers, strict=True):
            finding.groups.add(len(at) - 1, at[-1], outcomes)
    return board.proposals()


def confirm(proposals: Sequence[Proposal], config: SearchConfig) -> Steps[list[CandidatePair]]:
    """Test each proposal with up to `confirm_rollouts` fresh rollouts a side, in its order."""
    trials = [_Trial(proposal, config) for proposal in proposals]
    first = config.confirm_rollouts // 2
    for n in (first, config.confirm_rollouts - first):
        sides = [side for trial in trials if not trial.dropped for side in trial.sides]
        answers = yield from ask([Sample(at, n, "confirm") for at, _ in sides])
        for (_, tally), outcomes in zip(sides, answers, strict=True):
            for outcome in outcomes:
                tally.add(outcome)
        for trial in trials:
            trial.review()
    return [trial.result() for trial in trials]


class _Trial:
    """The confirmation of one pair."""

    def __init__(self, proposal: Proposal, config: SearchConfig) -> None:
        self.proposal, self.config = proposal, config
        self.dropped = False
        self.chosen, self.rejected = Tally(), Tally()
        self.sides: tuple[tuple[Ids, Tally], ...] = (
            ((*proposal.prefix, proposal.chosen.token), self.chosen),
            ((*proposal.prefix, proposal.rejected.token), self.rejected),
        )

    def review(self) -> None:
        """Drop a pair that shows less than p_gap - zone while rollouts are still to come."""
        gap = self.chosen.successes / self.chosen.n - self.rejected.successes / self.rejected.n
        unfinished = self.chosen.n < self.config.confirm_rollouts
        if unfinished and gap < self.config.p_gap - self.config.zone:
            self.dropped = True

    def result(self) -> CandidatePair:
        c, r = self.chosen.counts, self.rejected.counts
        margin = self.config.p_gap - self.config.zone
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
