"""The sweep file: a recipe, its arms, what is compared, and ranges for random search.

    sweep = load_sweep(Path("sweep.yaml"), ["evaluate.problems=200"])

An arm is a name for the policy of one stage. Arms are branches of one recipe (stages with `name`
and `from`), so one seed of a sweep is one run in which they share all that they have in common.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.context import BASE
from align.errors import RecipeError
from align.pipeline.recipe import Recipe, load_recipe, measured_otherwise
from align.stages import STAGES
from align.sweep.settings import Pair, Range, SweepFile, with_settings
from align.tasks.registry import build_task
from align.yaml_files import read_file
from pts.config import parse_settings
from pts.errors import ConfigError, did_you_mean

NAME = re.compile(r"[\w-]+")
MEASURED_BY = ("task", "evaluate", "sampling")
"""Sections of a recipe that decide what a policy is measured on."""


@dataclass(frozen=True)
class Sweep:
    """A sweep file and its recipe, both checked."""

    file: SweepFile
    recipe: Recipe
    """With the stages of all arms; its seed is replaced by each seed of the sweep."""

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs of arms, the primary ones first."""
        return (*self.file.primary, *self.file.contrasts)


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file and its recipe; `overrides` come after those of the file.

    Raises:
        RecipeError: every fault of the file, or every fault of the recipe.
    """
    data = _read(path)
    try:
        file = parse_settings(SweepFile, data, str(path))
    except ConfigError as error:
        raise RecipeError(*error.problems) from None
    stages = {"stages": list(file.stages)} if file.stages else {}
    recipe = load_recipe(file.recipe, [*file.overrides, *overrides], stages)
    faults = [*_arms_faults(file, recipe), *_ranges_faults(file, recipe)]
    faults += _also_faults(file, recipe)
    faults += [
        f"overrides: got {text!r}, but a sweep's seeds are those of --seeds; leave it out"
        for text in (*file.overrides, *overrides)
        if text.partition("=")[0] == "seed"
    ]
    if faults:
        raise RecipeError(*(f"{path}: {fault}" for fault in faults))
    return Sweep(file, recipe)


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of a file, put over those of the file that it extends; `overrides` are appended."""
    data = read_file(path, "align sweep")
    base = data.pop("extends", None)
    if base is None:
        return data
    above = (*above, path.resolve())
    if not isinstance(base, str) or (path.parent / base).resolve() in above:
        raise RecipeError(
            f"{path}: extends: got {base!r}; name a sweep file that does not extend it"
        )
    below = _read(path.parent / base, above)
    lists = [keys.get("overrides") or [] for keys in (below, data)]
    appended = {"overrides": [*lists[0], *lists[1]]} if all(map(_is_list, lists)) else {}
    return below | data | appended


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _arms_faults(file: SweepFile, recipe: Recipe) -> Iterator[str]:
    policies = {BASE, *(e.name for e in recipe.stages if STAGES[e.kind].makes == "policy")}
    for arm, stage in file.arms.items():
        if stage not in policies:
            hint = did_you_mean(stage, policies) or f"; known: {', '.join(sorted(policies))}"
            yield f"arms.{arm}: no stage {stage!r} that makes a policy{hint}"
        if not NAME.fullmatch(arm):
            yield f"arms: got {arm!r}; letters, digits, _ and - are names"
    for key, pairs in (("primary", file.primary), ("contrasts", file.contrasts)):
        for pair in pairs:
            for arm in pair:
                if arm not in file.arms:
                    yield f"{key}: no arm {arm!r}{did_you_mean(arm, file.arms)}"
            if pair[0] == pair[1]:
                yield f"{key}: {pair[0]!r} is compared with itself; name two arms"
    named = dict[frozenset[str], str]()
    for key, pairs in (("primary", file.primary), ("contrasts", file.contrasts)):
        for pair in pairs:
            if before := named.get(frozenset(pair)):
                where = "is primary already" if before != key else "stands twice"
                yield f"{key}: {[*pair]} {where}; name it once, one way round"
            named.setdefault(frozenset(pair), key)


def _also_faults(file: SweepFile, recipe: Recipe) -> Iterator[str]:
    """Sets of problems that cannot be had; found by drawing two of each."""
    for name, overrides in file.also.items():
        strange = [text for text in overrides if text.partition(".")[0] not in MEASURED_BY]
        if strange or not NAME.fullmatch(name):
            yield (
                f"also.{name}: got {strange[0]!r}, which changes nothing of an evaluation"
                if strange
                else f"also: got {name!r}; letters, digits, _ and - are names"
            )
            continue
        try:
            other = measured_otherwise(recipe, overrides)
            build_task(other.task).problems(other.evaluate.split, 2, 0)
        except ConfigError as error:
            yield from (f"also.{name}: {fault}" for fault in error.problems)


def _ranges_faults(file: SweepFile, recipe: Recipe) -> Iterator[str]:
    """Ranges of unknown stages, and ends of ranges that the stage's settings refuse."""
    entries = {entry.name: entry for entry in recipe.stages}
    for stage, ranges in file.tune.items():
        if stage not in entries:
            yield f"tune.{stage}: no such stage{did_you_mean(stage, entries)}"
            continue
        if not ranges:
            yield f"tune.{stage}: names no setting; give a range, or leave the stage out"
        for key, values in ranges.items():
            if not isinstance(values, Range) and len(values) < 2:
                yield f"tune.{stage}.{key}: got {[*values]}; give two choices or more"
            for value in (values.low, values.high) if isinstance(values, Range) else values:
                try:
                    with_settings(entries[stage].settings, {key: value}, f"tune.{stage}")
                except ConfigError as error:
                    yield from error.problems
