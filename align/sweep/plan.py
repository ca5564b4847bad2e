"""What a sweep has to do: cells, the stages that each needs, and points of random search.

A cell is an arm under one seed, or, in random search, under one seed at one point. All cells of a
seed are branches of one run. At a point the stages that have ranges, and all that comes after them,
are copies named STAGE-pN with drawn settings; what comes before is shared, and a copy asks the same
questions as its original. Point 0 is the recipe as it stands.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from align.context import BASE, StageEntry, seed_of
from align.errors import RecipeError
from align.stages import STAGES
from align.sweep.settings import Range, with_settings

if TYPE_CHECKING:
    from align.pipeline.recipe import Recipe
    from align.sweep.file import Sweep

Draws = Mapping[str, Mapping[str, Any]]
"""Drawn settings, by stage."""
EDGE = 0.1
"""A value within this share of a range, from one of its ends, lies at the edge."""


@dataclass(frozen=True, slots=True, order=True)
class CellKey:
    """Names a cell, and with it its file."""

    arm: str
    seed: int
    point: int | None = None
    """Of random search."""

    @property
    def name(self) -> str:
        """Of the cell's file, without its ending."""
        point = "" if self.point is None else f"-point{self.point}"
        return f"{self.arm}-seed{self.seed}{point}"


@dataclass(frozen=True)
class Plan:
    """The cells of every seed, and the recipe that makes them."""

    sweep: Sweep
    recipe: Recipe
    """With copies of stages for the points."""
    stages: Mapping[tuple[str, int | None], str]
    """The stage whose policy is measured for an arm (at a point)."""
    draws: Mapping[int, Draws]
    """The settings of each point."""

    @property
    def also(self) -> Mapping[str, Sequence[str]]:
        """Further sets of problems; none in random search."""
        return {} if self.draws else self.sweep.file.also

    def cells(self, seed: int) -> list[CellKey]:
        """The cells of a seed, in the order in which they are made."""
        order = {name: k for k, name in enumerate([BASE, *(e.name for e in self.recipe.stages)])}
        keys = sorted(self.stages, key=lambda key: order[self.stages[key]])
        return [CellKey(arm, seed, point) for arm, point in keys]

    def stage_of(self, key: CellKey) -> str:
        """The stage whose policy is measured for a cell."""
        return self.stages[key.arm, key.point]

    def recipe_for(self, keys: Sequence[CellKey]) -> Recipe:
        """The recipe that makes these cells of one seed, and nothing else.

        Problems are drawn for each seed anew, so that means over seeds vary with them as well.
        """
        measured = {self.stage_of(key) for key in keys}
        recipe = pruned(self.recipe, needed(self.recipe, measured))
        policies = [BASE, *(e.name for e in recipe.stages if STAGES[e.kind].makes == "policy")]
        skip = tuple(name for name in policies if name not in measured)
        evaluate = recipe.evaluate.model_copy(
            update={"seed": seed_of(recipe.evaluate.seed, "sweep", keys[0].seed), "skip": skip}
        )
        return recipe.model_copy(update={"seed": keys[0].seed, "evaluate": evaluate})


def plan(sweep: Sweep, points: int = 0) -> Plan:
    """The plan of a sweep, or of its random search with so many `points` beside the recipe's own.

    Random search measures on the dev split, whatever the recipe says.

    Raises:
        RecipeError: points are asked for, and the sweep has no ranges.
    """
    arms = sweep.file.arms
    if points and not sweep.file.tune:
        raise RecipeError("--sample: the sweep has no ranges to draw from; give it a section tune")
    if not points:
        return Plan(sweep, sweep.recipe, {(arm, None): stage for arm, stage in arms.items()}, {})
    stages: dict[tuple[str, int | None], str] = {(arm, 0): stage for arm, stage in arms.items()}
    evaluate = sweep.recipe.evaluate.model_copy(update={"split": "dev", "temperatures": ()})
    recipe = sweep.recipe.model_copy(update={"evaluate": evaluate})
    entries, draws = list(recipe.stages), dict[int, Draws]()
    for point in range(1, points + 1):
        draws[point] = drawn(sweep, point)
        copies = _copies(recipe, draws[point], point)
        entries += copies.values()
        stages |= {
            (arm, point): copies[stage].name for arm, stage in arms.items() if stage in copies
        }
    return Plan(sweep, recipe.model_copy(update={"stages": tuple(entries)}), stages, draws)


def drawn(sweep: Sweep, point: int) -> Draws:
    """The settings of a point: the same for every arm that has the stage, whatever the others."""
    return {
        stage: {
            key: _draw(values, random.Random(f"{stage}|{key}|{point}"))
            for key, values in ranges.items()
        }
        for stage, ranges in sweep.file.tune.items()
    }


def _draw(values: Range | Sequence[Any], rng: random.Random) -> Any:
    if not isinstance(values, Range):
        return rng.choice(values)
    drawn = math.exp(rng.uniform(math.log(values.low), math.log(values.high)))
    return min(values.high, max(values.low, float(f"{drawn:.3g}")))


def at_edge(values: Range | Sequence[Any], value: Any) -> bool:
    """Whether a drawn value lies at an end of its range, or is the first or last choice."""
    if not isinstance(values, Range):
        return value in (values[0], values[-1])
    share = math.log(value / values.low) / math.log(values.high / values.low)
    return not EDGE <= share <= 1 - EDGE


def _copies(recipe: Recipe, draws: Draws, point: int) -> dict[str, StageEntry]:
    """Copies of the stages that a point changes, and of those that build on them."""
    copies: dict[str, StageEntry] = {}
    for entry in (resolved(recipe, entry) for entry in recipe.stages):
        sources = parents(recipe, entry)
        if entry.name not in draws and not any(name in copies for name in sources):
            continue
        settings = with_settings(entry.settings, draws.get(entry.name, {}), entry.name)
        settings = settings.model_copy(update=_renamed(settings, copies))
        start = copies[entry.start].name if entry.start in copies else entry.start
        copies[entry.name] = StageEntry(
            entry.kind, f"{entry.name}-p{point}", settings, start, entry.share or entry.name
        )
    return copies


def _renamed(settings: Any, copies: Mapping[str, StageEntry]) -> dict[str, Any]:
    """Those of a stage's settings that name stages, the copied ones under their new names."""
    found: dict[str, Any] = {}
    for key in NAMING:
        named = getattr(settings, key, None)
        if isinstance(named, str) and named in copies:
            found[key] = copies[named].name
        elif isinstance(named, tuple):
            found[key] = tuple(copies[name].name if name in copies else name for name in named)
    return found


NAMING = ("pairs", "rollouts", "match")
"""Settings of a stage that name other stages."""


def resolved(recipe: Recipe, entry: StageEntry) -> StageEntry:
    """The stage with its start and its pairs named, so that they stay when others go."""
    settings = entry.settings
    if STAGES[entry.kind].needs_pairs:
        settings = settings.model_copy(update={"pairs": recipe.pairs_of(entry)})
    return dataclasses.replace(entry, start=recipe.start_of(entry), settings=settings)


def parents(recipe: Recipe, entry: StageEntry) -> list[str]:
    """The stages that a stage is made of: its start, and those that its settings name."""
    entry = resolved(recipe, entry)
    named = [getattr(entry.settings, key, ()) for key in NAMING]
    flat = [name for names in named for name in ([names] if isinstance(names, str) else names)]
    return [name for name in (entry.start, *flat) if name and name != BASE]


def needed(recipe: Recipe, stages: Iterable[str], costs: bool = False) -> list[str]:
    """Stages, in the recipe's order, without which the policies of `stages` cannot be made.

    With `costs`, those alone that the policies are made of: a stage whose cost is matched, or whose
    problems are shared, has to be there and is not part of what the policy cost.
    """
    entries = {entry.name: entry for entry in recipe.stages}
    found, waiting = set[str](), [name for name in stages if name != BASE]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        beside = {*getattr(entries[name].settings, "match", ())}
        names = parents(recipe, entries[name])
        if costs:
            waiting += [parent for parent in names if parent not in beside]
        else:
            waiting += [*names, *filter(None, [entries[name].share])]
    return [entry.name for entry in recipe.stages if entry.name in found]


def pruned(recipe: Recipe, names: Iterable[str]) -> Recipe:
    """The recipe with these stages alone, and without sections that no stage runs."""
    kept = {*names}
    stages = tuple(resolved(recipe, entry) for entry in recipe.stages if entry.name in kept)
    return recipe.model_copy(update={"stages": stages, "unused": {}})
