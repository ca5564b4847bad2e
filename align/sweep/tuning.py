"""The log of a random search: every point of every arm, its settings, its accuracy, the best one.

    log = tuning_log(plan, cells)
    log.to_text(), log.to_markdown(), log.to_json()

The best point has the highest mean over the tuning seeds, among those measured on most of them
(after the first seed a search may go on with the best points alone: successive halving, Jamieson
and Talwalkar 2016). A value at the edge of its range is said
so: the range should then be extended before the winner is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from align.context import BASE
from align.evaluation.tables import Measure, TextTable, markdown_of, text_of
from align.sweep.plan import CellKey, at_edge, needed

if TYPE_CHECKING:
    from align.sweep.cells import Cell
    from align.sweep.plan import Plan


@dataclass(frozen=True, slots=True)
class Point:
    """An arm at a point."""

    point: int
    """0 is the recipe as it stands."""
    settings: tuple[str, ...]
    """Of the arm's own stages, as overrides; none at point 0."""
    accuracy: Mapping[int, float]
    """By seed."""
    edges: tuple[str, ...]
    """Of the settings, those at the edge of their range."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return sum(self.accuracy.values()) / len(self.accuracy)


@dataclass(frozen=True)
class TuningLog:
    """The points of every arm, the best first."""

    measure: Measure
    seeds: tuple[int, ...]
    arms: Mapping[str, tuple[Point, ...]]
    missing: int

    def blocks(self) -> list[TextTable]:
        """A table an arm."""
        header = ("", *(f"seed {seed}" for seed in self.seeds), "mean", "settings")
        return [
            TextTable(
                f"{arm}: {self.measure} accuracy %",
                header,
                tuple(
                    (
                        f"point {p.point}",
                        *(
                            f"{100 * p.accuracy[seed]:.1f}" if seed in p.accuracy else "-"
                            for seed in self.seeds
                        ),
                        f"{100 * p.mean:.1f}",
                        " ".join(p.settings) or "as they stand",
                    )
                    for p in found
                ),
            )
            for arm, found in self.arms.items()
        ]

    def sentences(self) -> list[str]:
        """The winners, and which of them lie at an edge."""
        said = [f"{self.missing} cells are not there yet."] if self.missing else []
        for arm, found in self.arms.items():
            best = found[0]
            edges = f"; at the edge of its range: {', '.join(best.edges)}" if best.edges else ""
            chosen = " ".join(best.settings) or "the settings as they stand"
            said.append(f"{arm}: point {best.point} is best ({chosen}){edges}.")
        return said

    def to_text(self) -> str:
        """For a terminal."""
        return "\n\n".join([*map(text_of, self.blocks()), "\n".join(self.sentences())])

    def to_markdown(self) -> str:
        """For publication beside the table."""
        said = "\n".join(f"- {line}" for line in self.sentences())
        return "\n\n".join([*map(markdown_of, self.blocks()), said]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """All numbers, JSON-able."""
        arms = {
            arm: [{**asdict(p), "mean": p.mean} for p in found] for arm, found in self.arms.items()
        }
        return {
            "measure": self.measure, "seeds": list(self.seeds), "arms": arms,
            "missing": self.missing,
        }  # fmt: skip


def tuning_log(plan: Plan, cells: Mapping[CellKey, Cell], missing: int = 0) -> TuningLog:
    """The log of the cells that are there."""
    measure = plan.sweep.file.measure
    accuracy: dict[tuple[str, int], dict[int, float]] = {}
    for key, cell in sorted(cells.items()):
        if key.point is not None:
            accuracy.setdefault((key.arm, key.point), {})[key.seed] = cell.measured.metrics[measure]
    arms: dict[str, list[Point]] = {}
    for (arm, point), by_seed in accuracy.items():
        arms.setdefault(arm, []).append(_point(plan, arm, point, by_seed))
    return TuningLog(
        measure,
        tuple(sorted({key.seed for key in cells})),
        {arm: tuple(sorted(found, key=_rank)) for arm, found in arms.items()},
        missing,
    )


def _rank(point: Point) -> tuple[int, float]:
    return -len(point.accuracy), -point.mean


def _point(plan: Plan, arm: str, point: int, accuracy: Mapping[int, float]) -> Point:
    stage, ranges = plan.sweep.file.arms[arm], plan.sweep.file.tune
    own = needed(plan.sweep.recipe, [stage] if stage != BASE else [], costs=True)
    drawn = {
        f"{name}.{key}": (values[key], ranges[name][key])
        for name, values in plan.draws.get(point, {}).items()
        if name in own
        for key in values
    }
    return Point(
        point,
        tuple(f"{key}={value}" for key, (value, _) in drawn.items()),
        accuracy,
        tuple(key for key, (value, values) in drawn.items() if at_edge(values, value)),
    )
