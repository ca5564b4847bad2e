"""The choice among a stage's checkpoints: each is measured on problems of the dev split.

A copy of the best one is kept until the stage is finished, whose policy it becomes. What was
measured stands in `checkpoints.jsonl`: a stage that is killed measures the rest alone, and one that
is killed in its last save still has the copy.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import TrainerCallback

from align.context import StageContext
from align.errors import StageError
from align.training.places import BEST, DEV_ANSWERS

MEASURED = "checkpoints.jsonl"

Measure = Callable[[Any, Path], tuple[float, int]]
"""Accuracy of a model, and the tokens that it took; its answers are journalled in a folder."""


class CheckpointChoice(TrainerCallback):
    """Measures every checkpoint as it is saved, and keeps the best, the earliest of equals."""

    def __init__(self, folder: Path, measure: Measure) -> None:
        """`folder` is the stage's."""
        self._folder, self._measure = folder, measure

    @property
    def measured(self) -> list[dict[str, Any]]:
        """Step, accuracy and tokens of each checkpoint so far."""
        file = self._folder / MEASURED
        lines = file.read_text(encoding="utf-8").splitlines(True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    @property
    def best(self) -> dict[str, Any]:
        """What was measured of the best one."""
        return max(self.measured, key=lambda one: one["accuracy"])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget what was measured behind the checkpoint that is continued: it is made again."""
        kept = [one for one in self.measured if one["step"] <= state.global_step]
        text = "".join(json.dumps(one) + "\n" for one in kept)
        (self._folder / MEASURED).write_text(text, encoding="utf-8")
        if state.global_step:  # it may have been saved, and the stage killed before it was measured
            self._see(state.global_step, kwargs["model"], Path(args.output_dir))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure what was saved."""
        self._see(state.global_step, kwargs["model"], Path(args.output_dir))

    def _see(self, step: int, model: Any, checkpoints: Path) -> None:
        """Measure a checkpoint once; its copy is there before the line that tells of it."""
        known = self.measured
        if any(one["step"] == step for one in known):
            return
        answers = self._folder / DEV_ANSWERS / str(step)
        accuracy, tokens = self._measure(model, answers)
        better = not known or accuracy > self.best["accuracy"]
        if better:
            self._copy(checkpoints / f"checkpoint-{step}", step)
        with (self._folder / MEASURED).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "accuracy": accuracy, "tokens": tokens}) + "\n")
        if better:
            for other in (self._folder / BEST).iterdir():
                if other.name != str(step):
                    shutil.rmtree(other)
        shutil.rmtree(answers, ignore_errors=True)

    def _copy(self, checkpoint: Path, step: int) -> None:
        target = self._folder / BEST / str(step)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for file in checkpoint.glob("*.safetensors"):
            shutil.copy2(file, target)

    def take(self, put: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Give `put` the best weights, file by file; what the manifest says of the choice."""
        best = self.best
        files = sorted((self._folder / BEST / str(best["step"])).glob("*.safetensors"))
        if not files:
            raise StageError(
                f"{self._folder / BEST}: step {best['step']} is missing; delete this stage's "
                "folder to start the stage anew"
            )
        for file in files:
            put(load_file(file))
        return {
            "checkpoint": best["step"],
            "checkpoint_accuracy": best["accuracy"],
            "checkpoints": len(self.measured),
            "dev_tokens": sum(one["tokens"] for one in self.measured),
        }


def on_dev(context: StageContext, tokenizer: Any) -> Measure:
    """Accuracy on `checkpoint_problems` problems of the dev split, one answer each, sampled as the
    recipe says.

    Raises:
        StageError: the task has fewer.
    """
    from pts.engines.transformers.engine import TransformersEngine
    from pts.runtime.sample import sample

    wanted = context.settings.checkpoint_problems
    problems = context.task.problems("dev", wanted, context.seed("checkpoints"))

    def measure(model: Any, answers: Path) -> tuple[float, int]:
        trained = model.training
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        engine = TransformersEngine(plain, tokenizer, context.recipe.sampling)
        try:
            found = sample(
                problems, engine, context.task.verifier, n=1, output=answers,
                seed=context.seed("checkpoints"), progress=False,
            )  # fmt: skip
        finally:
            model.train(trained)
        graded = [rollout.success for one in found for rollout in one.rollouts]
        if not graded:
            raise StageError(
                f"{context.entry.name}.checkpoint_problems: no answer to {len(problems)} dev "
                "problems could be judged"
            )
        return sum(graded) / len(graded), sum(one.cost.tokens for one in found)

    return measure
