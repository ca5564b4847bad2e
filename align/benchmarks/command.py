"""`align benchmark`: our benchmarks and tasks of lm-evaluation-harness, one after the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.benchmarks.settings import Benchmark, load_benchmark
from align.engines.faults import engine_faults
from align.engines.settings import EngineConfig, InProcessEngine, engine_inputs
from align.errors import RecipeError, StageError
from align.pipeline.overrides import parse_override
from align.run_folder import read_manifest
from align.settings import ModelConfig
from pts.config import SamplingConfig, Settings, parse_settings
from pts.errors import did_you_mean
from pts.files import folder_fault
from pts.plain_text import read_yaml

if TYPE_CHECKING:
    from align.benchmarks.questions import Question
    from align.benchmarks.run import BenchmarkResult

HARNESS, TRANSFORMERS = "lm-eval:", "transformers"
OURS = (TRANSFORMERS, "vllm", "server")
"""Engines that take a folder with config.json, or the name of a hub's model."""


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
        RecipeError, ConfigError, DataError: a benchmark, a setting, the engine, a row or the
            model's folder is wrong; before the model is loaded.
        StageError: the engine gives no log-likelihoods, before any question is asked; or a folder
            holds other results, or cannot be written to.
    """
    asked = _benchmarks(names, overrides)
    tasks = [name.removeprefix(HARNESS) for name in names if name.startswith(HARNESS)]
    from align.benchmarks import harness
    from align.benchmarks.questions import build_questions
    from align.benchmarks.run import score_of
    from align.benchmarks.table import to_text

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
    for one in asked:
        if one.kind == "generate":
            score_of(one)
    questions = [build_questions(one) for one in asked]
    if fault := folder_fault(where):
        raise StageError(f"--output: {fault}")
    folder = _policy(model, config)
    manager = harness.find_tasks(tasks, include) if tasks else None
    said: list[str] = []
    found: dict[str, Any] = {"folder": where, "benchmarks": [], "tasks": {}}
    if asked:
        found["benchmarks"] = _measured(asked, questions, config, folder, where, progress)
        said.append(to_text(found["benchmarks"]))
    if manager:
        found["tasks"] = harness.run_tasks(folder, tasks, manager, told, where / "lm-eval")
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


def _benchmarks(names: Sequence[str], overrides: Sequence[str]) -> list[Benchmark]:
    """The benchmarks that are named, tasks of the harness left out.

    Raises:
        RecipeError: every name that stands twice, or every fault of a file.
    """
    twice = [name for name in dict.fromkeys(names) if list(names).count(name) > 1]
    faults = [f"{name}: is asked for twice; name it once" for name in twice]
    found: dict[str, tuple[str, Benchmark]] = {}
    for given in dict.fromkeys(names):
        if given.startswith(HARNESS):
            continue
        benchmark = load_benchmark(given, overrides)
        first, _ = found.setdefault(benchmark.name, (given, benchmark))
        if first != given:
            faults.append(
                f"{given}: name: {benchmark.name!r} is the name of {first} too, and both would "
                "write the same files; give one of them another"
            )
    if faults:
        raise RecipeError(*faults)
    return [benchmark for _, benchmark in found.values()]


def _policy(model: Path, config: EngineConfig) -> Path:
    """The folder of the model, or its name on the hub.

    Raises:
        RecipeError: a folder is meant that is not there or holds no model, or the hub does not
            answer for a name that is not in its cache.
    """
    from align.models.load import HUB_NAME, is_model, prepare_base

    if is_model(model / "model"):
        return model / "model"
    if config.kind not in OURS or model.is_file() or is_model(model):
        return model  # engines of one's own know what they take
    if (model / "manifest.json").is_file():
        made = [model / name for name in read_manifest(model)["stages"]]
        stages = ", ".join(str(stage) for stage in made if is_model(stage / "model"))
        raise RecipeError(f"{model}: is a run; name one of its stages: {stages or 'none is made'}")
    if model.is_dir():
        raise RecipeError(
            f"{model}: holds no config.json; give the folder of a model, or of a stage that made "
            "one"
        )
    name, parent = str(model), model.parent
    inside = "/" in name and parent.is_dir()
    if inside or name.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(name):
        hint = did_you_mean(model.name, (p.name for p in parent.iterdir())) if inside else ""
        hint = hint or "; give that of a model or of a stage, or OWNER/NAME on the hub"
        raise RecipeError(f"{model}: no such folder{hint}")
    try:
        prepare_base(ModelConfig(path=name))  # one question to the hub, where loading asks many
    except RecipeError as error:
        raise RecipeError(
            *(fault.removeprefix("model.path: ") for fault in error.problems)
        ) from None
    return model


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
