"""Checks of a recipe that need its files but no model: run before anything is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

from align.context import BASE
from align.engines.faults import engine_faults
from align.engines.settings import EngineConfig
from align.errors import RecipeError
from align.models.adapters import is_adapter
from align.models.load import (
    SMOLLM2,
    base_path,
    chat_template,
    is_model,
)
from align.pipeline.judges import judge_faults
from align.pipeline.recipe import Recipe
from align.pipeline.source_rows import source_faults
from align.pipeline.training_faults import training_faults
from align.stages import STAGES
from align.tasks.base import Split, Task, place_of
from align.tasks.registry import build_task
from align.tasks.shortfalls import Shortfall, shortfalls
from pts.errors import ConfigError
from pts.files import context_length
from pts.types import Problem

SHOWN = 20
"""Chats that an error names; the others are counted."""
INTERVAL = 2
"""Problems that an interval of a mean needs at least."""


def check_recipe(recipe: Recipe) -> list[Shortfall]:
    """Build the task, draw what the stages will draw, find the model and the named references.

    Returns what is no fault: where the task's files hold fewer rows than a stage asks for.

    Raises:
        RecipeError: every fault at once.
    """
    faults: list[str] = []
    tasks: list[Task] = []
    attempts: tuple[Callable[[], object], ...] = (
        lambda: base_path(recipe.model),
        lambda: chat_template(recipe.model),
        lambda: tasks.append(_check_task(recipe)),
    )
    for attempt in attempts:
        try:
            attempt()
        except ConfigError as error:
            faults += error.problems
    faults += _model_faults(recipe)
    faults += _engine_faults(recipe)
    faults += training_faults(recipe)
    faults += [
        f"track: {name!r} is not installed; pip install {name}"
        for name in recipe.track
        if importlib.util.find_spec(name) is None
    ]
    faults += source_faults(recipe)
    faults += judge_faults(recipe)
    settings = {entry.name: entry.settings for entry in recipe.stages} | recipe.unused
    for name, config in settings.items():
        reference = getattr(config, "reference", "start")
        if reference != "start" and not is_model(Path(reference)):
            faults.append(
                f"{name}.reference: {reference!r} holds no config.json; "
                f"give 'start' or the folder of a model"
            )
        faults += _loss_fault(name, getattr(config, "loss", "sigmoid"))
    if faults:
        raise RecipeError(*faults)
    _check_chats(recipe, *tasks)
    return shortfalls(recipe, *tasks)


def _model_faults(recipe: Recipe) -> list[str]:
    """What the files of the base model say; where it is, and if at all, is told elsewhere."""
    try:
        folder = Path(base_path(recipe.model))
    except ConfigError:
        return []
    faults = []
    longest, wanted = context_length(folder), recipe.sampling.max_new_tokens
    if longest is not None and wanted > longest:
        faults.append(
            f"sampling.max_new_tokens: got {wanted:,}, but the model's context is {longest:,}"
        )
    if folder.is_dir() and recipe.model.path != SMOLLM2:
        needed = {"weights (*.safetensors)": "*.safetensors"}
        if not is_adapter(folder):  # which may have the tokenizer of its base model
            needed["tokenizer"] = "tokenizer*.json"
        faults += [
            f"model.path: {folder} holds no {what}; give the folder of a whole model"
            for what, pattern in needed.items()
            if not any(folder.glob(pattern))
        ]
    return faults


def sampled_policies(recipe: Recipe) -> Iterator[tuple[str, EngineConfig, str]]:
    """What a recipe samples: the key that tells the engine, the engine, and the policy's name."""
    for entry in recipe.stages:
        if recipe.draws(entry) == "problems":
            key = f"{entry.name}.engine" if entry.engine else "engine"
            yield key, recipe.engine_of(entry), recipe.start_of(entry)
    own = recipe.evaluate.engine
    makers = [entry.name for entry in recipe.stages if STAGES[entry.kind].makes == "policy"]
    for name in (BASE, *makers):
        if name not in recipe.evaluate.skip:
            yield ("evaluate.engine", own, name) if own else ("engine", recipe.engine, name)


def _engine_faults(recipe: Recipe) -> list[str]:
    """What is wrong with the engines that are used; running servers have one policy."""
    used: dict[str, EngineConfig] = {}
    policies: dict[str, dict[str, None]] = {}
    for key, config, policy in sampled_policies(recipe):
        used[key] = config
        policies.setdefault(key, {})[policy] = None
    faults = [
        f"{key}.{fault}"
        for key, config in used.items()
        for fault in engine_faults(config, recipe.sampling)
    ]
    faults += [
        f"{key}.urls: running servers have one policy, but {', '.join(policies[key])} are to be "
        "sampled; give a command, which is started for each, or urls to a stage alone"
        for key, config in used.items()
        if getattr(config, "urls", ()) and len(policies[key]) > 1
    ]
    return faults


def _loss_fault(name: str, loss: str) -> list[str]:
    """Names of losses are known to the training code, which is loaded for uncommon ones alone."""
    if loss == "sigmoid":
        return []
    from align.training.losses import loss_named

    try:
        loss_named(loss)
    except ConfigError as error:
        return [f"{name}.loss: {error}"]
    return []


def _check_chats(recipe: Recipe, task: Task) -> None:
    """Render the chats of a user's files with the tokenizer, which needs no weights."""
    named, base = place_of(task), Path(base_path(recipe.model))
    kinds = {e.kind: e.settings for e in recipe.stages if recipe.draws(e) == "demonstrations"}
    if named is None or "sft" not in kinds or not (base / "tokenizer_config.json").is_file():
        return
    from align.data.chat import render_checked
    from align.models.load import load_tokenizer

    chats = task.demonstrations(kinds["sft"].num_examples, 0)  # type: ignore[attr-defined]
    _, faults = render_checked(load_tokenizer(base, recipe.model), chats, [*map(named, chats)])
    if faults:
        more = [f"… and {len(faults) - SHOWN} more chats"] if len(faults) > SHOWN else []
        raise RecipeError(*faults[:SHOWN], *more)


def _check_task(recipe: Recipe) -> Task:
    """Build the task and draw a little of everything that the stages and evaluations will draw."""
    task = build_task(recipe.task)
    lacks: dict[str, list[str]] = {}
    for user, draw in _uses(recipe, task):
        try:
            draw()
        except ConfigError as error:
            for problem in error.problems:
                lacks.setdefault(problem, []).append(user)
    if lacks:
        raise RecipeError(
            *(f"{lack} (needed by {', '.join(users)})" for lack, users in lacks.items())
        )
    return task


def _uses(recipe: Recipe, task: Task) -> Iterator[tuple[str, Callable[[], object]]]:
    """Names of what draws from the task, each with such a draw."""
    config = recipe.evaluate
    drawing = {e.name: recipe.draws(e) for e in recipe.stages}
    problems = [name for name, what in drawing.items() if what == "problems"]
    if problems:
        yield ", ".join(problems), lambda: _draw(task, "train", 1)
    demonstrations = [name for name, what in drawing.items() if what == "demonstrations"]
    if demonstrations:
        yield ", ".join(demonstrations), lambda: _demonstration(task, demonstrations)
    for entry in recipe.stages:
        if getattr(entry.settings, "checkpoint_problems", 0):
            yield f"{entry.name}.checkpoint_problems", lambda: _draw(task, "dev", 1)
    policies = [e.name for e in recipe.stages if STAGES[e.kind].makes == "policy"]
    measured = {BASE, *policies} - {*config.skip}
    if not measured:
        return
    yield "evaluate.split", lambda: _draw(task, config.split, INTERVAL)
    if config.temperatures:
        yield "evaluate.temperatures", lambda: _draw(task, "dev", INTERVAL)
    if BASE in measured and recipe.model.few_shot_base:
        yield "model.few_shot_base", lambda: task.few_shot(_draw(task, config.split, 1)[0])


def _draw(task: Task, split: Split, least: int) -> list[Problem]:
    found = task.problems(split, least, 0)
    if len(found) < least:
        raise RecipeError(
            f"task.problems: {split!r} has {len(found)}; give {least} problems or more"
        )
    return found


def _demonstration(task: Task, users: list[str]) -> None:
    if not task.demonstrations(1, 0):
        raise RecipeError(f"task: has no demonstrations; leave {' and '.join(users)} out of stages")
