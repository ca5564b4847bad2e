"""Stage 2a: pairs for token-level DPO, by pivotal token search or by a control arm.

The search itself is the `pts` package; this stage gives it the policy, the problems and a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from align.context import StageContext, StageResult
from align.stages.sampling import load_engine
from pts.algorithm.criteria import check_criteria
from pts.config import SearchConfig, Settings
from pts.data.rollouts import ROLLOUTS
from pts.errors import ConfigError
from pts.runtime.results import RolloutCost
from pts.types import Problem

if TYPE_CHECKING:
    from pts.engines.transformers.engine import TransformersEngine
    from pts.runtime.search import SearchRun

SLICE = 64
"""Questions opened between two looks at the token budget."""


class PTSConfig(Settings):
    """Stage 2a: pivotal token search on the stage before."""

    num_problems: int = Field(256, ge=1, le=10**9)
    """Problems offered to the filter."""
    pairs_from: Literal["search", "random", "coin"] = "search"
    """`search` is the method; the others are control arms at random positions with
    1 - q >= p_gap: `random` measures which sibling is better, `coin` does not."""
    search: SearchConfig = SearchConfig()
    """Settings of the search itself."""
    token_budget: int = Field(0, ge=0)
    """Asked after every 64 questions: no more are opened once so many tokens were generated; 0 sets
    no limit."""

    @field_validator("search")
    @classmethod
    def _makes_pairs(cls, search: SearchConfig) -> SearchConfig:
        try:
            check_criteria(search)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if search.unit == "step":
            raise ValueError(
                "unit: 'step' makes no pairs, and token DPO needs them; use 'token' here, and "
                "`pts search` to look at steps"
            )
        return search


def run(context: StageContext) -> StageResult:
    """Search `pts.num_problems` train problems; leave pairs.jsonl and the search's own files.

    Raises:
        pts.errors.PTSError: the engine, the verifier or the journal cannot be used.
    """
    config = context.settings
    context.folder.mkdir(parents=True, exist_ok=True)
    problems = context.task.problems("train", config.num_problems, context.problem_seed)
    engine = load_engine(context)
    if config.pairs_from == "search":
        return _search(context, engine, problems)
    from align.stages.control_pairs import control_pairs

    return control_pairs(context, engine, problems, SLICE)


def _search(
    context: StageContext, engine: TransformersEngine, problems: list[Problem]
) -> StageResult:
    from pts.runtime.search import search

    config = context.settings
    budget, opened = config.token_budget, len(problems)
    for opened in range(SLICE, len(problems) + SLICE, SLICE) if budget else [len(problems)]:
        found = search(
            problems[:opened],
            engine,
            context.task.verifier,
            config.search,
            output=context.folder,
            seed=context.seed("search"),
            progress=context.progress,
        )
        if budget and _total(found.summary.spent).tokens >= budget:
            break
    names = ["pairs.jsonl", "results.jsonl", "token_texts.json", "summary.json"]
    if config.search.keep != "none":
        names.append(ROLLOUTS)
    return StageResult(
        model=None,
        metrics=_metrics(found, min(opened, len(problems))),
        outputs=tuple(context.folder / name for name in names),
    )


def _total(spent: Mapping[Any, RolloutCost]) -> RolloutCost:
    return sum(spent.values(), RolloutCost())


def _metrics(found: SearchRun, opened: int) -> dict[str, Any]:
    from align.stages.control_pairs import pair_means

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
        "rollouts_bytes": summary.rollouts_bytes,
    }
