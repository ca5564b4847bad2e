"""Stage 2a: pairs for token-level DPO, by pivotal token search or by a control arm.

The search itself is the `pts` package; this stage gives it the policy, the problems and a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from align.context import StageContext, StageResult
from align.ledger import sampled_counts
from align.models.engines import load_engine
from align.stages.sampling import ask_problems
from pts.algorithm.criteria import check_criteria
from pts.config import SearchConfig, Settings
from pts.data.rollouts import ROLLOUTS
from pts.errors import ConfigError
from pts.runtime.results import RolloutCost
from pts.types import Problem

if TYPE_CHECKING:
    from pts.engines.base import Engine
    from pts.runtime.search import SearchRun


class PTSConfig(Settings):
    """Stage 2a: pivotal token search on the stage before."""

    num_problems: int = Field(256, ge=1, le=10**9)
    """Problems offered to the filter."""
    pairs_from: Literal["search", "uncertain", "uniform", "coin", "cliffs"] = "search"
    """`search` is the method; the others are control arms, a pair a question: `uncertain` draws a
    position with 1 - q >= p_gap (the search's own bound) and measures p of both siblings; `uniform`
    does so at any position; `coin` draws uncertain ones and decides by a coin; `cliffs` measures
    every token of a completion, as published (arXiv 2606.25524), with several pairs a question."""
    search: SearchConfig = SearchConfig()
    """Settings of the search itself."""
    match: tuple[str, ...] = ()
    """Stages whose generated tokens this one spends too, all together, within 2 %: it asks as many
    questions as that allows, whatever num_problems says."""
    match_by: Literal["generated_tokens", "pairs"] = "generated_tokens"
    """What is matched; a control arm can make as many `pairs` as the named stages made."""

    @model_validator(mode="after")
    def _counts_pairs(self) -> PTSConfig:
        if self.match_by == "pairs" and self.pairs_from == "search":
            raise ValueError(
                "match_by: got 'pairs', but the pairs of a search are selected at its end; match "
                "'generated_tokens', or take another pairs_from"
            )
        if self.match_by == "pairs" and self.pairs_from == "cliffs":
            raise ValueError(
                "match_by: got 'pairs', but cliffs make several pairs a question; set num_problems"
            )
        return self

    @field_validator("search")
    @classmethod
    def _makes_pairs(cls, search: SearchConfig) -> SearchConfig:
        try:
            check_criteria(search)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if search.paths == 0:
            raise ValueError(
                "paths: got 0, which searches given completions alone, and a task gives none; "
                "give 1 or more"
            )
        if search.unit == "step":
            raise ValueError(
                "unit: 'step' makes no pairs, and token DPO needs them; use 'token' here, and "
                "`pts search` to look at steps"
            )
        return search


def run(context: StageContext) -> StageResult:
    """Search `pts.num_problems` train problems; leave pairs.jsonl and the search's own files.

    Raises:
        StageError: the cost of other stages cannot be matched.
        pts.errors.PTSError: the engine, the verifier or the journal cannot be used.
    """
    context.folder.mkdir(parents=True, exist_ok=True)
    with load_engine(context) as engine:
        if context.settings.pairs_from == "search":
            return _search(context, engine)
        from align.stages.control_pairs import control_pairs

        return control_pairs(context, engine)


def _search(context: StageContext, engine: Engine) -> StageResult:
    from pts.runtime.search import search

    found: list[SearchRun] = []
    questions: list[Problem] = []

    def ask(problems: list[Problem]) -> int:
        questions[:] = problems
        found[:] = [
            search(
                problems,
                engine,
                context.task.verifier,
                context.settings.search,
                output=context.folder,
                seed=context.seed("search"),
                progress=context.progress,
            )
        ]
        return _total(found[0].summary.spent).tokens

    ask_problems(context, context.settings.num_problems, ask)
    names = ["pairs.jsonl", "results.jsonl", "token_texts.json", "summary.json"]
    if context.settings.search.keep != "none":
        names.append(ROLLOUTS)
    return StageResult(
        model=None,
        metrics=_metrics(found[0], len(questions)),
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
        **sampled_counts(total, opened),
        **{f"questions_{status.replace(' ', '_')}": n for status, n in summary.questions.items()},
        "pairs": len(found.pairs),
        "pairs_proposed": sum(summary.proposed.values()),
        **{f"pairs_{criterion}": n for criterion, n in summary.confirmed.items()},
        **pair_means(found.pairs),
        "rollouts": total.rollouts,
        "truncated_share": summary.truncated_share,
        "rollouts_bytes": summary.rollouts_bytes,
    }
