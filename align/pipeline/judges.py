"""Judges and generators of a recipe: what is wrong with them, and what asking them will cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import RecipeError
from align.judging.faults import backend_faults, source_faults
from align.judging.prompt import CHARACTERS, Case, conversation_of, write_prompt
from align.judging.settings import JudgeConfig, JudgedConfig
from align.models.load import base_path
from align.run_folder import tree_digest
from align.settings import ModelConfig
from align.tasks.registry import build_task

if TYPE_CHECKING:
    from align.context import StageEntry
    from align.pipeline.recipe import Recipe

ORDERS = 2
SHOWN_PROBLEMS = 20
"""Problems whose lengths an estimate is made of."""


def judge_faults(recipe: Recipe) -> Iterator[str]:
    """What is wrong with the judges and generators of a recipe's stages, a line a fault."""
    for entry in recipe.stages:
        config: Any = entry.settings
        if not isinstance(config, JudgedConfig) or config.judge is None:
            continue
        place = f"{entry.name}.judge"
        yield from (f"{place}.{fault}" for fault in backend_faults(config.judge))
        for generator in getattr(config, "generators", ()):
            at = f"{entry.name}.generators.{generator.name}"
            yield from (f"{at}: {fault}" for fault in source_faults(generator))


def judge_digests(settings: object) -> dict[str, str]:
    """Digests of the folders that a stage's judge and generators are loaded from, by name."""
    if not isinstance(settings, JudgedConfig) or settings.judge is None:
        return {}
    local = settings.judge.path
    named = {"judge": base_path(ModelConfig(path=local))} if local else {}
    for generator in getattr(settings, "generators", ()):
        kind, _, argument = generator.engine.partition(":")
        if kind not in ("server", "chat"):
            named[f"generators.{generator.name}"] = argument
    paths = {name: Path(path) for name, path in named.items()}
    return {name: tree_digest(path) for name, path in paths.items() if path.exists()}


def judge_costs(recipe: Recipe) -> list[str]:
    """A line for each stage that asks a judge: calls and tokens at most, if none is asked again."""
    return [
        f"{entry.name}: {line}"
        for entry in recipe.stages
        if isinstance(entry.settings, JudgedConfig) and entry.settings.judge is not None
        for line in [_cost(recipe, entry, entry.settings.judge)]
    ]


def _cost(recipe: Recipe, entry: StageEntry, judge: JudgeConfig) -> str:
    config: Any = entry.settings
    searched = recipe.rollouts_of(entry)
    asked_by = next((e.settings for e in recipe.stages if e.name == searched), config)
    questions = int(getattr(asked_by, "num_problems", 0))
    pairs = getattr(config, "judged_pairs", None)
    replies = 2 if pairs else config.judged_answers
    cases = pairs.comparisons if pairs else 1
    matched = bool(getattr(asked_by, "match", ()))
    calls = ORDERS * cases * (1 if matched else questions)
    answer = recipe.sampling.max_new_tokens
    asked = calls * (_prompt_tokens(recipe, replies) + replies * answer)
    each = " a question" if matched else ""
    return (
        f"the judge is asked {calls:,} times at most{each}, with about {asked:,} tokens of prompts "
        f"and {calls * judge.max_tokens:,} of replies at most; more where it is asked again"
    )


def _prompt_tokens(recipe: Recipe, replies: int) -> int:
    """About how many tokens a prompt has without the replies."""
    try:
        problems = build_task(recipe.task).problems("train", SHOWN_PROBLEMS, 0)
    except RecipeError:  # told by the checks of the task
        problems = []
    cases = [Case(conversation_of(problem.prompt), ("",) * replies) for problem in problems]
    lengths = [len(write_prompt(case)) for case in cases]
    return round(sum(lengths) / max(1, len(lengths)) / CHARACTERS)
