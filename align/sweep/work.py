"""Make the cells of a sweep: several processes, each taking seeds that nobody works on.

    failures = run_sweep(Work(plan, seeds, output, run))

Of a seed, arm after arm is run in one folder, OUTPUT/runs/seedN; what the arms share is made once.
A cell is written as soon as its arm is measured, and a cell whose file is there is not made again,
with or without the run folder. An arm that fails does not keep the others from being made.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from align.circumstances import git_state, versions
from align.errors import SweepError
from align.evaluation.policy import measure
from align.evaluation.records import Evaluation, read_evaluation
from align.models.load import base_path, prepare_base
from align.pipeline.background import begin_worker
from align.pipeline.recipe import Recipe, measured_otherwise
from align.run_folder import (
    CELLS,
    data_digests,
    read_manifest,
    source_digests,
    tree_digest,
)
from align.sweep.cells import Cell, best_points, cell_of, check_cell, read_cell, write_cell
from align.sweep.claims import claimed, holder
from align.sweep.plan import CellKey, Plan, needed, pruned
from align.tasks.registry import build_task
from pts.errors import PTSError
from pts.files import output_fault

Run = Callable[[Recipe, Path, Console], object]
"""Runs a recipe in a folder, or continues it there: `align.pipeline.run.run`."""
CLAIMS, RUNS = "claims", "runs"
IGNORED = f"{CLAIMS}/\n{RUNS}/\n"
"""Of a sweep's folder, what is not to be committed."""


@dataclass(frozen=True)
class Work:
    """Which cells are to be made, where, and how."""

    plan: Plan
    seeds: Sequence[int]
    output: Path
    run: Run
    other_source: bool = False
    """Keep cells that other code made."""
    discard_models: bool = False
    """Delete the run folder of a seed whose cells are all there."""
    keep: int = 0
    """Of random search: so many points of every arm, the best of the first seed, go on to the other
    seeds; 0 takes all of them there."""
    source: str = field(default_factory=lambda: source_digest())
    """Digest of the code that makes the cells."""

    @property
    def keys(self) -> list[CellKey]:
        """All cells, seed by seed."""
        return [key for seed in self.seeds for key in self.wanted(seed)]

    def file(self, key: CellKey) -> Path:
        """Where a cell stands."""
        return self.output / CELLS / f"{key.name}.json"

    def unit(self, seed: int) -> str:
        """Names what is run for a seed: its claim and its folder."""
        return f"tuning-seed{seed}" if self.plan.draws else f"seed{seed}"

    def wanted(self, seed: int) -> list[CellKey]:
        """The cells of a seed; under `keep` those of later seeds show when the first is done."""
        keys, first = self.plan.cells(seed), self.seeds[0]
        if not self.keep or seed == first:
            return keys
        if self.missing(first):
            return []
        done = {key: read_cell(self.file(key)) for key in self.plan.cells(first)}
        best = best_points(done, self.plan.sweep.file.measure, self.keep)
        return [key for key in keys if key.point in best[key.arm]]

    def missing(self, seed: int) -> list[CellKey]:
        """The cells of a seed that are not there yet."""
        return [key for key in self.wanted(seed) if not self.file(key).exists()]

    def left(self) -> list[str]:
        """Names of all cells that are not there yet."""
        return [key.name for seed in self.seeds for key in self.missing(seed)]

    def cells(self) -> dict[CellKey, Cell]:
        """The cells that are there.

        Raises:
            SweepError: one of them is damaged, or does not belong to this sweep.
        """
        there = {key: read_cell(self.file(key)) for key in self.keys if self.file(key).exists()}
        wanted: dict[tuple[str, int | None], dict[str, Any]] = {}
        for key, cell in there.items():
            kind = key.arm, key.point
            if kind not in wanted:
                wanted[kind] = settings_of(self.plan, key)
            check_cell(self.file(key), cell, wanted[kind], self.source, self.other_source)
        return there


def run_sweep(work: Work, jobs: int = 1) -> list[str]:
    """Make the missing cells with `jobs` processes of one core each; return what failed.

    Raises:
        SweepError: a cell that is there does not belong to this sweep, or a process was killed.
    """
    begin(work)
    failures = list[str]()
    while not failures and (left := sum(bool(work.missing(seed)) for seed in work.seeds)):
        failures = _in_processes(work, min(jobs, left))
        if not work.keep:
            break
    return failures


def _in_processes(work: Work, jobs: int) -> list[str]:
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers, which load torch anew
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(jobs, context, begin_worker, (os.getpid(), stop)) as pool:
        try:
            working: list[Future[list[str]]] = [pool.submit(make_cells, work) for _ in range(jobs)]
            return list(dict.fromkeys(text for job in working for text in job.result()))
        except BrokenProcessPool:
            raise SweepError(
                f"{work.output}: a worker was killed from outside (out of memory?); "
                "the same command goes on, with fewer --jobs if memory was short"
            ) from None
        except BaseException:
            stop.set()
            raise


def begin(work: Work) -> None:
    """Make the folder; raises SweepError as `check` does."""
    check(work)
    (work.output / CELLS).mkdir(parents=True, exist_ok=True)
    if not (work.output / ".gitignore").exists():
        (work.output / ".gitignore").write_text(IGNORED)


def check(work: Work) -> None:
    """Raise SweepError where the folder, or a cell in it, does not belong to this sweep."""
    if fault := output_fault(work.output, CELLS):
        raise SweepError(f"{work.output}: cannot be the folder of a sweep ({fault})")
    for seed in work.seeds:
        _check_use(work, seed)
    work.cells()


def _check_use(work: Work, seed: int) -> None:
    """A seed serves random search or the measurement, never both."""
    tuning = bool(work.plan.draws)
    for file in (work.output / CELLS).glob(f"*-seed{seed}*.json"):
        used, _, point = file.stem.rpartition("-seed")[2].partition("-point")
        if used == str(seed) and bool(point) != tuning:
            raise SweepError(
                f"--seeds: {seed} has cells {'without' if tuning else 'of'} random search here "
                f"({file.name}); tune and measure with different seeds"
            )


def make_cells(work: Work) -> list[str]:
    """Make all cells that nobody else is making, seed by seed; return what failed."""
    failures = []
    for seed in work.seeds:
        if not work.missing(seed):
            continue
        with claimed(work.output / CLAIMS, work.unit(seed)) as mine:
            if mine:
                failures += _make_seed(work, seed)
    return failures


def _make_seed(work: Work, seed: int) -> list[str]:
    folder = work.output / RUNS / work.unit(seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    failures, made = [], list[CellKey]()
    with folder.with_suffix(".log").open("a", encoding="utf-8") as log:
        console = Console(file=log, width=120)
        for key in work.missing(seed):
            recipe = work.plan.recipe_for([*made, key])
            try:
                work.run(recipe, folder, console)
            except PTSError as error:
                failures.append(f"{key.name}: {error}")
                print(f"{key.name}: failed", file=sys.stderr, flush=True)
                continue
            made.append(key)
            cell = harvest(work, key, recipe, folder)
            write_cell(work.file(key), cell)
            seconds = sum(stage["seconds"] for stage in cell.stages.values())
            found = cell.measured.metrics
            print(
                f"{key.name}: greedy {100 * found['greedy']:.1f} %, sampled "
                f"{100 * found['sampled']:.1f} %, {seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    if work.discard_models and not work.missing(seed):
        shutil.rmtree(folder)
    return failures


def harvest(work: Work, key: CellKey, recipe: Recipe, folder: Path) -> Cell:
    """The cell of an arm that was run."""
    stage, manifest = work.plan.stage_of(key), read_manifest(folder)
    names = needed(recipe, [stage], costs=True)
    sources = {entry.name: entry.share or entry.name for entry in recipe.stages}
    records = {name: {**manifest["stages"][name], "source": sources[name]} for name in names}
    records[f"eval/{stage}"] = manifest["stages"][f"eval/{stage}"]
    about = {
        "arm": key.arm, "seed": key.seed, "point": key.point, "stage": stage,
        "settings": settings_of(work.plan, key), "source": work.source,
        "made": {**git_state(), "versions": versions()},
    }  # fmt: skip
    also = {
        name: _measure(recipe, overrides, stage, manifest, folder / "also" / name)
        for name, overrides in work.plan.also.items()
    }
    return cell_of(about, read_evaluation(folder / "eval" / stage), also, records)


def _measure(
    recipe: Recipe, overrides: Sequence[str], stage: str, manifest: dict[str, Any], folder: Path
) -> Evaluation:
    """A policy of a run on another set of problems; a killed evaluation goes on."""
    asked, where = measured_otherwise(recipe, overrides), folder / stage
    made = manifest["stages"].get(stage)
    policy = folder.parents[1] / made["model"] if made else prepare_base(recipe.model)
    where.mkdir(parents=True, exist_ok=True)
    measure(asked, build_task(asked.task), stage, policy, where)
    return read_evaluation(where)


def settings_of(plan: Plan, key: CellKey) -> dict[str, Any]:
    """All that decides a cell apart from its seed and the code: recipe, data, base model."""
    recipe = pruned(plan.recipe, needed(plan.recipe, [plan.stage_of(key)]))
    data = recipe.plain()
    for name in ("name", "description", "seed"):
        del data[name]
    del data["evaluate"]["skip"]
    base = Path(base_path(recipe.model))
    data["model"]["path"] = tree_digest(base) if base.exists() else str(base)
    data["model"].pop("device")
    also = {name: list(overrides) for name, overrides in plan.also.items()}
    files = data_digests(recipe)
    for entry in recipe.stages:
        found = source_digests(entry.settings)
        files |= {f"{entry.name}.{name}": digest for name, digest in found.items()}
    return {**data, "data": files, **({"also": also} if also else {})}


def source_digest() -> str:
    """Twelve hex digits that name the code of `align` and `pts`."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for file in sorted(path for top in ("align", "pts") for path in (root / top).rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def what_is_left(work: Work) -> str:
    """Cells that are missing, who works on them, and about how many hours of one core.

    Raises:
        SweepError: as `check`.
    """
    check(work)
    cells = work.cells()
    known = seconds_of_stages(cells.values())
    lines, left, hours, unknown = [], 0, 0.0, set[str]()
    for seed in work.seeds:
        missing = work.missing(seed)
        if not missing:
            continue
        left += len(missing)
        by = holder(work.output / CLAIMS, work.unit(seed))
        arms = ", ".join(key.name.replace(f"-seed{seed}", "") for key in missing)
        lines.append(f"seed {seed}: {arms}{f' (under way: {by})' if by else ''}")
        stages = {work.plan.stage_of(key) for key in missing}
        names = [*needed(work.plan.recipe, stages), *(f"eval/{stage}" for stage in stages)]
        found = {name: known.get(name, known.get(_original(name))) for name in names}
        hours += sum(value for value in found.values() if value is not None) / 3600
        unknown |= {name for name, value in found.items() if value is None}
    about = f"; about {hours:.1f} hours of one core" if cells and left else ""
    without = f", and {', '.join(sorted(unknown))}, not timed yet" if about and unknown else ""
    return "\n".join([f"{left} of {len(work.keys)} cells are left{about}{without}", *lines])


def _original(name: str) -> str:
    """The stage that a point's copy was made from."""
    stage, _, point = name.rpartition("-p")
    return stage if point.isdigit() else name


def seconds_of_stages(cells: Iterable[Cell]) -> Mapping[str, float]:
    """Mean seconds of every stage and evaluation, over the seeds that made it."""
    found: dict[str, dict[int, float]] = {}
    for cell in cells:
        for name, counts in cell.stages.items():
            for known in {name, _original(name)}:
                found.setdefault(known, {})[cell.seed] = counts["seconds"]
    return {name: sum(s.values()) / len(s) for name, s in found.items()}
