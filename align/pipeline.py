"""The post-train, in order: read this first.

    base -> evaluate -> sft -> evaluate -> pts -> token_dpo -> evaluate -> full_dpo -> evaluate

Each stage takes a policy (a folder) and leaves a policy. What the manifest already holds is
skipped; a stage that was killed continues from what it left in its own folder. On a CPU a policy
is evaluated in a second process while the next stage runs.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from rich.console import Console

from align.background import BackgroundWorker, cores, share_cores
from align.check import check_recipe
from align.context import StageContext, StageResult
from align.evaluation.tables import build_table
from align.models.load import device_of, prepare_base
from align.recipe import Recipe, parse_recipe
from align.report.page import write_report
from align.run_folder import (
    Manifest,
    data_digests,
    read_manifest,
    settings_digest,
    tree_digest,
    write_json,
)
from align.tasks.registry import build_task

MODULES = {
    "sft": "sft",
    "pts": "pivotal_tokens",
    "token_dpo": "token_dpo",
    "full_dpo": "full_dpo",
    "rejection_sft": "rejection_sft",
}

Timed = tuple[StageResult, float]
"""What a stage made, and its seconds."""


def run(recipe: Recipe, folder: Path, console: Console, progress: bool = True) -> Path:
    """Run (or continue) a recipe in a folder and return the path of its report.

    Raises:
        StageError, ManifestError, PTSError: with the place, the value and the remedy.
    """
    check_recipe(recipe)
    with Manifest.open(folder, recipe) as manifest, background(recipe) as worker:
        chain = PipelineRun(recipe, manifest, worker, console, progress)
        policies = [("base", prepare_base(recipe.model))]
        chain.evaluate(*policies[0], before=None)
        for name in recipe.stages:
            policy = chain.stage(name, policies[-1][1])
            if policy is not None:
                last = name == recipe.stages[-1]
                chain.evaluate(name, policy, before=policies[-1], alone=last)
                policies.append((name, policy))
        chain.table(name for name, _ in policies)
        return write_report(folder)


def evaluate_again(
    folder: Path,
    overrides: Sequence[str],
    output: Path | None,
    console: Console,
    progress: bool = True,
) -> Path:
    """Measure all policies of a run with other `evaluate` settings; return the new folder.

    Raises:
        RecipeError, ManifestError: the run or an override is wrong.
    """
    stages = read_manifest(folder)["stages"]
    recipe = run_recipe(folder, overrides)
    output = output or folder / "evaluations" / settings_digest(recipe, data_digests(recipe))
    policies = [("base", prepare_base(recipe.model))]
    made = [name for name in recipe.stages if name in stages and stages[name]["model"]]
    policies += [(name, folder / stages[name]["model"]) for name in made]
    with Manifest.open(output, recipe) as manifest, BackgroundWorker(parallel=False) as worker:
        chain = PipelineRun(recipe, manifest, worker, console, progress)
        for i, (name, policy) in enumerate(policies):
            chain.evaluate(name, policy, before=policies[i - 1] if i else None)
        chain.table(name for name, _ in policies)
    return output


def run_recipe(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a run's manifest keeps, with overrides applied."""
    return parse_recipe(read_manifest(folder)["recipe"], f"{folder}/manifest.json", overrides)


def background(recipe: Recipe) -> BackgroundWorker:
    """A second process for the evaluations where there are cores to share."""
    parallel = device_of(recipe.model) == "cpu" and cores() > 1
    if parallel:
        share_cores()
    return BackgroundWorker(parallel)


class PipelineRun:
    """One run in progress: knows the manifest and prints what happens."""

    def __init__(
        self,
        recipe: Recipe,
        manifest: Manifest,
        worker: BackgroundWorker,
        console: Console,
        progress: bool,
    ) -> None:
        self.recipe = recipe
        self.manifest = manifest
        self.worker = worker
        self.console = console
        self.progress = progress
        self._task = build_task(recipe)
        self._data = data_digests(recipe)
        self._digests: dict[Path, str] = {}
        self._pending: list[tuple[str, dict[str, Any], Future[Timed]]] = []

    def stage(self, name: str, policy: Path) -> Path | None:
        """Run one training or search stage; the new policy, or None if it trains nothing."""
        folder = self.manifest.folder / name
        pairs = self.manifest.folder / "pts" / "pairs.jsonl" if name == "token_dpo" else None
        settings = getattr(self.recipe, name)
        digests = {"policy": self._digest(policy), **self._data}
        if pairs is not None:
            digests["pairs"] = self._digest(pairs)
        reference = getattr(settings, "reference", "start")
        if reference != "start":
            digests["reference"] = self._digest(Path(reference))
        inputs = {"settings": settings.model_dump(mode="json"), **self._common(), **digests}
        result = self._kept(name, inputs)
        if result is None:
            self.console.print(f"[bold]{name}[/bold]")
            context = StageContext(
                self.recipe, self._task, policy, folder,
                pairs=pairs, progress=self.progress, digests=digests,
            )  # fmt: skip
            result = self._record(name, inputs, run_stage(name, context))
        self._settle(wait=False)
        return result.model

    def evaluate(
        self, name: str, policy: Path, before: tuple[str, Path] | None, alone: bool = False
    ) -> None:
        """Measure a policy on held-out problems, beside the stage that follows; or `alone`."""
        if name in self.recipe.evaluate.skip:
            return
        inputs = {
            "settings": self.recipe.evaluate.model_dump(mode="json", exclude={"skip"}),
            "before": self._digest(before[1]) if before else None,
            "policy": self._digest(policy),
            **self._common(),
            **self._data,
        }
        if self._kept(f"eval/{name}", inputs) is None:
            folder = self.manifest.folder / "eval" / name
            earlier = before[1] if before and before[0] != "base" else None
            job = self.worker.submit(
                run_evaluation, self.recipe, name, policy, folder, earlier, alone
            )
            self._pending.append((f"eval/{name}", inputs, job))

    def table(self, names: Iterable[str]) -> None:
        """Print the table of the evaluations and write table.json."""
        self._settle(wait=True)
        measured = [name for name in names if name not in self.recipe.evaluate.skip]
        if not measured:
            self.console.print("no table: evaluate.skip names every policy")
            return
        table = build_table(self.manifest.folder, measured)
        write_json(self.manifest.folder / "table.json", table.to_json())
        self.console.print(table.to_text(), highlight=False, markup=False, soft_wrap=True)

    def _common(self) -> dict[str, Any]:
        return {
            "seed": self.recipe.seed,
            "model": self.recipe.model.model_dump(mode="json", exclude={"path"}),
            "task": self.recipe.task.model_dump(mode="json"),
            "sampling": self.recipe.sampling.model_dump(mode="json"),
        }

    def _digest(self, path: Path) -> str:
        """Digest of a policy's folder, or the name itself for a model that a hub serves."""
        if path not in self._digests:
            self._digests[path] = tree_digest(path) if path.exists() else str(path)
        return self._digests[path]

    def _kept(self, name: str, inputs: dict[str, Any]) -> StageResult | None:
        result = self.manifest.done(name, inputs)
        if result is not None:
            self.console.print(f"[dim]{name}: done before, kept[/dim]")
        return result

    def _settle(self, wait: bool) -> None:
        """Record the evaluations that are done; with `wait`, all of them."""
        for pending in list(self._pending):
            name, inputs, job = pending
            if wait or job.done():
                self._pending.remove(pending)
                self._record(name, inputs, job.result())

    def _record(self, name: str, inputs: dict[str, Any], timed: Timed) -> StageResult:
        result, seconds = timed
        self.manifest.add(name, inputs, result, seconds)
        shown = ", ".join(f"{k} {_short(v)}" for k, v in result.metrics.items() if _plain(v))
        self.console.print(
            f"[dim]{name}: {seconds:.0f} s; {shown}[/dim]", highlight=False, soft_wrap=True
        )
        return result


def run_stage(name: str, context: StageContext) -> Timed:
    """Run a stage's module in its folder and time it."""
    context.folder.mkdir(parents=True, exist_ok=True)
    module = importlib.import_module(f"align.stages.{MODULES[name]}")
    start = time.monotonic()
    return module.run(context), time.monotonic() - start


def run_evaluation(
    recipe: Recipe, name: str, policy: Path, folder: Path, before: Path | None, alone: bool
) -> Timed:
    """Evaluate one policy; runs in a process of its own and so builds its own task."""
    from align.stages import evaluate

    if alone:
        share_cores(1)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    context = StageContext(recipe, build_task(recipe), policy, folder, progress=False)
    return evaluate.run(context, name, before), time.monotonic() - start


def _plain(value: Any) -> bool:
    return isinstance(value, int | float | str)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
