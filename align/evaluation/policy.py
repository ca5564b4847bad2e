"""Evaluation after a stage: held-out problems, greedy and sampled, with intervals.

    eval/STAGE/items.jsonl, summary.json    what was measured (see `align.evaluation.records`)
    eval/STAGE/CONDITION/journal.jsonl      every rollout; a killed evaluation continues from them

A base model is given a plain-text few-shot prompt, since it has not learnt to chat. It stops at
its end-of-text token and where it begins a question of its own.

Answers come from the recipe's engine. Entropy and KL need the whole row of every token, which no
server gives at a bearable cost: a teacher-forced pass of transformers makes them, after the last
answer.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.context import StageResult, seed_of
from align.evaluation.evaluate import EvalSettings, evaluate
from align.evaluation.records import EvalSummary, write_evaluation
from align.models.engines import loader, policy_engines
from pts.config import SamplingConfig
from pts.engines.base import Engine
from pts.types import Problem

if TYPE_CHECKING:
    from align.pipeline.recipe import Recipe
    from align.tasks.base import Task


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
    engine = config.engine or recipe.engine
    with ExitStack() as stack:
        load = stack.enter_context(
            policy_engines(
                engine, policy, recipe.model, folder, few_shot=few_shot, progress=progress
            )
        )
        scorer = load if engine.kind == "transformers" else loader(policy, recipe.model, few_shot)

        def score(sampling: SamplingConfig) -> Engine:
            if scorer is not load:
                stack.close()  # what was sampled from makes room
            return scorer(sampling)

        evaluation = evaluate(
            load,
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
            score=score,
            before=loader(before, recipe.model) if before else None,
            dev=dev,
        )
    return StageResult(
        model=None,
        metrics=_metrics(evaluation.summary),
        outputs=write_evaluation(evaluation, folder),
    )


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
