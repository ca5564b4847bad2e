"""The post-train, in order: read this first.

    base -> evaluate -> sft -> evaluate -> pts -> token_dpo -> evaluate -> full_dpo -> evaluate

Each stage takes a policy (a folder) and leaves a policy. What the manifest already holds is
skipped; a stage that was killed continues from what it left in its own folder.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from align.check import check_recipe
from align.context import StageContext, StageResult
from align.data.task import Task
from align.data.tasks import build_task
from align.manifest import Manifest, read_manifest, settings_digest, tree_digest, write_json
from align.models.load import prepare_base
from align.recipe import Recipe, parse_recipe
from align.report import write_report
from align.table import build_table

MODULES = {
    "sft": "sft",
    "pts": "pivotal_tokens",
    "token_dpo": "token_dpo",
    "full_dpo": "full_dpo",
    "rejection_sft": "rejection_sft",
}

Run = Callable[[], StageResult]


def run(recipe: Recipe, folder: Path, console: Console, progress: bool = True) -> Path:
    """Run (or continue) a recipe in a folder and return the path of its report.

    Raises:
        StageError, ManifestError, PTSError: with the place, the value and the remedy.
    """
    check_recipe(recipe)
    with Manifest.open(folder, recipe) as manifest:
        chain = Chain(recipe, build_task(recipe), manifest, console, progress)
        policies = [("base", prepare_base(recipe.model))]
        chain.evaluate(*policies[0], before=None)
        for name in recipe.stages:
            policy = chain.stage(name, policies[-1][1])
            if policy is not None:
                chain.evaluate(name, policy, before=policies[-1])
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
    output = output or folder / "evaluations" / settings_digest(recipe)
    policies = [("base", prepare_base(recipe.model))]
    policies += [(n, folder / stages[n]["model"]) for n in stages if stages[n]["model"]]
    with Manifest.open(output, recipe) as manifest:
        chain = Chain(recipe, build_task(recipe), manifest, console, progress)
        for i, (name, policy) in enumerate(policies):
            chain.evaluate(name, policy, before=policies[i - 1] if i else None)
        chain.table(name for name, _ in policies)
    return output


def run_recipe(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that a run's manifest keeps, with overrides applied."""
    return parse_recipe(read_manifest(folder)["recipe"], f"{folder}/manifest.json", overrides)


class Chain:
    """One run in progress: knows the manifest and prints what happens."""

    def __init__(
        self, recipe: Recipe, task: Task, manifest: Manifest, console: Console, progress: bool
    ) -> None:
        self.recipe = recipe
        self.task = task
        self.manifest = manifest
        self.console = console
        self.progress = progress
        self._digests: dict[Path, str] = {}

    def stage(self, name: str, policy: Path) -> Path | None:
        """Run one training or search stage; the new policy, or None if it trains nothing."""
        folder = self.manifest.folder / name
        pairs = self.manifest.folder / "pts" / "pairs.jsonl" if name == "token_dpo" else None
        context = StageContext(
            self.recipe, self.task, policy, folder, pairs=pairs, progress=self.progress
        )
        inputs = {
            "settings": getattr(self.recipe, name).model_dump(mode="json"),
            **self._common(policy),
        }
        if pairs is not None:
            inputs["pairs"] = self._digest(pairs)
        module = importlib.import_module(f"align.stages.{MODULES[name]}")
        return self._once(name, inputs, folder, lambda: module.run(context)).model

    def evaluate(self, name: str, policy: Path, before: tuple[str, Path] | None) -> None:
        """Measure a policy on held-out problems."""
        if name in self.recipe.evaluate.skip:
            return
        from align.stages import evaluate

        folder = self.manifest.folder / "eval" / name
        context = StageContext(self.recipe, self.task, policy, folder, progress=self.progress)
        inputs = {
            "settings": self.recipe.evaluate.model_dump(mode="json", exclude={"skip"}),
            "before": self._digest(before[1]) if before else None,
            **self._common(policy),
        }
        earlier = before[1] if before and before[0] != "base" else None
        self._once(f"eval/{name}", inputs, folder, lambda: evaluate.run(context, name, earlier))

    def table(self, names: Iterable[str]) -> None:
        """Print the table of the evaluations and write table.json."""
        measured = [name for name in names if name not in self.recipe.evaluate.skip]
        table = build_table(self.manifest.folder, measured)
        write_json(self.manifest.folder / "table.json", table.to_json())
        self.console.print(table.to_text(), highlight=False, markup=False, soft_wrap=True)

    def _common(self, policy: Path) -> dict[str, Any]:
        return {
            "seed": self.recipe.seed,
            "policy": self._digest(policy),
            "model": self.recipe.model.model_dump(mode="json", exclude={"path"}),
            "task": self.recipe.task.model_dump(mode="json"),
            "sampling": self.recipe.sampling.model_dump(mode="json"),
        }

    def _digest(self, path: Path) -> str:
        """Digest of a policy's folder, or the name itself for a model that a hub serves."""
        if path not in self._digests:
            self._digests[path] = tree_digest(path) if path.exists() else str(path)
        return self._digests[path]

    def _once(self, name: str, inputs: dict[str, Any], folder: Path, run: Run) -> StageResult:
        result = self.manifest.done(name, inputs)
        if result is not None:
            self.console.print(f"[dim]{name}: done before, kept[/dim]")
            return result
        self.console.print(f"[bold]{name}[/bold]")
        folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        result = run()
        seconds = time.monotonic() - start
        self.manifest.add(name, inputs, result, seconds)
        shown = ", ".join(f"{k} {_short(v)}" for k, v in result.numbers.items() if _plain(v))
        self.console.print(f"[dim]{name}: {seconds:.0f} s; {shown}[/dim]", highlight=False)
        return result


def _plain(value: Any) -> bool:
    return isinstance(value, int | float | str)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
