"""From searched paths to preference pairs: which siblings to compare, which pairs to keep.

A `Board` looks at one path: for `path` it sets the token that moved p(success) against the
sibling that moves it the other way most, for `fork` the best against the worst of the likely
siblings at a position, whichever of them the path took. It names the siblings still to be
measured and, when nothing more is worth measuring, proposes pairs. `select_pairs` keeps what
fresh rollouts confirmed (`pts.methods.confirm`), under one false discovery rate for the run.

Pure: no sampling happens here. Pairs are token ids throughout.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from math import hypot, sqrt
from typing import Literal, TypeAlias

import numpy as np

from pts.branches import Groups, Path
from pts.config import SearchConfig
from pts.estimate import benjamini_hochberg, jeffreys, newcombe, smoothed_mean
from pts.types import (
    CandidatePair,
    Estimate,
    Ids,
    PathResult,
    PivotalToken,
    QuestionResult,
    TokenPair,
)

Criterion: TypeAlias = Literal["path", "fork"]

FAINT = 2.0
"""Pseudo-rollouts of a belief that rests on the neighbourhood only."""

FIRM = 1e4
"""Pseudo-rollouts at most; a belief with sd 0 (the judged end of a path) has this many."""

KEY_BYTES = 16
"""Of the digest by which a `Selection` knows equal pairs."""


@dataclass(frozen=True, slots=True)
class Belief:
    """What is thought of a probability before its own rollouts: a mean worth `strength` rollouts.

    It shrinks the choice of a sibling, never a published number.
    """

    mean: float
    strength: float = FAINT

    @classmethod
    def of(cls, mean: float, sd: float) -> Belief:
        """A belief as strong as a Beta distribution with this mean and standard deviation."""
        inner = min(max(mean, 0.01), 0.99)
        strength = inner * (1 - inner) / (sd * sd) - 1 if sd > 0 else FIRM
        return cls(mean, min(max(strength, FAINT), FIRM))


@dataclass(frozen=True, slots=True)
class Finding:
    """What a search method hands on: its result, and all it learnt of siblings.

    `after[i]` is the belief in p(success) after token i of the path, `left[i]` in that of its
    siblings at position i; `screening` is the number of rollouts left for measuring siblings;
    `deltas` the change of p(success) at every position where it was estimated by itself.
    """

    path: Path
    result: PathResult
    groups: Groups
    after: Sequence[Belief]
    left: Sequence[Belief]
    screening: int
    deltas: Mapping[int, Estimate] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Option:
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
    chosen: Option
    rejected: Option
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
    def promise(self) -> float:
        """The gap if it is measured, what it may turn out to be (one sd more) if it is not."""
        return self.gap if self.measured else self.gap + hypot(self.chosen.sd, self.rejected.sd)

    @property
    def worth(self) -> float:
        """π(rejected) times the gap less one sd: the luckiest of many estimates is no reason."""
        return self.rejected.prob * (self.gap - hypot(self.chosen.sd, self.rejected.sd))

    @property
    def key(self) -> tuple[Ids, int, int]:
        return self.prefix, self.chosen.token, self.rejected.token


class Board:
    """All comparisons that one searched path offers."""

    def __init__(self, finding: Finding, config: SearchConfig) -> None:
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

    def option(self, position: int, token: int) -> Option:
        on_path = token == self.finding.path.ids[position]
        belief = (self.finding.after if on_path else self.finding.left)[position]
        tally = self.finding.groups.get((position, token))
        s, n = (tally.successes, tally.n) if tally else (0, 0)
        mean = (s + belief.strength * belief.mean) / (n + belief.strength)
        # Smoothed: a belief of 0 or 1 that rests on nothing must not look certain.
        spread = smoothed_mean(s + belief.strength * belief.mean, n + belief.strength)
        sd = sqrt(spread * (1 - spread) / (n + belief.strength + 1))
        weight = n + (belief.strength if belief.strength > FAINT else 0.0)
        prob = self.finding.path.rows[position].prob(token)
        return Option(token, prob, mean, sd, weight >= self.config.fork_rollouts)

    def path_pairs(self) -> list[Proposal]:
        """For each pivotal token the most promising opponent among its likely siblings."""
        if "path" not in self.config.criteria:
            return []
        found = [self._best(self._against_path(at, up)) for at, up in self.pivots.items()]
        return [pair for pair in found if pair is not None]

    def fork_pairs(self) -> list[Proposal]:
        """The most promising pair of each fork, by what it may be worth, `max_pairs` of them."""
        if "fork" not in self.config.criteria:
            return []
        found = [self._best(self._at_fork(at)) for at in self.forks]
        pairs = [pair for pair in found if pair is not None]
        pairs.sort(key=lambda pair: (-pair.rejected.prob * pair.promise, pair.position))
        return pairs[: self.config.max_pairs]

    def _best(self, pairs: Iterable[Proposal]) -> Proposal | None:
        kept = [pair for pair in pairs if pair.promise >= self.config.p_gap]
        return max(kept, key=lambda pair: pair.promise, default=None)

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
    """The `max_pairs` proposals of a question with the best cautious worth, none twice."""
    unique: dict[tuple[Ids, int, int], Proposal] = {}
    for pair in proposals:
        unique.setdefault(pair.key, pair)
    ranked = sorted(unique.values(), key=lambda p: (-p.worth, p.key))
    return ranked[:max_pairs]


def select_pairs(
    results: Iterable[QuestionResult], config: SearchConfig, policy: str
) -> list[TokenPair]:
    """The pairs that fresh rollouts confirm, for the whole run.

    All proposed pairs are tested together at false discovery rate `config.fdr`
    (Benjamini-Hochberg), those of `path` and of `fork` as two families. Each side gets a Jeffreys
    interval, the gap Newcombe's, both at 95 % and from confirmation rollouts only. `policy` is
    the digest of what was sampled from. Order: that of the results.
    """
    kept = [result for result in results if any(path.pairs for path in result.paths)]
    selection = Selection(config, policy)
    for result in kept:
        selection.see(result)
    return list(selection.pick(kept))


class Selection:
    """`select_pairs` for a run that memory cannot hold: shown twice, 25 bytes a pair are kept.

    Show every result to `see`, then the same results in the same order to `pick`.
    """

    def __init__(self, config: SearchConfig, policy: str) -> None:
        self._config, self._policy = config, policy
        self._pvalues = array("d")
        self._keys = bytearray()
        self._forks = bytearray()

    def see(self, result: QuestionResult) -> None:
        """Take note of the p-values of a result."""
        for path in result.paths:
            for pair in path.pairs:
                self._pvalues.append(pair.pvalue)
                self._forks.append(pair.criterion == "fork")
                self._keys += _pair_key(result.prompt_ids + path.ids[: pair.position], pair)

    def pick(self, results: Iterable[QuestionResult]) -> Iterator[TokenPair]:
        """The confirmed pairs of the results, none twice."""
        accepted = iter(self._accepted())
        for result in results:
            for path in result.paths:
                for pair in path.pairs:
                    if next(accepted):
                        yield _token_pair(result, path, pair, self._policy)

    def _accepted(self) -> bytearray:
        """A byte a pair, 1 where it is kept; of equal ones a `path` pair, else the first."""
        accepted, seen = bytearray(len(self._pvalues)), set[bytes]()
        for fork in (0, 1):
            family = [i for i, kind in enumerate(self._forks) if kind == fork]
            passed = benjamini_hochberg([self._pvalues[i] for i in family], self._config.fdr)
            for i, accept in zip(family, passed, strict=True):
                key = bytes(self._keys[i * KEY_BYTES : (i + 1) * KEY_BYTES])
                if accept and key not in seen:
                    seen.add(key)
                    accepted[i] = 1
        return accepted


def _pair_key(prompt: Ids, pair: CandidatePair) -> bytes:
    """Stands for (prefix, chosen, rejected)."""
    ids = np.asarray((*prompt, pair.chosen, pair.rejected), dtype="<i8")
    return hashlib.blake2b(ids.tobytes(), digest_size=KEY_BYTES).digest()


def _token_pair(
    question: QuestionResult, path: PathResult, pair: CandidatePair, policy: str
) -> TokenPair:
    c, r = pair.confirm_chosen, pair.confirm_rejected
    return TokenPair(
        problem_id=question.problem_id,
        prompt_ids=question.prompt_ids + path.ids[: pair.position],
        chosen=pair.chosen,
        rejected=pair.rejected,
        chosen_prob=pair.chosen_prob,
        rejected_prob=pair.rejected_prob,
        p_chosen=jeffreys(c.successes, c.n),
        p_rejected=jeffreys(r.successes, r.n),
        gap=newcombe(c.successes, c.n, r.successes, r.n),
        pvalue=pair.pvalue,
        worth=pair.worth,
        criterion=pair.criterion,
        policy=policy,
    )
