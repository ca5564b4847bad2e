"""From a recipe's `task` section to a `Task`: word problems, reasoning-gym, or your own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from align.errors import RecipeError
from align.settings import FilesTask, ReasoningGymTask, TaskConfig
from align.tasks.base import Split, Task
from pts.config import parse_settings
from pts.errors import did_you_mean
from pts.types import Problem


def build_task(task: TaskConfig) -> Task:
    """The task that a recipe names. Its data files are read and checked here, before any model.

    Raises:
        ConfigError: wrong options, or every fault of the data files at once.
        MissingExtra: an optional package is not installed.
    """
    if isinstance(task, FilesTask):
        from align.tasks.files import FileTask

        return FileTask(task)
    if isinstance(task, ReasoningGymTask):
        from align.tasks.reasoning_gym import GymTask

        return GymTask(task)
    from align.tasks.word_problems.task import WordProblems, WordProblemsConfig

    parse_settings(WordProblemsConfig, task.options, "task.options")
    return WordProblems(**task.options)


def write_problems(task: TaskConfig, split: str, count: int, seed: int, path: Path) -> int:
    """Write `count` problems of a split as JSON lines that `pts` reads; return how many there were.

    `prompt` is text where there is one user's turn, and a list of messages elsewhere.

    Raises:
        RecipeError: there is no such split. Else as `build_task` and `Task.problems` do.
    """
    known: dict[str, Split] = {name: name for name in get_args(Split)}
    if split not in known:
        hint = did_you_mean(split, known) or f"; known: {', '.join(known)}"
        raise RecipeError(f"split: {split!r} is none{hint}")
    asked = build_task(task).problems(known[split], count, seed)
    lines = (json.dumps(_row(problem), ensure_ascii=False) + "\n" for problem in asked)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
    return len(asked)


def _row(problem: Problem) -> dict[str, object]:
    prompt: object = problem.prompt
    if not isinstance(problem.prompt, str):
        turns = [{"role": turn.role, "content": turn.content} for turn in problem.prompt]
        prompt = turns[0]["content"] if [t["role"] for t in turns] == ["user"] else turns
    return {"id": problem.id, "prompt": prompt, "reference": problem.reference}
