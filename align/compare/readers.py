"""Which format a path has, and its reader."""

from __future__ import annotations

import json
from pathlib import Path

from align.compare.evaluations import read_evaluation_items
from align.compare.inspect_logs import read_log
from align.compare.lm_eval import read_samples
from align.compare.records import Readings
from align.errors import CompareError


def read_results(path: Path) -> Readings:
    """All tasks and measures of one model.

    Args:
        path: an evaluation of `align run` (RUN/eval/STAGE), a samples_*.jsonl of
            lm-evaluation-harness, a log of inspect_ai (.json, .eval), or a folder of such files.

    Raises:
        CompareError, StageError, DataError: there is nothing that can be read, a file is damaged,
            or two files of the folder have the same task.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise CompareError(f"{path}: no such file or folder")
    if path.name == "items.jsonl":
        return read_evaluation_items(path)
    if path.suffix == ".jsonl":
        return _some(path, read_samples(path))
    if path.suffix in (".json", ".eval"):
        return _some(path, read_log(path))
    raise CompareError(
        f"{path}: unknown kind of file; give RUN/eval/STAGE, samples_*.jsonl of "
        "lm-evaluation-harness, or a .json or .eval log of inspect_ai"
    )


def _folder(folder: Path) -> Readings:
    if (folder / "items.jsonl").is_file():
        return read_evaluation_items(folder)
    stages = sorted(path.parent.name for path in folder.glob("eval/*/items.jsonl"))
    if stages:
        raise CompareError(
            f"{folder}: holds the evaluations {', '.join(stages)}; name one: "
            f"{folder / 'eval' / stages[-1]}"
        )
    files = sorted(path for path in folder.rglob("*") if _is_results(path))
    if not files:
        raise CompareError(f"{folder}: no samples_*.jsonl, log of inspect_ai or evaluation in it")
    found: Readings = {}
    for file in files:
        for key, reading in read_results(file).items():
            if key in found:
                raise CompareError(
                    f"{folder}: {found[key].source} and {reading.source} have the same task "
                    f"({key[0]}); name one of the files, or put them into folders of their own"
                )
            found[key] = reading
    return found


def _is_results(path: Path) -> bool:
    """Whether a file of a folder is taken for results; lm_eval's results_*.json are summaries."""
    if path.suffix == ".eval" or (path.suffix == ".jsonl" and path.name.startswith("samples_")):
        return path.is_file()
    if path.suffix != ".json" or path.name.startswith("results_"):
        return False
    try:
        log = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(log, dict) and isinstance(log.get("eval"), dict) and "task" in log["eval"]


def _some(path: Path, readings: Readings) -> Readings:
    if not readings:
        raise CompareError(f"{path}: no item has a score that is a number")
    return readings
