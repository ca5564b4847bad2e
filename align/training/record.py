"""What a training stage leaves in its folder for itself: with what it was begun, and that it is
finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.context import StageContext, StageResult
from align.errors import StageError
from align.settings import TrainingConfig
from align.training.places import BEST, DEV_ANSWERS
from pts.files import write_json

CHECKPOINTS = "checkpoints"
_SETTINGS = "settings.json"
_FINISHED = "finished.json"


def begin(context: StageContext, config: TrainingConfig) -> StageResult | None:
    """Claim the stage's folder; the result if all but the return was done before.

    Raises:
        StageError: the folder holds the beginnings of the stage with other settings.
    """
    recipe = context.recipe
    settings = {
        "stage": config.model_dump(mode="json"),
        "seed": recipe.seed,
        "model": recipe.model.model_dump(mode="json", exclude={"path"}),
        "task": recipe.task.model_dump(mode="json"),
        "sampling": recipe.sampling.model_dump(mode="json"),
        **context.digests,
    }
    file = context.folder / _SETTINGS
    context.folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write_json(file, settings)
    elif (old := read_stored(file)) != settings:
        keys = sorted(old.keys() | settings.keys())
        changed = ", ".join(key for key in keys if old.get(key) != settings.get(key))
        raise StageError(
            f"{context.folder}: begun with other settings or files ({changed}); "
            "restore them, or delete this folder to start the stage anew"
        )
    return finished(context)


def close(context: StageContext, metrics: dict[str, Any], files: Sequence[str]) -> None:
    """Note that the stage is finished, its policy in place, and remove the checkpoints: not before,
    or a stage that is killed here could not go on."""
    write_json(context.folder / _FINISHED, {"metrics": metrics, "files": [*files]})
    _remove_checkpoints(context.folder)


def finished(context: StageContext) -> StageResult | None:
    """The result of a stage that is finished."""
    record = context.folder / _FINISHED
    model = context.folder / "model"
    if not record.is_file() or not model.is_dir():
        return None
    data = read_stored(record)
    _remove_checkpoints(context.folder)
    files = tuple(context.folder / name for name in data["files"])
    return StageResult(model=model, metrics=data["metrics"], outputs=(model, *files))


def _remove_checkpoints(folder: Path) -> None:
    for name in (CHECKPOINTS, BEST, DEV_ANSWERS):
        shutil.rmtree(folder / name, ignore_errors=True)


def read_stored(file: Path) -> dict[str, Any]:
    """What a stage has left for itself in a JSON file.

    Raises:
        StageError: the file is damaged.
    """
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise StageError(
            f"{file}: damaged ({error}); delete this stage's folder to start the stage anew"
        ) from None
