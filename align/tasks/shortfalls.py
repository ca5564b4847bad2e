"""How many rows of a recipe's own files its stages want, and how many are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from align.errors import RecipeError
from align.settings import FilesTask
from align.tasks.base import Split, Task

if TYPE_CHECKING:
    from align.pipeline.recipe import Recipe

ALL = 10**12
"""More rows than any file has."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A key that asks for more rows than there are."""

    stage: str
    """`evaluate`, or the name of a stage."""
    key: str
    wanted: int
    there: int

    def __str__(self) -> str:
        return f"{self.stage}.{self.key}: {self.wanted:,} wanted, {self.there:,} there"


def shortfalls(recipe: Recipe, task: Task) -> list[Shortfall]:
    """Where the task's files hold fewer rows than the recipe asks for; those are taken then."""
    if not isinstance(recipe.task, FilesTask):
        return []
    found: list[Shortfall] = []
    for stage, key, wanted, rows in _wanted(recipe, task):
        try:
            there = len(rows(ALL, 0))
        except RecipeError:  # told by the check
            continue
        if there < wanted:
            found.append(Shortfall(stage, key, wanted, there))
    return found


Rows: TypeAlias = Callable[[int, int], Sequence[object]]


def _wanted(recipe: Recipe, task: Task) -> Iterator[tuple[str, str, int, Rows]]:
    for entry in recipe.stages:
        drawn, settings = recipe.draws(entry), entry.settings
        if drawn == "problems" and not getattr(settings, "match", ()):
            number = getattr(settings, "num_problems", 0)
            yield entry.name, "num_problems", number, _of_split(task, "train")
        if drawn == "demonstrations":
            number = getattr(settings, "num_examples", 0)
            yield entry.name, "num_examples", number, task.demonstrations
    config = recipe.evaluate
    yield "evaluate", "problems", config.problems, _of_split(task, config.split)
    if config.temperatures:
        yield "evaluate", "dev_problems", config.dev_problems, _of_split(task, "dev")


def _of_split(task: Task, split: Split) -> Rows:
    return lambda n, seed: task.problems(split, n, seed)
