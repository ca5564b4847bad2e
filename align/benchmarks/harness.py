"""Tasks of lm-evaluation-harness on our policies (extra `lm-eval`): its prompts, its numbers.

    run_tasks(Path("runs/a/sft/model"), ["arc_easy"], HarnessOptions(limit=100), Path("runs/h"))

The harness loads its task, asks and scores; ours are the loading of the policy (adapters merged,
safetensors only, no remote code) and the files. Its own data come from the hub unless a task's file
says otherwise. An interrupted run begins anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from align.errors import StageError
from pts.config import SamplingConfig, Settings
from pts.engines.transformers.engine import TransformersEngine
from pts.errors import MissingExtra
from pts.files import replacing, write_json


class HarnessOptions(Settings):
    """What a task of the harness is told."""

    limit: int = Field(0, ge=0)
    """Questions of a task at most; 0 asks all."""
    shots: int | None = Field(None, ge=0)
    """Examples; the task's own number if not given."""
    chat: bool = False
    """Ask in the model's chat template."""


def run_tasks(
    policy: Path,
    tasks: Sequence[str],
    options: HarnessOptions,
    output: Path,
    include: Path | None = None,
) -> Mapping[str, Mapping[str, Any]]:
    """Run tasks; write samples_TASK.jsonl, for `align compare`, and results.json; return these.

    Args:
        policy: folder of a model or adapter.
        tasks: names that the harness knows.
        output: folder to write.
        include: folder of task files of your own.

    Raises:
        MissingExtra: lm_eval is not installed.
        StageError: the harness has no such task.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import handle_non_serializable
    except ImportError:
        raise MissingExtra("lm_eval", "lm-eval") from None
    manager = TaskManager(include_path=str(include) if include else None)
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise StageError(
            f"lm-eval:{unknown[0]}: lm-evaluation-harness has no such task; give --include the "
            "folder of its file, or see lm_eval ls tasks"
        )
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
