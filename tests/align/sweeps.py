"""A sweep file, and a run that makes up what its stages and evaluations would leave."""

from __future__ import annotations

import json
import random
from pathlib import Path

from rich.console import Console

from align.context import BASE
from align.errors import StageError
from align.pipeline.recipe import Recipe
from align.stages import STAGES
from align.sweep.file import Sweep, load_sweep
from tests.align.evaluations import SAMPLES, store

FILE = """
recipe: phi-nano
overrides: [evaluate.problems=40]
stages:
  - sft
  - pts
  - {kind: token_dpo, name: pairs}
  - {kind: rejection_sft, name: rejection, from: sft}
  - {kind: full_dpo, name: chain, from: pairs}
arms: {start: sft, pairs: pairs, rejection: rejection, chain: chain}
primary: [[rejection, chain], [start, pairs]]
contrasts: [[pairs, chain]]
margin: 2
tune:
  rejection: {learning_rate: {low: 1.0e-5, high: 1.0e-3}, batch_size: [4, 8, 16]}
  pairs: {beta: [0.3, 1, 3]}
"""
RIGHT = {"base": 4, "sft": 16, "pairs": 20, "rejection": 30, "chain": 26}
"""Greedy answers that are right, of 40."""


def sweep(folder: Path, text: str = FILE, *overrides: str) -> Sweep:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.yaml").write_text(text)
    return load_sweep(folder / "sweep.yaml", overrides)


def made_up(recipe: Recipe, folder: Path, console: Console) -> None:
    """Leave a manifest and evaluations; each stage that is made now is noted in made.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.json"
    stages = json.loads(path.read_text())["stages"] if path.exists() else {}
    for entry in recipe.stages:
        if entry.name not in stages:
            with (folder / "made.txt").open("a") as file:
                file.write(f"{entry.name}\n")
            counts = {"generated_tokens": 1000, "distinct_questions": 10, "trained_tokens": 7}
            model = "x" if STAGES[entry.kind].makes == "policy" else None
            stages[entry.name] = {"seconds": 10.0, "model": model, "metrics": counts}
    for name in (BASE, *(e.name for e in recipe.stages if STAGES[e.kind].makes == "policy")):
        if name not in recipe.evaluate.skip and f"eval/{name}" not in stages:
            _evaluate(folder, name, recipe)
            stages[f"eval/{name}"] = {"seconds": 5.0, "metrics": {}}
    path.write_text(json.dumps({"recipe": recipe.plain(), "stages": stages}))


def failing(recipe: Recipe, folder: Path, console: Console) -> None:
    """The stage `rejection` fails."""
    if any(entry.name == "rejection" for entry in recipe.stages):
        raise StageError("rejection: no right answer")
    made_up(recipe, folder, console)


def interrupted(recipe: Recipe, folder: Path, console: Console) -> None:
    """Everything stops where the chain begins."""
    if any(entry.name == "chain" for entry in recipe.stages):
        raise KeyboardInterrupt
    made_up(recipe, folder, console)


def _evaluate(folder: Path, name: str, recipe: Recipe) -> None:
    rng = random.Random(f"{name} {recipe.seed}")
    greedy = [int(k < RIGHT[name.partition("-p")[0]]) for k in range(40)]
    passed = [min(SAMPLES, 5 * right + rng.randrange(4)) for right in greedy]
    question = f"q of {recipe.evaluate.seed}: {{}}"
    store(folder, name, greedy, passed, question=question)
