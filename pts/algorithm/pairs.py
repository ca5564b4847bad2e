"""Preference pairs of one question: which siblings to compare, and whether fresh rollouts agree.

A `PairProposer` asks the criteria (`pts.algorithm.criteria`) which siblings along a path are worth
comparing, names those still to be measured and, when nothing more is worth measuring, proposes
pairs.

The estimate that makes a search propose a pair is biased upwards, so a pair is judged by rollouts
of purpose "confirm" alone, by a test that stops as soon as they settle it either way
(`pts.algorithm.sequential`). What a run keeps of its pairs is decided for all of them together
(`pts.algorithm.selection`). Pairs are token ids throughout.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pts.algorithm.criteria import CRITERIA
from pts.algorithm.paths import SuccessCount
from pts.algorithm.requests import SearchRoutine, request
from pts.algorithm.sequential import GO_ON, sequential_test
from pts.algorithm.siblings import PairProposal, PathAnalysis, PathSiblings
from pts.config import SearchConfig
from pts.types import CandidatePair, Counts, Ids, RolloutQuery


class PairProposer:
    """All comparisons that one searched path offers."""

    def __init__(self, analysis: PathAnalysis, config: SearchConfig) -> None:
        self.siblings, self.config = PathSiblings(analysis, config), config
        self.criteria = [CRITERIA[name] for name in CRITERIA if name in config.criteria]

    def wanted(self, budget: int) -> list[tuple[Ids, int]]:
        """(prefix with its next token, rollouts) worth measuring next; empty when done."""
        wanted: dict[Ids, int] = {}
        for criterion in self.criteria:
            unmeasured = [pair for pair in criterion.pairs(self.siblings) if not pair.measured]
            most = len(unmeasured) if criterion.at_once else self.config.round_blocks
            for pair in unmeasured[:most]:
                for sibling in (pair.chosen, pair.rejected):
                    prefix = (*pair.prefix, sibling.token)
                    if not sibling.measured and prefix not in wanted:
                        missing = self.siblings.missing(pair.position, sibling.token)
                        wanted[prefix] = min(missing, budget)
                        budget -= wanted[prefix]
        return [(prefix, n) for prefix, n in wanted.items() if n > 0]

    def proposals(self) -> list[PairProposal]:
        """Pairs whose estimated gap reaches p_gap, none twice."""
        pairs = [pair for criterion in self.criteria for pair in criterion.pairs(self.siblings)]
        return _unique(pair for pair in pairs if pair.gap >= self.config.p_gap)


def rank_proposals(proposals: Iterable[PairProposal], max_pairs: int) -> list[PairProposal]:
    """The `max_pairs` proposals of a question with the best cautious expected gain, none twice."""
    ranked = sorted(_unique(proposals), key=lambda p: (-p.expected_gain, p.key))
    return ranked[:max_pairs]


def _unique(proposals: Iterable[PairProposal]) -> list[PairProposal]:
    """The first of equal pairs."""
    found: dict[tuple[Ids, int, int], PairProposal] = {}
    for pair in proposals:
        found.setdefault(pair.key, pair)
    return list(found.values())


def screen(analysis: PathAnalysis, config: SearchConfig) -> SearchRoutine[list[PairProposal]]:
    """Measure promising siblings of one path within its budget, then propose pairs."""
    board, budget = PairProposer(analysis, config), analysis.screening
    while wanted := board.wanted(budget):
        budget -= sum(n for _, n in wanted)
        answers = yield from request([RolloutQuery(at, n, "search") for at, n in wanted])
        for (at, _), rollouts in zip(wanted, answers, strict=True):
            analysis.groups.add(len(at) - 1, at[-1], rollouts)
    return board.proposals()


def confirm(
    proposals: Sequence[PairProposal], config: SearchConfig
) -> SearchRoutine[list[CandidatePair]]:
    """Test each proposal with up to `confirm_rollouts` fresh rollouts a side, in its order.

    After each look of the test (`pts.algorithm.sequential`) the pairs that it settled are done.
    """
    test = sequential_test(config.confirm_rollouts, config.p_gap - config.indifference_margin)
    trials = [(proposal, SuccessCount(), SuccessCount()) for proposal in proposals]
    going = trials
    for look in test.looks:
        sides = [
            ((*proposal.prefix, sibling.token), count)
            for proposal, c, r in going
            for sibling, count in ((proposal.chosen, c), (proposal.rejected, r))
        ]
        queries = [RolloutQuery(at, look.n - count.n, "confirm") for at, count in sides]
        for (_, count), rollouts in zip(sides, (yield from request(queries)), strict=True):
            count.add(rollouts)
        going = [(p, c, r) for p, c, r in going if look.decision[c.successes, r.successes] == GO_ON]
    return [
        CandidatePair(
            position=proposal.position,
            chosen=proposal.chosen.token,
            rejected=proposal.rejected.token,
            chosen_prob=proposal.chosen.prob,
            rejected_prob=proposal.rejected.prob,
            criterion=proposal.criterion,
            search_gap=proposal.gap,
            confirm_chosen=Counts(c.successes, c.n),
            confirm_rejected=Counts(r.successes, r.n),
            pvalue=test.pvalue(c.n, c.successes, r.successes),
        )
        for proposal, c, r in trials
    ]
