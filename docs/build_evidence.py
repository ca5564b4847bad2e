"""The pictures and tables of docs/evidence.md: what each arm reached, world by world.

`python docs/build.py` writes them, and table.md and table.json beside the cells, from the cells of
the experiment and of its pilot: whole seeds alone.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from align.evaluation.statistics import mean_interval, paired_mean
from align.evaluation.tables import points
from align.report.charts import gains, gains_side_by_side, standalone
from align.sweep.cells import Cell, read_cell
from align.sweep.file import load_sweep
from align.sweep.plan import CellKey
from align.sweep.table import ContrastRow, SweepTable, sweep_table, values_of
from pts.types import Estimate

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = Path(__file__).parent / "pictures"
PAGE = Path(__file__).parent / "evidence.md"
BEGIN, END = "<!-- tables: made by docs/build.py -->", "<!-- end of tables -->"
WORLDS = {"soft": 6, "late": 6, "rare": 4, "even": 4, "fatal": 6}
"""The worlds and how many test seeds each is to have."""
INTERIM = (
    "**A look on the way: {} of {} seeds.** The p values and verdicts below "
    "count when all are there.\n\n"
)
ARMS = {
    "pairs": "confirmed pairs",
    "as-many": "as many uncertain pairs",
    "coin": "as many, by a coin",
    "rollouts": "the search's right answers",
    "both": "these, then the pairs",
    "again": "rejection sampling again",
    "full": "full-length DPO",
    "chain": "both, then full-length DPO",
    "twice": "again, then full-length DPO",
}
CONTRASTS = (
    ("both", "rollouts"),
    ("chain", "twice"),
    ("pairs", "as-many"),
    ("pairs", "again"),
    ("pairs", "full"),
    ("pairs", "uncertain"),
    ("pairs", "coin"),
)
"""The first three are primary."""
TOLD = (
    "pairs",
    "rollouts",
    "both",
    "again",
    "full",
    "uncertain",
    "as-many",
    "coin",
    "chain",
    "twice",
)
"""Arms in the tables, after the start."""
SAMPLED_BY = {
    "pairs": ["search"],
    "again": ["again"],
    "full": ["full"],
    "uncertain": ["uncertain"],
    "as-many": ["as_many"],
    "coin": ["coin"],
    "chain": ["search", "chain"],
    "twice": ["again", "twice"],
}
"""The stages after the start that sample for an arm; `uncertain`, `as-many` and `coin` are held
along the search's right answers besides."""
LESS = "above 0, less than the first"
PREDICTED = {
    ("both", "rollouts"): dict.fromkeys(("soft", "late", "rare"), "5 or more")
    | dict.fromkeys(("even", "fatal"), "within 1"),
    ("chain", "twice"): dict.fromkeys(("soft", "late", "rare"), LESS)
    | dict.fromkeys(("even", "fatal"), "0 or below"),
    ("pairs", "as-many"): dict.fromkeys(("soft", "late", "rare"), "5 or more")
    | {"even": "within 1", "fatal": "0 or above"},
}
"""Of the differences in points at T = 0.7, world by world."""
PILOT = {
    "pairs": "50 confirmed pairs",
    "as-many": "50 pairs at uncertain places",
    "uncertain": "348 pairs at uncertain places",
    "rollouts": "the search's right answers",
    "again": "rejection sampling again",
    "twice": "the same, then full-length DPO",
}


def files() -> dict[Path, str]:
    """What `python docs/build.py` writes for this part."""
    worlds = {world: World.of(world) for world in WORLDS}
    pilot = [(label, _pilot_gain(arm)) for arm, label in PILOT.items()]
    panels = {
        f"{name} ({len(world.seeds)} of {WORLDS[name]} seeds)": [
            (label, world.gains(arm)) for arm, label in ARMS.items()
        ]
        for name, world in worlds.items()
    }
    written = {
        PICTURES / "pilot.svg": standalone(gains(pilot)),
        PICTURES / "worlds.svg": standalone(gains_side_by_side(panels)),
        PAGE: _page(PAGE.read_text(encoding="utf-8"), worlds),
    }
    for name, world in worlds.items():
        folder = RESULTS / f"worlds_{name}"
        interim = "" if world.complete else INTERIM.format(len(world.seeds), world.planned)
        written[folder / "table.md"] = interim + world.table.to_markdown()
        written[folder / "table.json"] = json.dumps(world.table.to_json(), indent=2) + "\n"
    return written


@dataclass(frozen=True)
class World:
    """The finished seeds of a world."""

    planned: int
    table: SweepTable
    cells: Mapping[CellKey, Cell]

    @classmethod
    def of(cls, name: str) -> World:
        """Read the cells of all seeds whose every arm is there."""
        sweep = load_sweep(ROOT / "benchmarks" / "worlds" / f"{name}.yaml")
        folder = RESULTS / f"worlds_{name}" / "cells"
        seeds = [int(path.stem.rpartition("seed")[2]) for path in folder.glob("start-seed*.json")]
        cells = {}
        for seed in sorted(seeds):
            keys = [CellKey(arm, seed) for arm in sweep.file.arms]
            if all((folder / f"{key.name}.json").exists() for key in keys):
                cells |= {key: read_cell(folder / f"{key.name}.json") for key in keys}
        made = {(cell.source, str(cell.made.get("commit"))) for cell in cells.values()}
        assert len(made) == 1, f"{name}: cells of {len(made)} versions"
        return cls(WORLDS[name], sweep_table(sweep, cells), cells)

    @property
    def seeds(self) -> tuple[int, ...]:
        """In their order."""
        return self.table.rows[0].seeds

    @property
    def complete(self) -> bool:
        """Whether all seeds that were declared are there."""
        return len(self.seeds) == self.planned

    def row(self, second: str, first: str) -> ContrastRow:
        """A contrast at T = 0.7."""
        return next(
            row
            for row in self.table.contrasts
            if row.arms == (first, second) and row.measure == "sampled"
        )

    def means(self, value: Callable[[Cell], float]) -> dict[str, float]:
        """Of each arm, the seeds' mean."""
        return {
            row.arm: statistics.mean(value(self.cells[CellKey(row.arm, s)]) for s in self.seeds)
            for row in self.table.rows
        }

    def gains(self, arm: str) -> list[float]:
        """`arm` less the start at T = 0.7, seed by seed."""
        start, reached = (
            [values_of(self.cells[CellKey(one, s)].measured.items, "sampled") for s in self.seeds]
            for one in ("start", arm)
        )
        return [float((b - a).mean()) for a, b in zip(start, reached, strict=True)]


def _page(text: str, worlds: Mapping[str, World]) -> str:
    """The page with its tables made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    blocks = [
        _accuracies("T = 0.7", lambda cell: cell.measured.metrics["sampled"], worlds),
        _differences(worlds),
        _predictions(worlds),
        _accuracies("greedy", lambda cell: cell.measured.metrics["greedy"], worlds),
        _accuracies("pass@4", lambda cell: cell.measured.metrics["pass_at_k"], worlds),
        _entropies(worlds),
        _costs(worlds),
    ]
    return before + "\n\n".join([BEGIN, *blocks, END]) + after


def _heads(worlds: Mapping[str, World]) -> list[str]:
    return [f"{name} ({len(world.seeds)} of {world.planned})" for name, world in worlds.items()]


def _accuracies(name: str, value: Callable[[Cell], float], worlds: Mapping[str, World]) -> str:
    """Means over the seeds; the best arm of a world in bold."""
    means = [world.means(value) for world in worlds.values()]
    rows = []
    for arm in ("start", *TOLD):
        told = [(100 * of[arm], 100 * max(of.values())) for of in means]
        rows.append(
            [f"`{arm}`", *(f"**{x:.1f}**" if x == most else f"{x:.1f}" for x, most in told)]
        )
    return _markdown([f"{name}, %, mean of the seeds", *_heads(worlds)], rows)


def _entropies(worlds: Mapping[str, World]) -> str:
    means = [w.means(lambda cell: cell.measured.metrics["entropy"]) for w in worlds.values()]
    rows = [[f"`{arm}`", *(f"{of[arm]:.3f}" for of in means)] for arm in ("start", *TOLD)]
    return _markdown(["entropy, nats a token", *_heads(worlds)], rows)


def _costs(worlds: Mapping[str, World]) -> str:
    """Of the stages after the start that sample for an arm: generated tokens and verifier calls."""
    rows = []
    for arm, stages in SAMPLED_BY.items():
        cells = []
        for world in worlds.values():
            found = [world.cells[CellKey(arm, seed)].stages for seed in world.seeds]
            tokens, calls = (
                statistics.mean(sum(of[stage][what] for stage in stages) for of in found)
                for what in ("generated_tokens", "verifier_calls")
            )
            cells.append(f"{tokens / 1000:,.0f}k / {calls / 1000:.1f}k")
        rows.append([f"`{arm}`", *cells])
    return _markdown(["generated tokens / verifier calls after the start", *_heads(worlds)], rows)


def _differences(worlds: Mapping[str, World]) -> str:
    """Differences at T = 0.7 with their intervals over the seeds, and the seeds' own."""
    rows = []
    for second, first in CONTRASTS:
        cells = []
        for world in worlds.values():
            row = world.row(second, first)
            own = [100 * one.difference.mean for one in row.found.per_seed]
            mean, interval = points(row.found.difference).split(" ", 1)
            text = f"**{mean}** {interval}<br>" + ", ".join(f"{x:+.1f}" for x in own)
            if row.adjusted is not None:
                p = "p < 0.001" if row.adjusted < 0.0005 else f"p = {row.adjusted:.3f}"
                said = f"{p}, {row.verdict}" if world.complete else "interim"
                text += f"<br>{said}"
            cells.append(text.replace("-", "−"))
        rows.append([f"`{second}` − `{first}`", *cells])
    return _markdown(["points at T = 0.7", *_heads(worlds)], rows)


def _predictions(worlds: Mapping[str, World]) -> str:
    """What was predicted of the primary contrasts, and what the intervals say of it."""
    rows = []
    for (second, first), predicted in PREDICTED.items():
        cells = []
        for name, world in worlds.items():
            prediction = predicted[name]
            said = _judged(prediction, world, (second, first))
            cells.append(f"{prediction}: {said if world.complete else said + ' so far'}")
        rows.append([f"`{second}` − `{first}`", *cells])
    return _markdown(["predicted: found", *_heads(worlds)], rows)


def _judged(prediction: str, world: World, arms: tuple[str, str]) -> str:
    """`met` where the interval lies inside what was predicted, `contradicted` outside, else `open`.

    "Within 1" is met where the 90 % interval lies inside.
    """
    found = world.row(*arms).found
    low, high = 100 * found.difference.low, 100 * found.difference.high
    if prediction == "within 1":
        met, out = bool(found.equivalent), low > 1 or high < -1
    elif prediction == LESS:
        other = world.row("both", "rollouts").found
        less = mean_interval(
            [
                a.difference.mean - b.difference.mean
                for a, b in zip(other.per_seed, found.per_seed, strict=True)
            ]
        )
        met, out = low > 0 and less.low > 0, high <= 0 or less.high <= 0
    else:
        at, sign = {"5 or more": (5, 1), "0 or above": (0, 1), "0 or below": (0, -1)}[prediction]
        near, far = (low, high) if sign > 0 else (-high, -low)
        met, out = near >= at, far < at
    return "met" if met else "contradicted" if out else "open"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _pilot_gain(arm: str) -> Estimate:
    """`arm` less the start over the problems of the pilot's one seed; paired by problem."""
    folder = RESULTS / "worlds_pilot" / "cells"
    start, rates = (
        values_of(read_cell(folder / f"{a}-seed100.json").measured.items, "sampled")
        for a in ("start", arm)
    )
    return paired_mean(start, rates).difference
