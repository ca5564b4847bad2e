"""Judges and generators of a recipe: what is wrong with them, and what asking them will cost."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import RecipeError
from align.judging.prompt import Case, conversation_of, write_prompt
from align.judging.settings import ChatEndpoint, JudgeConfig, JudgedConfig
from align.models.load import base_path
from align.run_folder import tree_digest
from align.settings import ModelConfig
from align.tasks.registry import build_task
from pts.engines.registry import engine_faults
from pts.engines.server.endpoints import base_urls
from pts.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from align.pipeline.recipe import Recipe

CHARACTERS = 4
"""Of a token, for estimates."""
ORDERS = 2
SHOWN_PROBLEMS = 20
"""Problems whose lengths an estimate is made of."""
EXTRAS = {"server": ("httpx2", "server"), "vllm": ("vllm", "vllm")}
"""Packages that engines need, and the extras that install them."""


def judge_faults(recipe: Recipe) -> Iterator[str]:
    """What is wrong with the judges and generators of a recipe's stages, a line a fault."""
    for entry in recipe.stages:
        config: Any = entry.settings
        if not isinstance(config, JudgedConfig) or config.judge is None:
            continue
        place = f"{entry.name}.judge"
        yield from (f"{place}.{fault}" for fault in _backend_faults(config.judge))
        for generator in getattr(config, "generators", ()):
            at = f"{entry.name}.generators.{generator.name}"
            if generator.url:
                faults = [*_endpoint_faults(generator.url, generator.endpoint)]
            else:
                faults = engine_faults(generator.engine, generator.options)
                faults += _missing(*EXTRAS.get(generator.engine.partition(":")[0], ()))
            yield from (f"{at}: {fault}" for fault in faults)


def _backend_faults(judge: JudgeConfig) -> Iterator[str]:
    if judge.path:
        try:
            base_path(ModelConfig(path=judge.path))
        except ConfigError as error:
            yield from (fault.removeprefix("model.") for fault in error.problems)
        return
    yield from _endpoint_faults(judge.url, judge)


def _endpoint_faults(url: str, endpoint: ChatEndpoint) -> Iterator[str]:
    variable = endpoint.key_variable
    try:
        base_urls([url], variable or "an environment variable")
    except ConfigError as error:
        yield from (f"url: {fault}" for fault in error.problems)
    if variable and not os.environ.get(variable):
        yield (
            f"key_variable: the environment variable {variable} is not set; set it to the API key"
        )
    yield from (f"url: {fault}" for fault in _missing(*EXTRAS["server"]))


def _missing(package: str = "", extra: str = "") -> list[str]:
    if not package or importlib.util.find_spec(package):
        return []
    return [str(MissingExtra(package, extra))]


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
        for line in [_cost(recipe, entry.settings, entry.settings.judge)]
    ]


def _cost(recipe: Recipe, config: Any, judge: JudgeConfig) -> str:
    pairs = getattr(config, "judged_pairs", None)
    replies = 2 if pairs else config.judged_answers
    cases = pairs.comparisons if pairs else 1
    matched = bool(config.match)
    calls = ORDERS * cases * (1 if matched else config.num_problems)
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
