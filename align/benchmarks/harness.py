"""Tasks of lm-evaluation-harness on our policies (extra `lm-eval`): its prompts, its numbers.

    names = ["arc_easy"]
    run_tasks(Path("runs/a/sft/model"), names, find_tasks(names), HarnessOptions(), Path("runs/h"))

The harness loads its task, asks and scores; ours are the loading of the policy (adapters merged,
safetensors only, no remote code) and the files. Its own data come from the hub unless a task's file
says otherwise. An interrupted run begins anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from align.errors import RecipeError
from pts.config import SamplingConfig, Settings
from pts.engines.transformers.engine import TransformersEngine
from pts.errors import MissingExtra, did_you_mean
from pts.files import replacing, write_json

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager


class HarnessOptions(Settings):
    """What a task of the harness is told."""

    limit: int = Field(0, ge=0)
    """Questions of a task at most; 0 asks all."""
    shots: int | None = Field(None, ge=0)
    """Examples; the task's own number if not given."""
    chat: bool = False
    """Ask in the model's chat template."""


def find_tasks(tasks: Sequence[str], include: Path | None = None) -> TaskManager:
    """The harness' index of tasks, which holds all of these; no model is needed.

    Args:
        tasks: names that the harness knows.
        include: folder of task files of your own.

    Raises:
        MissingExtra: lm_eval is not installed.
        RecipeError: every task that the harness does not have.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MissingExtra("lm_eval", "lm-eval") from None
    manager = TaskManager(include_path=str(include) if include else None)
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise RecipeError(
            *(
                f"lm-eval:{task}: lm-evaluation-harness has no such task"
                f"{did_you_mean(task, manager.all_tasks)}; give --include the folder of its file, "
                "or see lm_eval ls tasks"
                for task in unknown
            )
        )
    return manager


def run_tasks(
    policy: Path, tasks: Sequence[str], manager: TaskManager, options: HarnessOptions, output: Path
) -> Mapping[str, Mapping[str, Any]]:
    """Run tasks; write samples_TASK.jsonl, for `align compare`, and results.json; return these.

    Args:
        policy: folder of a model or adapter.
        tasks: names in the index.
        manager: the index, of `find_tasks`.
        options: how they are asked.
        output: folder to write.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.utils import handle_non_serializable

    engine = TransformersEngine.load(policy, SamplingConfig())
    device = str(next(engine.model.parameters()).device)
    model = HFLM(pretrained=engine.model, tokenizer=engine.tokenizer, device=device, batch_size=8)
    found = simple_evaluate(
        model=model, tasks=list(tasks), task_manager=manager, limit=options.limit or None,
        num_fewshot=options.shots, apply_chat_template=options.chat, log_samples=True,
    )  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    for task, samples in found["samples"].items():
        with replacing(output / f"samples_{task}.jsonl") as file:
            for sample in samples:
                file.write(json.dumps(sample, default=handle_non_serializable) + "\n")
    results: dict[str, Any] = json.loads(
        json.dumps(found["results"], default=handle_non_serializable)
    )
    write_json(output / "results.json", results)
    return results


def to_text(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a task and metric, with the harness' own standard error."""
    lines = []
    for task, values in results.items():
        for name, value in values.items():
            metric, _, kept = name.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, int | float) or not kept:
                continue
            error = values.get(f"{metric}_stderr,{kept}")
            spread = f" ± {error:.4f}" if isinstance(error, float) else ""
            lines.append(f"{task:24} {metric} ({kept}): {value:.4f}{spread}")
    return "\n".join(lines)
