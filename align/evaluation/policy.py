"""Evaluation after a stage: held-out problems, greedy and sampled, with intervals.

    eval/STAGE/items.jsonl, summary.json    what was measured (see `align.evaluation.records`)
    eval/STAGE/CONDITION/journal.jsonl      every rollout; a killed evaluation continues from them

A base model is given a plain-text few-shot prompt, since it has not learnt to chat. It stops at
its end-of-text token and where it begins a question of its own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.context import StageResult, seed_of
from align.evaluation.evaluate import EvalSettings, Load, evaluate
from align.evaluation.records import EvalSummary, write_evaluation
from align.models.load import load_policy
from pts.config import SamplingConfig
from pts.engines.base import Engine
from pts.engines.digest import model_digest
from pts.types import Problem

if TYPE_CHECKING:
    from align.pipeline.recipe import Recipe
    from align.tasks.base import Task
    from pts.engines.transformers.engine import TransformersEngine


def measure(
    recipe: Recipe,
    task: Task,
    name: str,
    policy: Path,
    folder: Path,
    before: Path | None = None,
    progress: bool = False,
) -> StageResult:
    """Measure a policy on the recipe's held-out problems; with `before`, also its KL to that one.

    Raises:
        StageError, PTSError: nothing could be judged, or the model could not be sampled.
    """
    config = recipe.evaluate
    few_shot = name == "base" and recipe.model.few_shot_base
    problems = task.problems(config.split, config.problems, config.seed)
    dev = task.problems("dev", config.dev_problems, config.seed) if config.temperatures else []
    if few_shot:
        problems = [_few_shot(task, problem) for problem in problems]
        dev = [_few_shot(task, problem) for problem in dev]
    evaluation = evaluate(
        loader(policy, recipe, few_shot),
        problems,
        task.verifier,
        EvalSettings(
            recipe.sampling,
            config.samples,
            seed_of(recipe.seed, "evaluation"),
            config.temperatures,
            progress=progress,
        ),
        folder,
        stage=name,
        before=loader(before, recipe) if before else None,
        dev=dev,
    )
    return StageResult(
        model=None,
        metrics=_metrics(evaluation.summary),
        outputs=write_evaluation(evaluation, folder),
    )


def loader(path: Path, recipe: Recipe, few_shot: bool = False) -> Load:
    """Engines of one policy, one per sampling; its weights are read once, at the first use."""
    loaded: list[TransformersEngine] = []

    def load(sampling: SamplingConfig) -> Engine:
        from pts.engines.transformers.engine import TransformersEngine

        if loaded:
            model, tokenizer = loaded[0].model, loaded[0].tokenizer
        else:
            model, tokenizer = load_policy(path, recipe.model)
        engine = TransformersEngine(
            model,
            tokenizer,
            sampling,
            stop_ids=_few_shot_stops(model, tokenizer) if few_shot else None,
            policy_digest=loaded[0].policy_digest if loaded else model_digest(path),
        )
        loaded[:] = [engine]
        return engine

    return load


def _few_shot_stops(model: Any, tokenizer: Any) -> frozenset[int]:
    """The stop ids, and the token "Question" where it is one: the next example begins there."""
    from pts.engines.text import stop_ids_of

    question = tokenizer("Question", add_special_tokens=False)["input_ids"]
    return stop_ids_of(model, tokenizer) | (set(question) if len(question) == 1 else set())


def _few_shot(task: Task, problem: Problem) -> Problem:
    """The few-shot form under the problem's own id, so that items pair across stages."""
    return dataclasses.replace(task.few_shot(problem), id=problem.id)


def _metrics(summary: EvalSummary) -> dict[str, Any]:
    """What the manifest and the console show."""
    metrics = {
        "problems": summary.problems,
        "unscored": summary.unscored,
        "greedy": summary.greedy.mean,
        "sampled": summary.sampled.mean,
        f"pass@{summary.samples}": summary.pass_at_k.mean,
        "entropy": summary.entropy.mean,
        "tokens a completion": summary.length.mean,
        "unfinished": summary.unfinished.mean,
    }
    if summary.kl:
        metrics["KL to the stage before"] = summary.kl.mean
    if summary.best:
        metrics["best temperature"] = summary.best.temperature
        metrics["at the best temperature"] = summary.best.accuracy.mean
    return metrics
