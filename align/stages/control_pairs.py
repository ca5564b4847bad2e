"""Control arms of the search: pairs at positions that are drawn, not searched.

For each question one completion is sampled, a position is drawn in it, and a sibling from the rest
of that position's distribution. `uncertain` draws among the positions where the sampled token has
1 - q >= p_gap: elsewhere no token can be pivotal, so this arm knows what the search knows for
nothing. `uniform` draws among all positions. Both measure the two siblings with fresh rollouts and
take the better one as chosen; ties are dropped and counted. `coin` draws as `uncertain` does, lets
a coin decide and measures nothing. None filters questions by difficulty or confirms anything.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from align.context import StageContext, StageResult
from align.ledger import sampled_counts
from align.stages.sampling import ask_problems
from pts.algorithm.requests import SearchRoutine, request_logprobs
from pts.algorithm.tails import HEAD
from pts.config import SearchConfig
from pts.data.pairs import write_pairs
from pts.files import write_json
from pts.runtime.journal import Journal
from pts.runtime.progress import ProgressReporter
from pts.runtime.results import RolloutCost
from pts.runtime.scheduler import Finished, run
from pts.stats import jeffreys, newcombe, score_test
from pts.types import (
    Estimate,
    Ids,
    LogprobQuery,
    Problem,
    Rollout,
    RolloutQuery,
    TokenDistribution,
    TokenPair,
)

if TYPE_CHECKING:
    from pts.engines.base import Engine


Arm = Literal["uncertain", "uniform", "coin"]

MEASURED = 24
"""Fresh rollouts of each sibling: a fixed number, near what a confirmation takes on average."""


@dataclass(frozen=True, slots=True)
class Siblings:
    """Two next tokens after one completion prefix, with their probabilities."""

    prefix: Ids
    tokens: tuple[int, int]
    probs: tuple[float, float]

    def swapped(self) -> Siblings:
        """The same two, the other one first."""
        return Siblings(self.prefix, self.tokens[::-1], self.probs[::-1])


@dataclass(frozen=True, slots=True)
class Control:
    """What became of one question: a pair, or why there is none.

    Of the siblings the chosen one stands first; `successes` among `n` fresh rollouts of each.
    """

    reason: Literal["pair", "no position", "tie", "unscored"]
    siblings: Siblings | None = None
    successes: tuple[int, int] = (0, 0)
    n: int = 0


def control_pairs(context: StageContext, engine: Engine) -> StageResult:
    """Draw the pairs of a control arm and write pairs.jsonl and summary.json.

    Raises:
        StageError: the cost of other stages cannot be matched.
    """
    config, seed = context.settings, context.seed("search")
    fingerprint = {
        "policy_digest": engine.policy_digest,
        "sampling": engine.sampling.model_dump(mode="json"),
        "pairs_from": config.pairs_from,
        "config": config.search.model_dump(mode="json"),
        "seed": seed,
    }
    found: list[Finished[Control]] = []
    total = None if config.match else config.num_problems
    with (
        Journal(context.folder / "journal.jsonl", fingerprint) as journal,
        ProgressReporter(total, context.progress) as watch,
    ):

        def ask(problems: list[Problem]) -> int:
            fresh = problems[len(found) :]
            done = run(
                [(p, control_search(p.id, config.search, config.pairs_from, seed)) for p in fresh],
                engine,
                context.task.verifier,
                seed=seed,
                journal=journal,
                on_skip=lambda about: Control("unscored"),
                on_progress=watch,
            )
            by_id = {finished.problem.id: finished for finished in done}
            found.extend(by_id[problem.id] for problem in fresh)
            made = sum(done.result.reason == "pair" for done in found)
            return made if config.match_by == "pairs" else _spent(found).tokens

        ask_problems(context, config.num_problems, ask)
    return _write(context, engine, found)


def _spent(found: Sequence[Finished[Control]]) -> RolloutCost:
    return sum((cost for done in found for cost in done.spent.values()), RolloutCost())


def control_search(
    problem_id: str, config: SearchConfig, arm: Arm, seed: int
) -> SearchRoutine[Control]:
    """One question of a control arm, as a generator for `pts.runtime.scheduler.run`."""
    rng = random.Random(f"{seed}|{problem_id}")
    [[rollout]] = yield [RolloutQuery((), 1, "filter")]
    ids = rollout.ids if isinstance(rollout, Rollout) else ()
    [rows] = yield from request_logprobs([LogprobQuery(ids, HEAD)])
    at = draw_position(ids, rows, 0.0 if arm == "uniform" else config.p_gap, rng)
    if at is None:
        return Control("no position")
    [[row]] = yield from request_logprobs([LogprobQuery(ids, at=(at,))])
    drawn = draw_siblings(ids, at, row, rng)
    if arm == "coin":
        return Control("pair", drawn if rng.random() < 0.5 else drawn.swapped())
    n = min(MEASURED, config.confirm_rollouts)
    answers = yield [RolloutQuery((*drawn.prefix, token), n, "confirm") for token in drawn.tokens]
    first, second = (
        sum(rollout.success for rollout in side if isinstance(rollout, Rollout)) for side in answers
    )
    if first == second:
        return Control("tie")
    if first > second:
        return Control("pair", drawn, (first, second), n)
    return Control("pair", drawn.swapped(), (second, first), n)


def draw_position(
    ids: Ids, rows: Sequence[TokenDistribution], least: float, rng: random.Random
) -> int | None:
    """A random position with 1 - q >= `least` and another token than the sampled one, or None."""
    places = [
        i
        for i, row in enumerate(rows)
        if (row.probs > 0).sum() > 1 and 1 - row.prob(ids[i]) >= least
    ]
    return rng.choice(places) if places else None


def draw_siblings(ids: Ids, at: int, row: TokenDistribution, rng: random.Random) -> Siblings:
    """The sampled token at a position and one of the others, by its whole row.

    The sibling comes from the truncated distribution with the sampled token removed and the rest
    renormalised.
    """
    own = ids[at]
    others = [(int(t), float(q)) for t, q in zip(row.ids, row.probs, strict=True) if t != own]
    tokens, probs = zip(*others, strict=True)
    sibling = rng.choices(tokens, probs)[0]
    return Siblings(ids[:at], (own, sibling), (row.prob(own), row.prob(sibling)))


def _token_pair(
    prompt: Ids, done: Finished[Control], config: SearchConfig, policy_digest: str
) -> TokenPair:
    """A pair in the search's format. Without rollouts p is unknown: the whole of [0, 1]."""
    control, siblings = done.result, done.result.siblings
    assert siblings is not None
    (good, bad), n = control.successes, control.n
    gap = newcombe(good, n, bad, n) if n else Estimate(0.0, -1.0, 1.0, 0, "none")
    margin = config.p_gap - config.indifference_margin
    return TokenPair(
        problem_id=done.problem.id,
        prompt_ids=(*prompt, *siblings.prefix),
        chosen=siblings.tokens[0],
        rejected=siblings.tokens[1],
        chosen_prob=siblings.probs[0],
        rejected_prob=siblings.probs[1],
        p_chosen=jeffreys(good, n),
        p_rejected=jeffreys(bad, n),
        gap=gap,
        pvalue=score_test(good, n, bad, n, margin) if n else 1.0,
        expected_gain=siblings.probs[1] * gap.mean,
        criterion="path",
        policy_digest=policy_digest,
    )


def _write(
    context: StageContext, engine: Engine, found: Sequence[Finished[Control]]
) -> StageResult:
    config, folder, spent = context.settings.search, context.folder, _spent(found)
    pairs = [
        _token_pair(engine.encode(done.problem), done, config, engine.policy_digest)
        for done in found
        if done.result.reason == "pair"
    ]
    reasons = Counter(done.result.reason for done in found)
    metrics: dict[str, Any] = {
        "questions": len(found),
        "pairs": len(pairs),
        "questions_without_position": reasons["no position"],
        "ties_dropped": reasons["tie"],
        "questions_unscored": reasons["unscored"],
        "rollouts": spent.rollouts,
        **sampled_counts(spent, len(found)),
        **pair_means(pairs),
    }
    write_pairs(folder / "pairs.jsonl", pairs)
    write_json(folder / "summary.json", metrics)
    return StageResult(None, metrics, (folder / "pairs.jsonl", folder / "summary.json"))


def pair_means(pairs: Sequence[TokenPair]) -> dict[str, float]:
    """Mean gap and expected gain of the pairs."""
    if not pairs:
        return {}
    return {
        "gap_mean": sum(pair.gap.mean for pair in pairs) / len(pairs),
        "expected_gain_mean": sum(pair.expected_gain for pair in pairs) / len(pairs),
    }
