"""The post-train, in order: read this first.

    base -> evaluate -> sft -> evaluate -> pts -> token_dpo -> evaluate -> full_dpo -> evaluate

Each stage takes a policy (a folder) and leaves a policy, or pairs for a later stage. Which stages
run, from which policies, is the recipe's `stages`. What the manifest already holds is skipped; a
stage that was killed continues from what it left in its own folder. On a CPU a policy is evaluated
in a second process while the next stage runs.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from rich.console import Console

from align.circumstances import cores
from align.context import BASE, StageContext, StageEntry, StageResult
from align.engines.settings import engine_inputs
from align.errors import RecipeError
from align.evaluation.policy import measure
from align.evaluation.tables import build_table
from align.models.load import device_of, prepare_base
from align.pipeline.background import BackgroundWorker, share_cores
from align.pipeline.check import check_recipe, sampled_policies
from align.pipeline.judges import judge_costs, judge_digests
from align.pipeline.recipe import Recipe, parse_recipe
from align.pipeline.source_rows import source_rows
from align.report.page import write_report
from align.run_folder import (
    Manifest,
    check_policies,
    data_digests,
    read_manifest,
    recipe_digest,
    source_digests,
    tree_digest,
)
from align.settings import FilesTask
from align.stages import STAGES
from align.tasks.registry import build_task
from align.training.record import CHECKPOINTS
from pts.data.rollouts import ROLLOUTS
from pts.files import write_json

MEASURED_BY = ("evaluate", "sampling", "model", "engine")
"""Sections of a recipe that another evaluation of a run may change."""

Timed = tuple[StageResult, float]
"""What a stage made, and its seconds."""


def run(
    recipe: Recipe, folder: Path, console: Console, progress: bool = True, parallel: bool = True
) -> Path:
    """Run (or continue) a recipe in a folder and return the path of its report.

    Without `parallel` nothing runs in a second process.

    Raises:
        StageError, ManifestError, PTSError: with the place, the value and the remedy.
    """
    check_recipe(recipe)
    for line in judge_costs(recipe):
        console.print(line, highlight=False, soft_wrap=True)
    opened = Manifest.open(folder, recipe, device_of(recipe.model))
    with opened as manifest, background(recipe, parallel) as worker:
        pipeline = PipelineRun(recipe, manifest, worker, console, progress)
        pipeline.begin(prepare_base(recipe.model))
        for entry in recipe.stages:
            pipeline.stage(entry, alone=entry is recipe.stages[-1])
        pipeline.table()
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
    made = read_manifest(folder)
    check_policies(folder, made)
    strange = [item for item in overrides if item.partition(".")[0] not in MEASURED_BY]
    if strange:
        raise RecipeError(
            f"override {strange[0]!r}: changes nothing of an evaluation; "
            f"{', '.join(f'{key}.*' for key in MEASURED_BY)} do"
        )
    stages = made["stages"]
    recipe = run_recipe(folder, overrides)
    output = output or folder / "evaluations" / recipe_digest(recipe, data_digests(recipe))
    with Manifest.open(output, recipe) as manifest, BackgroundWorker(parallel=False) as worker:
        pipeline = PipelineRun(recipe, manifest, worker, console, progress)
        pipeline.begin(prepare_base(recipe.model))
        for entry in recipe.stages:
            if entry.name in stages and stages[entry.name]["model"]:
                pipeline.add(entry, folder / stages[entry.name]["model"])
        pipeline.table()
    return output


def fresh_seed(folder: Path) -> str:
    """An override with a seed of problems that nobody could know while the run was trained.

    The report measures on a competition held after its data were collected; a task that generates
    its problems can do so at any time.

    Raises:
        RecipeError: the run's problems come from files, which no seed changes.
    """
    if isinstance(run_recipe(folder).task, FilesTask):
        raise RecipeError(
            f"--fresh: the problems of {folder} are those of files, whatever the seed; give files "
            "that are newer than the training: task.problems.test=..."
        )
    return f"evaluate.seed={secrets.randbelow(2**31)}"


def run_recipe(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a run's manifest keeps, with overrides applied."""
    place = f"{folder}/manifest.json" + (f" with {' '.join(overrides)}" if overrides else "")
    return parse_recipe(read_manifest(folder)["recipe"], place, overrides)


def background(recipe: Recipe, parallel: bool = True) -> BackgroundWorker:
    """A second process for the evaluations where there are cores to share.

    Other engines than transformers may have an accelerator of their own: they run in turn.
    """
    here = all(config.kind == "transformers" for _, config, _ in sampled_policies(recipe))
    parallel = parallel and here and device_of(recipe.model) == "cpu" and cores() > 1
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
        self.policies: dict[str, Path] = {}
        """Folders of the policies so far, by the names of the stages that made them."""
        self._starts: dict[str, str] = {}
        self._task = build_task(recipe.task)
        self._data = data_digests(recipe)
        self._digests: dict[Path, str] = {}
        self._pending: list[tuple[str, dict[str, Any], Future[Timed]]] = []

    def begin(self, base: Path) -> None:
        """Take the base model as the first policy, and measure it."""
        self.policies[BASE] = base
        self.evaluate(BASE, base, before=None)

    def stage(self, entry: StageEntry, alone: bool = False) -> None:
        """Run one stage and measure the policy that it makes, if it makes one."""
        policy = self.policies[self.recipe.start_of(entry)]
        pairs, rollouts, digests = None, None, {"policy": self._digest(policy), **self._data}
        searched = self.recipe.rollouts_of(entry)
        if searched:
            rollouts = self.manifest.folder / searched / ROLLOUTS
            digests["rollouts"] = self._digest(rollouts)
        if STAGES[entry.kind].needs_pairs:
            searched = self.recipe.pairs_of(entry)
        if searched:
            pairs = self.manifest.folder / searched / "pairs.jsonl"
            digests["pairs"] = self._digest(pairs)
        digests |= source_digests(entry.settings) | judge_digests(entry.settings)
        reference = getattr(entry.settings, "reference", "start")
        if reference != "start":
            digests["reference"] = self._digest(Path(reference))
        budget = self._budget(entry)
        if budget:
            digests["match"] = str(budget)
        inputs = {
            "settings": entry.settings.model_dump(mode="json"),
            **({"share": entry.share} if entry.share else {}),
            **self._engine(entry),
            **self._common(),
            **digests,
        }
        result = self._kept(entry.name, inputs)
        if result is None:
            self.console.print(f"[bold]{entry.name}[/bold]")
            folder = self.manifest.folder / entry.name
            rows = source_rows(self.recipe, entry, policy, folder / CHECKPOINTS, digests)
            context = StageContext(
                self.recipe, self._task, entry, policy, folder, pairs=pairs, rollouts=rollouts,
                rows=rows, budget=budget, progress=self.progress, build_task=build_task,
                digests=digests,
            )  # fmt: skip
            result = self._record(entry.name, inputs, run_stage(context))
        self._settle(wait=False)
        if result.model is not None:
            self.add(entry, result.model, alone)

    def add(self, entry: StageEntry, policy: Path, alone: bool = False) -> None:
        """Take a stage's policy into the table, measured against the one that it started from."""
        start = self.recipe.start_of(entry)
        self.policies[entry.name], self._starts[entry.name] = policy, start
        self.evaluate(entry.name, policy, before=(start, self.policies[start]), alone=alone)

    def evaluate(
        self, name: str, policy: Path, before: tuple[str, Path] | None, alone: bool = False
    ) -> None:
        """Measure a policy on held-out problems, beside the stage that follows; or `alone`."""
        if name in self.recipe.evaluate.skip:
            return
        inputs = {
            "settings": self.recipe.evaluate.model_dump(mode="json", exclude={"skip", "engine"}),
            **engine_inputs(self.recipe.evaluate.engine or self.recipe.engine),
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

    def table(self) -> None:
        """Print the table of the evaluations and write table.json."""
        self._settle(wait=True)
        measured = [name for name in self.policies if name not in self.recipe.evaluate.skip]
        if not measured:
            self.console.print("no table: evaluate.skip names every policy")
            return
        table = build_table(self.manifest.folder, measured, self.recipe.labels(), self._starts)
        write_json(self.manifest.folder / "table.json", table.to_json())
        self.console.print(table.to_text(), highlight=False, markup=False, soft_wrap=True)

    def _budget(self, entry: StageEntry) -> int:
        """What the stages that this one matches have spent."""
        stages = self.manifest.data["stages"]
        named = getattr(entry.settings, "match", ())
        counted = getattr(entry.settings, "match_by", "generated_tokens")
        return sum(int(stages[name]["metrics"].get(counted, 0)) for name in named)

    def _engine(self, entry: StageEntry) -> dict[str, Any]:
        draws = self.recipe.draws(entry) == "problems"
        return engine_inputs(self.recipe.engine_of(entry)) if draws else {}

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


def run_stage(context: StageContext) -> Timed:
    """Run a stage in its folder and time it."""
    context.folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    return STAGES[context.entry.kind].run(context), time.monotonic() - start


def run_evaluation(
    recipe: Recipe, name: str, policy: Path, folder: Path, before: Path | None, alone: bool
) -> Timed:
    """Evaluate one policy; runs in a process of its own and so builds its own task."""
    if alone:
        share_cores(1)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    result = measure(recipe, build_task(recipe.task), name, policy, folder, before)
    return result, time.monotonic() - start


def _plain(value: Any) -> bool:
    return isinstance(value, int | float | str)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
