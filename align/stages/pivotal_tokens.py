"""Stage 2a: pairs for token-level DPO, by pivotal token search or by a control arm.

The search itself is the `pts` package; this stage gives it the policy, the problems and a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from align.context import StageContext, StageResult
from align.stages.control_pairs import control_pairs, pair_means
from align.stages.sampling import load_engine
from pts.runtime.results import RolloutCost
from pts.types import Problem

if TYPE_CHECKING:
    from pts.engines.transformers.engine import TransformersEngine
    from pts.runtime.search import SearchRun

SLICE = 64
"""Questions opened between two looks at the token budget."""


def run(context: StageContext) -> StageResult:
    """Search `pts.num_problems` train problems; leave pairs.jsonl and the search's own files.

    Raises:
        pts.errors.PTSError: the engine, the verifier or the journal cannot be used.
    """
    config = context.recipe.pts
    context.folder.mkdir(parents=True, exist_ok=True)
    problems = context.task.problems("train", config.num_problems, context.seed("pts questions"))
    engine = load_engine(context)
    if config.pairs_from == "search":
        return _search(context, engine, problems)
    return control_pairs(context, engine, problems, SLICE)


def _search(
    context: StageContext, engine: TransformersEngine, problems: list[Problem]
) -> StageResult:
    from pts.runtime.search import search

    config = context.recipe.pts
    budget, opened = config.token_budget, len(problems)
    for opened in range(SLICE, len(problems) + SLICE, SLICE) if budget else [len(problems)]:
        found = search(
            problems[:opened],
            engine,
            context.task.verifier,
            config.search,
            output=context.folder,
            seed=context.seed("pts"),
            progress=context.progress,
        )
        if budget and _total(found.summary.spent).tokens >= budget:
            break
    names = ("pairs.jsonl", "results.jsonl", "token_texts.json", "summary.json")
    return StageResult(
        model=None,
        metrics=_metrics(found, min(opened, len(problems))),
        outputs=tuple(context.folder / name for name in names),
    )


def _total(spent: Mapping[Any, RolloutCost]) -> RolloutCost:
    return sum(spent.values(), RolloutCost())


def _metrics(found: SearchRun, opened: int) -> dict[str, Any]:
    summary = found.summary
    total = _total(summary.spent)
    return {
        "questions": opened,
        **{f"questions_{status.replace(' ', '_')}": n for status, n in summary.questions.items()},
        "pairs": len(found.pairs),
        "pairs_proposed": sum(summary.proposed.values()),
        **{f"pairs_{criterion}": n for criterion, n in summary.confirmed.items()},
        **pair_means(found.pairs),
        "rollouts": total.rollouts,
        "tokens_sampled": total.tokens,
        "truncated_share": summary.truncated_share,
    }
