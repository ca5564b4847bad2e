"""`align benchmark`: our benchmarks and tasks of lm-evaluation-harness, one after the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.benchmarks.settings import Benchmark, load_benchmark
from align.engines.faults import engine_faults
from align.engines.settings import EngineConfig, InProcessEngine, engine_inputs
from align.errors import RecipeError
from align.pipeline.overrides import parse_override
from align.run_folder import read_manifest
from align.settings import ModelConfig
from pts.config import SamplingConfig, Settings, parse_settings
from pts.plain_text import read_yaml

if TYPE_CHECKING:
    from align.benchmarks.questions import Question
    from align.benchmarks.run import BenchmarkResult

HARNESS, TRANSFORMERS = "lm-eval:", "transformers"


def measure(
    model: Path,
    names: Sequence[str],
    overrides: Sequence[str],
    output: Path | None,
    include: Path | None,
    progress: bool,
    engine: str = "",
) -> tuple[dict[str, Any], str]:
    """Measure a model; return the results, and their tables as text.

    Args:
        model: its folder, or that of a stage.
        names: benchmarks, .yaml files, or `lm-eval:TASK`.
        overrides: `key=value` for all of them.
        output: folder of the results; runs/benchmarks/RUN-STAGE if None.
        include: folder of the harness' task files.
        progress: draw bars.
        engine: where answers come from, as a recipe's `engine` says it; if empty, where the
            evaluations of the model's run have theirs from, else transformers.

    Raises:
        RecipeError, ConfigError, DataError: a benchmark, a setting, the engine or a row is wrong;
            before the model is loaded.
        StageError: the engine gives no log-likelihoods, before any question is asked; or a folder
            holds other results.
    """
    asked = [load_benchmark(n, overrides) for n in names if not n.startswith(HARNESS)]
    tasks = [name.removeprefix(HARNESS) for name in names if name.startswith(HARNESS)]
    from align.benchmarks import harness
    from align.benchmarks.questions import build_questions
    from align.benchmarks.table import to_text

    folder = model / "model" if (model / "model" / "config.json").is_file() else model
    config = _engine(engine or _of_run(model), asked)
    if tasks and engine and config.kind != TRANSFORMERS:
        raise RecipeError(
            f"--engine: {HARNESS}{tasks[0]} runs on transformers alone; leave --engine out for "
            "tasks of lm-evaluation-harness"
        )
    options: dict[str, object] = {}
    for text in overrides if tasks else ():
        parse_override(text).apply(options)
    told = parse_settings(harness.HarnessOptions, options, "--set")
    where = output or Path("runs/benchmarks") / "-".join(model.resolve().parts[-2:])
    said: list[str] = []
    found: dict[str, Any] = {"folder": where, "benchmarks": [], "tasks": {}}
    if asked:
        questions = [build_questions(one) for one in asked]
        found["benchmarks"] = _measured(asked, questions, config, folder, where, progress)
        said.append(to_text(found["benchmarks"]))
    if tasks:
        found["tasks"] = harness.run_tasks(folder, tasks, told, where / "lm-eval", include)
        said.append(harness.to_text(found["tasks"]))
    return found, "\n\n".join([*said, f"Items, for align compare: {where}"])


def _measured(
    asked: Sequence[Benchmark],
    questions: Sequence[Sequence[Question]],
    config: EngineConfig,
    folder: Path,
    where: Path,
    progress: bool,
) -> list[BenchmarkResult]:
    """One after the other, on one engine; whether it can score choices is tried first."""
    from align.benchmarks.likelihood import check_scoring
    from align.benchmarks.run import run_benchmark
    from align.models.engines import policy_engines

    model = ModelConfig(path=str(folder), chat_template="keep")
    with policy_engines(config, folder, model, where, progress=progress) as load:
        for one, its in zip(asked, questions, strict=True):
            if one.kind == "choice":
                check_scoring(load, one, its[0], config.kind)
        return [
            run_benchmark(one, load, where, progress, its, engine_inputs(config))
            for one, its in zip(asked, questions, strict=True)
        ]


class _Asked(Settings):
    engine: EngineConfig = InProcessEngine()


def _of_run(model: Path) -> str:
    """The engine of the evaluations of the run whose stage this is, as text."""
    stage = model.resolve()
    run = stage.parent.parent if stage.name == "model" else stage.parent
    if not (run / "manifest.json").is_file():
        return TRANSFORMERS
    recipe = read_manifest(run)["recipe"]
    told = recipe.get("evaluate", {}).get("engine") or recipe.get("engine") or TRANSFORMERS
    return json.dumps(told)


def _engine(text: str, asked: Sequence[Benchmark]) -> EngineConfig:
    """What `--engine` says.

    Raises:
        RecipeError, ConfigError: every fault of it.
    """
    try:
        told = read_yaml(text)
    except ValueError as error:
        raise RecipeError(f"--engine: {text!r} is no YAML: {error}") from None
    config = parse_settings(_Asked, {"engine": told}, "").engine
    policies = [SamplingConfig(temperature=one.temperature) for one in asked]
    faults = [fault for policy in policies for fault in engine_faults(config, policy)]
    if faults:
        raise RecipeError(*(f"engine.{fault}" for fault in dict.fromkeys(faults)))
    return config
