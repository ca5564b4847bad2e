"""From a recipe's `task` section to a `Task`: word problems, reasoning-gym, or your own files."""

from __future__ import annotations

from align.data.task import Task
from align.recipe import FilesTask, ReasoningGymTask, Recipe
from pts.config import parse_settings


def build_task(recipe: Recipe) -> Task:
    """The task that a recipe names. Its data files are read and checked here, before any model.

    Raises:
        ConfigError: wrong options, or every fault of the data files at once.
        MissingExtra: an optional package is not installed.
    """
    task = recipe.task
    if isinstance(task, FilesTask):
        from align.data.files import FileTask

        return FileTask(task)
    if isinstance(task, ReasoningGymTask):
        from align.data.reasoning import GymTask

        return GymTask(task)
    from align.data.word_problems import WordProblems, WordProblemsConfig

    parse_settings(WordProblemsConfig, task.options, "task.options")
    return WordProblems(**task.options)
