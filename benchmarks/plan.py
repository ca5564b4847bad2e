"""What `align plan --like` says of chains of phi-nano that were then really run.

    python benchmarks/plan.py run after_sft runs/demo runs/plan/after_sft
    python benchmarks/plan.py table runs/demo runs/plan/after_sft runs/plan/after_rejection

`runs/demo` is a finished run of the recipe phi-nano, the one to learn from. The chains begin with
policies of it and have other numbers of everything, another seed, and other stages. Seconds of a
chain are CPU seconds of one core (the machine had other work, so that wall time says little),
memory is the peak of each step (VmHWM, set back before it). The tables go to results/plan.json and
plan.md.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from align.pipeline import run as pipeline
from align.pipeline.recipe import Recipe, load_recipe, parse_recipe
from align.planning.devices import device_named
from align.planning.measured import assumed_from
from align.planning.plan import StagePlan, make_plan
from align.planning.shapes import shape_of
from align.run_folder import read_manifest

RESULTS = Path(__file__).parent / "results"
COMMON = ("name=plan", "model.few_shot_base=false", "seed=1")
CHAINS = {
    "after_sft": (
        "sft",
        *COMMON,
        *("sft.num_examples=200", "rejection_sft.num_problems=40", "rejection_sft.samples=8"),
        *("pts.num_problems=12", "pts.search.max_rollouts=200", "token_dpo.max_steps=10"),
        *("full_dpo.num_problems=48", "full_dpo.samples=4", "full_dpo.epochs=1"),
        *("evaluate.problems=60", "evaluate.samples=8"),
        'evaluate.skip=["rejection_sft", "token_dpo"]',
    ),
    "after_rejection": (
        "rejection_sft",
        *COMMON,
        'stages=["pts", "token_dpo", "full_dpo", "rejection_sft", "sft"]',
        *("pts.num_problems=32", "pts.search.max_rollouts=200", "token_dpo.max_steps=20"),
        *("full_dpo.num_problems=100", "full_dpo.samples=4", "full_dpo.epochs=1"),
        *("rejection_sft.num_problems=60", "rejection_sft.samples=8", "sft.num_examples=400"),
        *("evaluate.problems=100", "evaluate.samples=8"),
        'evaluate.skip=["token_dpo", "rejection_sft"]',
    ),
}
"""The stage of the run to learn from whose policy a chain begins with; overrides."""


def chain(name: str, like: Path) -> Recipe:
    """The recipe of a chain that is run."""
    start, *overrides = CHAINS[name]
    return load_recipe("phi-nano", [*overrides, f"model.path={like / start / 'model'}"])


def run_chain(name: str, like: Path, folder: Path) -> None:
    """Run a chain and note each step's peak memory beside its manifest."""
    patched: Any = pipeline
    patched.time = SimpleNamespace(monotonic=time.process_time)
    peaks: dict[str, int] = {}
    stage, evaluation = pipeline.run_stage, pipeline.run_evaluation

    def run_stage(context: Any) -> Any:
        return _peak(peaks, context.entry.name, lambda: stage(context))

    def run_evaluation(recipe: Any, policy: str, *rest: Any) -> Any:
        return _peak(peaks, f"eval/{policy}", lambda: evaluation(recipe, policy, *rest))

    patched.run_stage, patched.run_evaluation = run_stage, run_evaluation
    began = time.monotonic()
    try:
        pipeline.run(chain(name, like), folder, Console(), progress=False, parallel=False)
    finally:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        told = {
            "peaks": peaks,
            "max_rss": usage.ru_maxrss * 1024,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "wall_seconds": time.monotonic() - began,
        }
        (folder / "measured.json").write_text(json.dumps(told, indent=1) + "\n")


def _peak(peaks: dict[str, int], name: str, work: Any) -> Any:
    Path("/proc/self/clear_refs").write_text("5")
    result = work()
    status = Path("/proc/self/status").read_text()
    peaks[name] = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    return result


def compared(like: Path, folder: Path) -> list[dict[str, Any]]:
    """A row for each step of a chain that is done: planned and measured."""
    manifest = read_manifest(folder)
    recipe = parse_recipe(manifest["recipe"], str(folder))
    device = device_named("cpu")
    plan = make_plan(
        recipe,
        shape_of(recipe.model),
        device,
        assumed_from(like, pipeline.run_recipe(like), device),
    )
    file = folder / "measured.json"
    peaks = json.loads(file.read_text())["peaks"] if file.exists() else {}
    rows = []
    for stage in plan.stages:
        record = manifest["stages"].get(stage.name)
        if record is None:
            continue
        planned = {
            "rollouts": stage.counts.rollouts,
            "sampled tokens": stage.counts.generated,
            "rows or pairs": stage.counts.rows or stage.counts.pairs,
            "trained tokens": stage.counts.trained,
            "seconds": stage.seconds,
            "memory": stage.peak.memory.total,
        }
        measured = _counted(recipe, stage, record["metrics"])
        measured |= {"seconds": record["seconds"], "memory": peaks.get(stage.name, 0)}
        rows.append({"step": stage.name, "planned": planned, "measured": measured})
    return rows


def _counted(recipe: Recipe, stage: StagePlan, metrics: dict[str, Any]) -> dict[str, float]:
    """What a manifest says of a step."""
    if stage.kind == "eval":
        rollouts = metrics["problems"] * (1 + recipe.evaluate.samples)
        return {"rollouts": rollouts, "sampled tokens": rollouts * metrics["tokens a completion"]}
    samples = getattr(recipe.settings(stage.name), "samples", 0)
    return {
        "rollouts": metrics.get("rollouts", metrics.get("questions", 0) * samples),
        "sampled tokens": metrics.get("generated_tokens", 0),
        "rows or pairs": metrics.get("pairs", metrics.get("rows", 0)),
        "trained tokens": metrics.get("trained_tokens", 0),
    }


def tables(like: Path, folders: list[Path]) -> None:
    """Compare plans from the run, and from each chain for the others, with what was measured."""
    found = [
        {"like": source.name, "chain": folder.name, "steps": compared(source, folder)}
        for source in (like, *folders)
        for folder in folders
        if source != folder
    ]
    (RESULTS / "plan.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = [TITLE]
    for one in found:
        lines += ["", f"## {one['chain']}, planned from {one['like']}", "", *_table(one["steps"])]
    (RESULTS / "plan.md").write_text("\n".join(lines) + "\n")


def _table(steps: Any) -> list[str]:
    names = list(steps[0]["planned"])
    rows = [f"| step | {' | '.join(names)} |", f"|---{'|---' * len(names)}|"]
    for step in steps:
        cells = [
            _cell(step["planned"][name], step["measured"].get(name, 0), name) for name in names
        ]
        rows.append(f"| {step['step']} | {' | '.join(cells)} |")
    totals = {
        kind: {name: sum(step[kind].get(name, 0) for step in steps) for name in names[:-1]}
        for kind in ("planned", "measured")
    }
    cells = [_cell(totals["planned"][name], totals["measured"][name], name) for name in names[:-1]]
    rows.append(f"| all | {' | '.join(cells)} | |")
    ratios = {
        name: [
            step["planned"][name] / step["measured"][name]
            for step in steps
            if step["measured"].get(name) and step["planned"][name]
        ]
        for name in names
    }
    near = [f"{sum(0.7 <= r <= 1.3 for r in found)} of {len(found)}" for found in ratios.values()]
    return [*rows, f"| within 30 % | {' | '.join(near)} |"]


def _cell(planned: float, measured: float, name: str) -> str:
    if name == "memory":
        planned, measured = planned / 1e6, measured / 1e6
    if name == "memory" and not measured:
        return ""
    if not measured or not planned:
        return "" if not planned and not measured else f"{planned:,.0f} / {measured:,.0f}"
    return f"{planned:,.0f} / {measured:,.0f} = {planned / measured:.2f}"


TITLE = """# Plans and what was then run

Written by `benchmarks/plan.py`. Each cell: planned / measured = ratio; memory in MB. Seconds are
CPU seconds of one core in the chains; those of the demo are wall time, in which evaluations ran
beside stages on two busy cores."""


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "run":
        run_chain(words[0], Path(words[1]), Path(words[2]))
    else:
        tables(Path(words[0]), [Path(word) for word in words[1:]])
