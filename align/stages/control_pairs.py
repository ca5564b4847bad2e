"""The stage of a control arm: pairs that were not searched, at a cost that can be matched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from align.context import StageContext, StageResult
from align.controls.cliffs import cliff_search
from align.controls.drawn import drawn_search
from align.controls.pairs import Arm, Control, Measured
from align.ledger import sampled_counts
from align.stages.sampling import ask_problems
from pts.algorithm.requests import SearchRoutine
from pts.config import SearchConfig
from pts.data.pairs import write_pairs
from pts.files import write_json
from pts.runtime.journal import Journal
from pts.runtime.progress import ProgressReporter
from pts.runtime.results import RolloutCost
from pts.runtime.scheduler import Finished, run
from pts.stats import jeffreys, newcombe, score_test
from pts.types import Estimate, Ids, Problem, TokenPair

if TYPE_CHECKING:
    from pts.engines.base import Engine


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
                [(p, _search(p.id, config.search, config.pairs_from, seed)) for p in fresh],
                engine,
                context.task.verifier,
                seed=seed,
                journal=journal,
                on_skip=lambda about: Control("unscored"),
                on_progress=watch,
            )
            by_id = {finished.problem.id: finished for finished in done}
            found.extend(by_id[problem.id] for problem in fresh)
            return _made(found) if config.match_by == "pairs" else _spent(found).tokens

        ask_problems(context, config.num_problems, ask)
    return _write(context, engine, found)


def _spent(found: Sequence[Finished[Control]]) -> RolloutCost:
    return sum((cost for done in found for cost in done.spent.values()), RolloutCost())


def _search(problem_id: str, config: SearchConfig, arm: Arm, seed: int) -> SearchRoutine[Control]:
    if arm == "cliffs":
        return cliff_search()
    return drawn_search(problem_id, config, arm, seed)


def _made(found: Sequence[Finished[Control]]) -> int:
    return sum(len(done.result.pairs) for done in found)


def _token_pair(
    prompt: Ids, problem_id: str, made: Measured, config: SearchConfig, policy_digest: str
) -> TokenPair:
    """A pair in the search's format. Without rollouts p is unknown: the whole of [0, 1]."""
    siblings = made.siblings
    sides = (made.chosen.successes, made.chosen.n, made.rejected.successes, made.rejected.n)
    known = made.chosen.n > 0
    gap = newcombe(*sides) if known else Estimate(0.0, -1.0, 1.0, 0, "none")
    margin = config.p_gap - config.indifference_margin
    return TokenPair(
        problem_id=problem_id,
        prompt_ids=(*prompt, *siblings.prefix),
        chosen=siblings.tokens[0],
        rejected=siblings.tokens[1],
        chosen_prob=siblings.probs[0],
        rejected_prob=siblings.probs[1],
        p_chosen=jeffreys(*sides[:2]),
        p_rejected=jeffreys(*sides[2:]),
        gap=gap,
        pvalue=score_test(*sides, margin) if known else 1.0,
        expected_gain=siblings.probs[1] * gap.mean,
        criterion="path",
        policy_digest=policy_digest,
    )


def _write(
    context: StageContext, engine: Engine, found: Sequence[Finished[Control]]
) -> StageResult:
    config, folder, spent = context.settings.search, context.folder, _spent(found)
    pairs = [
        _token_pair(
            engine.encode(done.problem), done.problem.id, made, config, engine.policy_digest
        )
        for done in found
        for made in done.result.pairs
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
