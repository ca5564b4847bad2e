"""Checks of a recipe that need its files but no model: run before anything is loaded."""

from __future__ import annotations

from pathlib import Path

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
    for attempt in (
        lambda: base_path(recipe.model),
        lambda: chat_template(recipe.model),
        lambda: build_task(recipe),
    ):
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
