"""Trackers that follow a training besides metrics.jsonl: transformers' own integrations of
TensorBoard, trackio and wandb, told where to write and under which name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from align.context import StageContext
from align.training.ranks import rank

TRACKING = "tracking"
"""Folder of the trackers in a run's folder."""


def reporting(context: StageContext) -> dict[str, Any]:
    """Training arguments that name the recipe's trackers, the run and the project; rank 0 alone
    reports. The trackers take their folders from the environment, which is set here."""
    recipe = context.recipe
    if not recipe.track or rank() != 0:
        return {"report_to": "none"}
    folder = context.folder.parent.resolve() / TRACKING
    os.environ |= {
        "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard" / context.entry.name),
        "TRACKIO_DIR": str(folder / "trackio"),
        "WANDB_DIR": str(folder),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in (("MODE", "offline"), ("PROJECT", recipe.name), ("SILENT", "true")):
        os.environ.setdefault(f"WANDB_{name}", value)
    return {
        "report_to": list(dict.fromkeys(recipe.track)),
        "run_name": f"{recipe.name}-{context.entry.name}",
        "project": recipe.name,
        "trackio_space_id": None,  # older releases of transformers would open a Space on the hub
    }


@contextmanager
def tracked(context: StageContext) -> Iterator[None]:
    """Context: a training. What trackers print goes to standard error. transformers leaves wandb's
    run open for what follows, which here is the training of another stage."""
    if not context.recipe.track:
        yield
        return
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        wandb = sys.modules.get("wandb") if "wandb" in context.recipe.track else None
        if wandb is not None and wandb.run is not None:
            wandb.finish()
