"""Checks of a recipe that need its files but no model: run before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from align.data.task import Split
from align.data.tasks import build_task
from align.errors import RecipeError
from align.models.load import base_path, chat_template
from align.recipe import Recipe
from pts.errors import ConfigError


def check_recipe(recipe: Recipe) -> None:
    """Build the task, find the model and the named references.

    Raises:
        RecipeError: every fault at once.
    """
    faults: list[str] = []
    attempts: tuple[Callable[[], object], ...] = (
        lambda: base_path(recipe.model),
        lambda: chat_template(recipe.model),
        lambda: _draw_one(recipe),
    )
    for attempt in attempts:
        try:
            attempt()
        except ConfigError as error:
            faults += error.problems
    for stage in ("token_dpo", "full_dpo"):
        reference = getattr(recipe, stage).reference
        if reference != "start" and not (Path(reference) / "config.json").is_file():
            faults.append(
                f"{stage}.reference: {reference!r} holds no config.json; "
                f"give 'start' or the folder of a model"
            )
    if faults:
        raise RecipeError(*faults)


def _draw_one(recipe: Recipe) -> None:
    """Build the task and draw one problem of every split that the recipe needs."""
    task = build_task(recipe)
    splits: set[Split] = {recipe.evaluate.split}
    if recipe.stages:
        splits.add("train")
    if recipe.evaluate.temperatures:
        splits.add("dev")
    for split in sorted(splits):
        task.problems(split, 1, 0)
