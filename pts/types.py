"""The records that travel between searches, engines, verifiers and files.

All are frozen. A prefix is a tuple of token ids, never text: what was sampled is what is
measured, paired and trained. "Completion ids" never include the prompt.
"""

from __future__ import annotations

import enum
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt

Ids: TypeAlias = tuple[int, ...]
"""Token ids, as sampled."""

Purpose: TypeAlias = Literal["filter", "search", "confirm", "sample"]
"""Why a rollout is drawn. It is part of the seed, so that a confirmation never replays a search."""

WHOLE: frozenset[Purpose] = frozenset({"filter", "sample"})
"""Purposes whose rollouts a search is told all ids of; of the others the first one."""

Keep: TypeAlias = Literal["none", "right", "all"]
"""Rollouts of which a run folder keeps all ids; `right`: those that passed."""


class Verdict(enum.StrEnum):
    """What a verifier says of one completion."""

    PASS = "pass"
    FAIL = "fail"
    UNSCORED = "unscored"
    """The verifier could not run (broken reference, crash). Never counted as wrong; redrawn."""


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn; `role` is "system", "user" or "assistant", as chat templates know them."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a checkable answer.

    `prompt` is either chat messages (the engine applies its chat template and opens the
    assistant's turn) or plain text (encoded as it stands, for base models). `completions` are
    answers to be searched besides the policy's own, a teacher's among them: token ids with the stop
    token that ended them, or text, which has to be encoded and is given a stop token.
    """

    id: str
    prompt: str | tuple[Message, ...]
    reference: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    completions: tuple[Ids | str, ...] = ()


@dataclass(frozen=True, slots=True)
class Grade:
    """A verifier's answer: the verdict, what it read as the final answer, and why.

    `reason` is for people; a run tells it when UNSCORED verdicts make it set a question aside.
    """

    verdict: Verdict
    answer: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class TokenDistribution:
    """The distribution that is sampled from at one position: whole, or the head of it.

    `ids` (int64, shape [S]) and `probs` (float64, shape [S]) list the support after temperature,
    top-k, top-p and min-p, most likely first. With `tail` they sum to 1.
    """

    ids: npt.NDArray[np.int64]
    probs: npt.NDArray[np.float64]
    tail: float = 0.0
    """Probability of the tokens that are not listed."""

    def prob(self, token: int) -> float:
        """π(token), 0 for a token that is not listed."""
        hit = np.flatnonzero(self.ids == token)
        return float(self.probs[hit[0]]) if hit.size else 0.0

    def head(self, k: int, tokens: Iterable[int] = ()) -> TokenDistribution:
        """The k most likely tokens and those among `tokens`; the rest becomes `tail`."""
        if k >= len(self.ids):
            return self
        listed = np.isin(self.ids, list(tokens))
        listed[:k] = True
        rest = float(self.probs[~listed].sum())
        return TokenDistribution(self.ids[listed], self.probs[listed], self.tail + rest)


@dataclass(frozen=True, slots=True)
class Rollout:
    """One judged rollout.

    `ids` are the sampled tokens after the query's prefix: all of them for the purposes in `WHOLE`,
    the first one for the others (longer memory would serve no decision). `length` counts all
    sampled tokens. `truncated` marks a rollout stopped by the length limit: a failure by
    definition.
    """

    ids: Ids
    verdict: Verdict
    truncated: bool
    length: int

    @property
    def success(self) -> bool:
        """Whether the verdict is PASS."""
        return self.verdict is Verdict.PASS


def kept_length(keep: Keep, success: bool, length: int) -> int:
    """How many ids of a rollout a run folder keeps: all of them, or the first one."""
    return length if keep == "all" or (keep == "right" and success) else min(1, length)


@dataclass(frozen=True, slots=True)
class RolloutQuery:
    """Asks for `n` judged rollouts that continue a completion's `prefix`."""

    prefix: Ids
    n: int
    purpose: Purpose


@dataclass(frozen=True, slots=True)
class LogprobQuery:
    """Asks for the sampling distribution before each token of a completion, one row a position.

    A vocabulary has 100,000 tokens and more, so whole rows of a long completion take a gigabyte.
    """

    completion: Ids
    head: int | None = None
    """Most likely tokens that a row lists, the completion's own besides; None lists all."""
    at: tuple[int, ...] | None = None
    """Positions whose rows are wanted, ascending; None wants all."""


@dataclass(frozen=True, slots=True)
class StepQuery:
    """Asks where the steps (lines, sentences) of a completion end.

    A place is a number of tokens; they ascend, and the last one is the length of the completion.
    """

    completion: Ids


Measurement: TypeAlias = list[Rollout] | list[TokenDistribution] | list[int]
"""The answer to a `RolloutQuery` (n rollouts), to a `LogprobQuery` (one distribution per token) or
to a `StepQuery` (one place per step)."""

Requests: TypeAlias = list[RolloutQuery | LogprobQuery | StepQuery]
"""One yield of a search. It is answered whole and in order: half-finished answers would favour
short completions."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A probability (or a difference of two) with its interval; never one without the other.

    `method` names the construction of the interval, e.g. "jeffreys", "newcombe", "chain",
    "group-sequential", "exact" (a finished completion has p = 0 or 1).
    """

    mean: float
    low: float
    high: float
    n: int
    method: str


@dataclass(frozen=True, slots=True)
class PivotalToken:
    """A token of a path at which the search saw p(success) jump by at least p_gap."""

    position: int
    """Index of the token in the completion, from 0."""
    token: int
    prob: float
    """π(token | prefix) under the sampling distribution."""
    before: Estimate
    after: Estimate
    delta: Estimate
    decided: bool
    """Whether the interval of `delta` settles it: above p_gap - indifference margin on the side of
    its mean."""


@dataclass(frozen=True, slots=True)
class PivotalStep:
    """A step of a path, its tokens `start <= i < end`, that moves p(success) by p_gap.

    `prob` is the probability that the policy writes exactly these tokens after those before them.
    """

    start: int
    end: int
    ids: Ids
    prob: float
    before: Estimate
    after: Estimate
    delta: Estimate
    decided: bool
    """As in `PivotalToken`."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Successes among n rollouts of one side."""

    successes: int
    n: int


@dataclass(frozen=True, slots=True)
class CandidatePair:
    """Two siblings at one position, measured by the search and again by fresh rollouts.

    `pvalue` tests H0: p(chosen) - p(rejected) <= p_gap - indifference margin, on the confirmation
    counts only.
    """

    position: int
    chosen: int
    rejected: int
    chosen_prob: float
    rejected_prob: float
    criterion: str
    search_gap: float
    confirm_chosen: Counts
    confirm_rejected: Counts
    pvalue: float

    @property
    def gap(self) -> float:
        """Confirmed p(chosen) - p(rejected): the raw difference of fresh proportions."""
        c, r = self.confirm_chosen, self.confirm_rejected
        return c.successes / c.n - r.successes / r.n

    @property
    def expected_gain(self) -> float:
        """First-order gain in p(prefix) if the rejected token's mass moved to the chosen one."""
        return self.rejected_prob * self.gap


@dataclass(frozen=True, slots=True)
class Cost:
    """What was spent, in rollouts and generated tokens."""

    rollouts: int = 0
    tokens: int = 0

    def __add__(self, other: Self) -> Self:
        sums = (getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__)
        return type(self)(*sums)


@dataclass(frozen=True, slots=True)
class CompletionResult:
    """What a search found along one completion.

    `tokens` (or `steps`) are the report: for `branch` those decided to be pivotal, for `bisect`, as
    published, all whose estimate reaches p_gap. `undecided` are those whose estimate reaches p_gap
    when `branch` stopped, inside the indifference margin or for want of budget: no
    claim is made of them. `siblings` counts all rollouts that took a sibling, the filter's
    included: guidance.

    `curve` holds p(success) after `curve_at[k]` tokens (ascending, 0 = before the first token).
    `siblings` maps a position to `(token, π, successes, n)` of the branches drawn there. A path
    that `stopped` as "impossible" holds a token that the policy cannot sample (its entry of `probs`
    is 0): it has no curve, as nothing that rests on the policy holds along it.
    """

    ids: Ids
    verdict: Verdict
    probs: tuple[float, ...]
    curve_at: tuple[int, ...]
    curve: tuple[Estimate, ...]
    tokens: tuple[PivotalToken, ...]
    siblings: Mapping[int, tuple[tuple[int, float, int, int], ...]]
    stopped: Literal["decided", "indifferent", "unlikely", "budget", "no candidates", "impossible"]
    pairs: tuple[CandidatePair, ...] = ()
    steps: tuple[PivotalStep, ...] = ()
    """At unit "step" these are reported, and neither `tokens` nor `pairs`."""
    undecided: tuple[PivotalToken | PivotalStep, ...] = ()


@dataclass(frozen=True, slots=True)
class FilterCounts:
    """What the filter saw of a question: passed ones among the rollouts drawn.

    `stopped`: the first verdicts were all equal, and the rest was not drawn.
    """

    passed: int = 0
    drawn: int = 0
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class QuestionResult:
    """All that is known of one question after its search."""

    problem_id: str
    prompt_ids: Ids
    status: Literal["searched", "too easy", "too hard", "unscored", "unscorable"]
    """The last two are set aside: too many rollouts could not be judged, or the engine could not
    tell what follows a prefix."""
    solved: Estimate
    """p(success) from the filter rollouts. They select the question, so this estimate is biased
    towards the kept range; it is never used as evidence."""
    paths: tuple[CompletionResult, ...]
    cost: Mapping[Purpose, Cost]
    redrawn: int = 0
    """UNSCORED rollouts that were drawn again."""
    filtered: FilterCounts = FilterCounts()
    """What `solved` rests on."""
    reason: str = ""
    """Why it was set aside."""


Search: TypeAlias = Generator[Requests, list[Measurement], QuestionResult]
"""A search of one question, sans I/O: yields queries, is sent measurements, returns its result."""


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A confirmed preference between two next tokens, ready for token-level DPO.

    `prompt_ids` = the question's prompt followed by the completion prefix, exactly as sampled.
    `gap` allows for a test that stopped early and for the selection, so its mean is not quite
    `p_chosen.mean - p_rejected.mean`, which are raw proportions.
    """

    problem_id: str
    prompt_ids: Ids
    chosen: int
    rejected: int
    chosen_prob: float
    rejected_prob: float
    p_chosen: Estimate
    p_rejected: Estimate
    gap: Estimate
    pvalue: float
    expected_gain: float
    criterion: str
    policy_digest: str
    """Digest of the policy that the rollouts came from."""
