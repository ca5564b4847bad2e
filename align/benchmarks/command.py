"""`align benchmark`: our benchmarks and tasks of lm-evaluation-harness, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.benchmarks.settings import load_benchmark
from align.pipeline.overrides import parse_override
from pts.config import SamplingConfig, parse_settings

HARNESS = "lm-eval:"


def measure(
    model: Path,
    names: Sequence[str],
    overrides: Sequence[str],
    output: Path | None,
    include: Path | None,
    progress: bool,
) -> tuple[dict[str, Any], str]:
    """Measure a model; return the results, and their tables as text.

    Args:
        model: its folder, or that of a stage.
        names: benchmarks, .yaml files, or `lm-eval:TASK`.
        overrides: `key=value` for all of them.
        output: folder of the results; runs/benchmarks/RUN-STAGE if None.
        include: folder of the harness' task files.
        progress: draw bars.

    Raises:
        RecipeError, ConfigError, DataError: a benchmark, a setting or a row is wrong; before the
            model is loaded.
    """
    asked = [load_benchmark(n, overrides) for n in names if not n.startswith(HARNESS)]
    tasks = [name.removeprefix(HARNESS) for name in names if name.startswith(HARNESS)]
    from align.benchmarks import harness
    from align.benchmarks.questions import build_questions
    from align.benchmarks.run import run_benchmark
    from align.benchmarks.table import to_text
    from pts.engines.transformers.engine import TransformersEngine

    options: dict[str, object] = {}
    for text in overrides if tasks else ():
        parse_override(text).apply(options)
    told = parse_settings(harness.HarnessOptions, options, "--set")
    folder = model / "model" if (model / "model" / "config.json").is_file() else model
    where = output or Path("runs/benchmarks") / "-".join(model.resolve().parts[-2:])
    said: list[str] = []
    found: dict[str, Any] = {"folder": where, "benchmarks": [], "tasks": {}}
    if asked:
        questions = [build_questions(one) for one in asked]
        engine = TransformersEngine.load(folder, SamplingConfig())
        found["benchmarks"] = [
            run_benchmark(one, engine, where, progress, its)
            for one, its in zip(asked, questions, strict=True)
        ]
        said.append(to_text(found["benchmarks"]))
    if tasks:
        found["tasks"] = harness.run_tasks(folder, tasks, told, where / "lm-eval", include)
        said.append(harness.to_text(found["tasks"]))
    return found, "\n\n".join([*said, f"Items, for align compare: {where}"])
