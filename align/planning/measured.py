"""Assumptions from a finished run: what its manifest and its searches' totals have measured.

Of each stage: answers' lengths, how hard the questions were for its policy, what a search took and
brought; and its seconds by those of its own plan, a factor that carries to other settings and other
models on the same machine. A stage of a new plan takes what was measured of the stage of its name,
else of its kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from align.context import BASE, StageEntry
from align.errors import ManifestError
from align.planning.assumptions import FEW_SHOT, Assumed, Assumptions, capped
from align.planning.devices import Device
from align.planning.difficulty import fitted
from align.planning.plan import make_plan
from align.planning.shapes import shape_of
from align.run_folder import read_manifest
from pts.algorithm.filtering import keeps
from pts.runtime.summary import read_summary

if TYPE_CHECKING:
    from align.pipeline.recipe import Recipe

READ = 200
"""Questions whose prompts are counted."""
START_SECONDS = 2.0
"""Of a stage on the machine of the run, where libraries are loaded once for all stages."""

Values = dict[str, float]


def assumed_from(folder: Path, recipe: Recipe, device: Device | None) -> Assumed:
    """What a run measured, over the assumptions.

    Args:
        folder: of a finished run.
        recipe: that its manifest keeps.
        device: that the run was on, so that its seconds carry over; None leaves them out.

    Raises:
        ManifestError: there is no run, or no stage of it is finished.
    """
    manifest = read_manifest(folder)
    stages = manifest["stages"]
    done = [entry for entry in recipe.stages if entry.name in stages]
    if not done:
        raise ManifestError(f"{folder}: no stage is finished; give --like a finished run")
    common: Values = {"start_seconds": START_SECONDS} if device else {}
    common |= _prompts(folder)
    values: dict[str, Values] = {}
    for entry in done:
        values[entry.name] = _of_stage(folder, entry, stages[entry.name]["metrics"], common)
    for name, record in stages.items():
        if name.startswith("eval/"):
            found = {"answer_tokens": record["metrics"]["tokens a completion"]}
            values[_key(recipe, name)] = found
    for name, found in values.items():
        common |= found if name != FEW_SHOT else {}
    kinds = {entry.kind: values[entry.name] for entry in done}
    evaluated = [found for name, found in values.items() if name.startswith("eval/")]
    if evaluated:
        kinds["eval"] = evaluated[-1]
    whole = Assumptions(**common)
    assumed = Assumed(
        whole,
        {name: whole.model_copy(update=found) for name, found in values.items()},
        {kind: whole.model_copy(update=found) for kind, found in kinds.items()},
        sources=dict.fromkeys(common, f"measured in {folder} (of the last stage that tells)"),
    )
    if device is None:
        return assumed
    factors = _factors(recipe, assumed, device, stages)
    return Assumed(assumed.common, assumed.of_stage, assumed.of_kind, factors, assumed.sources)


def _factors(
    recipe: Recipe, assumed: Assumed, device: Device, stages: Mapping[str, Any]
) -> dict[str, float]:
    """Measured seconds by planned ones, by stage, by kind, and of all together ("")."""
    plan = make_plan(recipe, shape_of(recipe.model), device, assumed)
    factors: dict[str, float] = {}
    for stage in plan.stages:
        if stage.name not in stages:
            continue
        start = stage.phases[0].seconds
        took = max(0.1, stages[stage.name]["seconds"] - start)
        factor = took / max(1e-9, stage.seconds - start)
        key = _key(recipe, stage.name)
        factors[key] = factor
        if key != FEW_SHOT:
            factors[stage.kind] = factor
    return {**factors, "": float(np.median([*factors.values()]))}


def _key(recipe: Recipe, name: str) -> str:
    """What an evaluation's or a stage's measurements are known by."""
    few_shot = name == f"eval/{BASE}" and recipe.model.few_shot_base
    return FEW_SHOT if few_shot else name


def _prompts(folder: Path) -> Values:
    """Tokens of a prompt, as the answers of a stage or the results of a search tell."""
    for pattern in ("*/answers/samples.jsonl", "*/results.jsonl"):
        for file in sorted(folder.glob(pattern)):
            lengths = [*_prompt_lengths(file)]
            if lengths:
                return {"prompt_tokens": sum(lengths) / len(lengths)}
    return {}


def _prompt_lengths(file: Path) -> Iterator[int]:
    with file.open(encoding="utf-8") as lines:
        for _, line in zip(range(READ), lines, strict=False):
            row = json.loads(line)
            yield len(row.get("result", row)["prompt_ids"])


def _of_stage(
    folder: Path, entry: StageEntry, metrics: Mapping[str, Any], common: Values
) -> Values:
    settings: Any = entry.settings
    if entry.kind == "sft" and metrics.get("rows"):
        loss = metrics["assistant_tokens"] / metrics["rows"]
        chat = loss + common.get("prompt_tokens", loss)
        return {"chat_tokens": chat, "loss_share": loss / chat}
    if entry.kind == "pts":
        return _of_search(folder / entry.name, settings, metrics)
    if not metrics.get("generated_tokens") or "questions_mixed" not in metrics:
        return {}
    k, questions = settings.samples, metrics["questions"]
    found = {"answer_tokens": metrics["generated_tokens"] / (questions * k)}
    counts = [metrics[f"questions_{which}"] for which in ("all_wrong", "mixed", "all_right")]
    hard = fitted(counts, 1, k - 1, k) if k > 1 else None
    if hard is not None:
        found |= {"solve_a": hard.a, "solve_b": hard.b}
        if entry.kind == "rejection_sft" and settings.judge is None:
            right = questions * k * hard.mean
            found["distinct_share"] = min(1.0, max(0.01, metrics["rows"] / right))
    return found


def _of_search(folder: Path, settings: Any, metrics: Mapping[str, Any]) -> Values:
    """Of a search; a control arm tells nothing that its settings do not."""
    summary, config = read_summary(folder), settings.search
    if summary is None or settings.pairs_from != "search":
        return {}
    n = config.filter_rollouts
    kept = np.flatnonzero(keeps(np.arange(n + 1), n, config.p_min, config.p_max))
    status = [summary.questions.get(name, 0) for name in ("too hard", "searched", "too easy")]
    hard = fitted(status, int(kept[0]), int(kept[-1]), n) if kept.size else None
    found = {"solve_a": hard.a, "solve_b": hard.b} if hard is not None else {}
    spent, searched = summary.spent, status[1]
    if "filter" not in spent or not spent["filter"].rollouts:
        return found
    answer = spent["filter"].tokens / spent["filter"].rollouts
    found["answer_tokens"] = answer
    proposed = sum(summary.proposed.values())
    if searched and config.paths and (drawn := spent.get("search")) and drawn.rollouts:
        each = drawn.rollouts / (searched * config.paths)
        found["path_rollouts"] = uncapped(each, config.max_rollouts)
        found["search_share"] = min(1.0, drawn.tokens / drawn.rollouts / answer)
    if proposed and searched and (drawn := spent.get("confirm")) and drawn.rollouts:
        each = drawn.rollouts / (2 * proposed)
        found["proposals"] = proposed / searched
        found["confirm_rollouts"] = uncapped(each, config.confirm_rollouts)
        found["confirm_share"] = min(1.0, drawn.tokens / drawn.rollouts / answer)
        found["confirmed"] = min(1.0, max(0.01, metrics["pairs"] / proposed))
    return found


def uncapped(mean: float, most: float) -> float:
    """The inverse of `capped` in its first argument; ten times `most` where nearly all were cut."""
    low, high = mean, 10.0 * most
    if capped(high, most) <= mean:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if capped(middle, most) < mean else (low, middle)
    return high
