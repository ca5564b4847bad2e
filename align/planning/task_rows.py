"""What a plan reads of a recipe's own task: how many rows there are, and how long they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.data.chat import ChatIds, render_each
from align.models.load import base_path, load_tokenizer
from align.planning.assumptions import Assumed, Assumptions
from align.tasks.base import Task
from align.tasks.registry import build_task
from align.tasks.shortfalls import Shortfall, shortfalls
from pts.engines.text import encode_problem
from pts.errors import PTSError

if TYPE_CHECKING:
    from align.pipeline.recipe import Recipe

READ = 200
"""Rows whose tokens are counted."""


def read_task(recipe: Recipe) -> tuple[Recipe, Assumed, list[Shortfall]]:
    """The recipe with no more rows than its files hold, and what their lengths say.

    A task whose files are not here, or a base whose tokenizer is not, leaves the recipe and the
    assumptions as they are: a plan needs neither.
    """
    try:
        task = build_task(recipe.task)
    except PTSError:
        return recipe, Assumed(), []
    short = shortfalls(recipe, task)
    values = _lengths(recipe, task)
    source = f"mean of {READ} rows of the task at most"
    assumed = Assumed(Assumptions(**values), sources=dict.fromkeys(values, source))
    return _cut(recipe, short), assumed, short


def _cut(recipe: Recipe, short: list[Shortfall]) -> Recipe:
    """The recipe with the numbers that are there."""
    of: dict[str, dict[str, Any]] = {}
    for one in short:
        of.setdefault(one.stage, {})[one.key] = one.there
    stages = tuple(
        replace(entry, settings=entry.settings.model_copy(update=of.get(entry.name, {})))
        for entry in recipe.stages
    )
    evaluate = recipe.evaluate.model_copy(update=of.get("evaluate", {}))
    return recipe.model_copy(update={"stages": stages, "evaluate": evaluate})


def _lengths(recipe: Recipe, task: Task) -> dict[str, float]:
    """Tokens of questions and chats in the recipe's template, if the tokenizer is here."""
    found: dict[str, float] = {}
    try:
        tokenizer = load_tokenizer(Path(base_path(recipe.model)), recipe.model)
        questions = task.problems("train", READ, 0)
        prompts = [len(encode_problem(tokenizer, question)) for question in questions]
        found["prompt_tokens"] = sum(prompts) / len(prompts)
        rendered = render_each(tokenizer, task.demonstrations(READ, 0))
        rows = [row for row in rendered if isinstance(row, ChatIds)]
        tokens = sum(len(row.ids) for row in rows)
        loss = sum(sum(row.mask) for row in rows)
        if loss:
            found |= {"chat_tokens": tokens / len(rows), "loss_share": loss / tokens}
    except PTSError:
        return found
    return found
