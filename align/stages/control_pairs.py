"""Control arms of the search: pairs at random uncertain positions.

For each question one completion is sampled, a position is drawn among those where the sampled
token has 1 - q >= p_gap (elsewhere no token can be pivotal), and a sibling from the rest of that
position's distribution. `random` measures both siblings with fresh rollouts and takes the better
one as chosen; ties are dropped and counted. `coin` lets a coin decide and measures nothing. Neither
filters questions by difficulty nor confirms anything.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from align.context import StageContext, StageResult
from pts.algorithm.requests import SearchRoutine
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
    from pts.engines.transformers.engine import TransformersEngine


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


def control_pairs(
    context: StageContext, engine: TransformersEngine, problems: Sequence[Problem], slice_size: int
) -> StageResult:
    """Draw the pairs of a control arm and write pairs.jsonl and summary.json.

    Questions are opened in slices, and no slice once the token budget is spent.
    """
    config, seed = context.settings, context.seed("search")
    fingerprint = {
        "policy_digest": engine.policy_digest,
        "sampling": engine.sampling.model_dump(mode="json"),
        "pairs_from": config.pairs_from,
        "config": config.search.model_dump(mode="json"),
        "seed": seed,
    }
    spent, found = RolloutCost(), list[Finished[Control]]()
    size = slice_size if config.token_budget else max(1, len(problems))
    with (
        Journal(context.folder / "journal.jsonl", fingerprint) as journal,
        ProgressReporter(len(problems), context.progress) as watch,
    ):
        for start in range(0, len(problems), size):
            if config.token_budget and spent.tokens >= config.token_budget:
                break
            searches = [
                (p, control_search(p.id, config.search, config.pairs_from == "random", seed))
                for p in problems[start : start + size]
            ]
            done = run(
                searches,
                engine,
                context.task.verifier,
                seed=seed,
                journal=journal,
                on_skip=lambda about: Control("unscored"),
                on_progress=watch,
            )
            by_id = {finished.problem.id: finished for finished in done}
            found += [by_id[problem.id] for problem, _ in searches]
            spent = sum((t for f in found for t in f.spent.values()), RolloutCost())
    return _write(context, engine, found, spent)


def control_search(
    problem_id: str, config: SearchConfig, measure: bool, seed: int
) -> SearchRoutine[Control]:
    """One question of a control arm, as a generator for `pts.runtime.scheduler.run`."""
    rng = random.Random(f"{seed}|{problem_id}")
    [[rollout]] = yield [RolloutQuery((), 1, "filter")]
    ids = rollout.ids if isinstance(rollout, Rollout) else ()
    [rows] = yield [LogprobQuery(ids)]
    drawn = draw_siblings(
        ids, [row for row in rows if isinstance(row, TokenDistribution)], config.p_gap, rng
    )
    if drawn is None:
        return Control("no position")
    if not measure:
        return Control("pair", drawn if rng.random() < 0.5 else drawn.swapped())
    n = config.confirm_rollouts
    answers = yield [RolloutQuery((*drawn.prefix, token), n, "confirm") for token in drawn.tokens]
    first, second = (
        sum(rollout.success for rollout in side if isinstance(rollout, Rollout)) for side in answers
    )
    if first == second:
        return Control("tie")
    if first > second:
        return Control("pair", drawn, (first, second), n)
    return Control("pair", drawn.swapped(), (second, first), n)


def draw_siblings(
    ids: Ids, rows: Sequence[TokenDistribution], p_gap: float, rng: random.Random
) -> Siblings | None:
    """A sampled token at a random uncertain position, and a sibling drawn from the others.

    The sibling comes from the truncated distribution with the sampled token removed and the rest
    renormalised. None if no position is uncertain enough.
    """
    uncertain = [i for i, row in enumerate(rows) if 1 - row.prob(ids[i]) >= p_gap]
    if not uncertain:
        return None
    at = rng.choice(uncertain)
    row, own = rows[at], ids[at]
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
    context: StageContext,
    engine: TransformersEngine,
    found: Sequence[Finished[Control]],
    spent: RolloutCost,
) -> StageResult:
    config, folder = context.settings.search, context.folder
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
        "tokens_sampled": spent.tokens,
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
