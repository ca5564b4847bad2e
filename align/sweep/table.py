"""The tables of a sweep: a row an arm, a row a contrast, and what may be said of them.

    table = sweep_table(sweep, cells)
    table.to_text(), table.to_markdown(), table.to_json(), table.picture()

An arm's interval is Student's over the seeds. A contrast takes the seeds that have both arms. The
p values of the primary contrasts are adjusted for their number (Holm), each measure by itself; only
the deciding measure gets a verdict. The other contrasts are described by their intervals alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from align.evaluation.seeds import SeedContrast, compare_arms, mean_over_seeds
from align.evaluation.statistics import Floats, holm
from align.evaluation.tables import (
    ALPHA,
    MEASURES,
    Measure,
    TextTable,
    markdown_of,
    p_text,
    percent,
    points,
    text_of,
)
from align.ledger import Ledger
from align.report.charts import gains, standalone
from align.sweep.cells import Cell, Items
from align.sweep.plan import CellKey
from pts.types import Estimate

if TYPE_CHECKING:
    from align.sweep.file import Sweep

NAMES: Mapping[Measure, str] = {"greedy": "greedy", "sampled": "sampled", "best": "best T"}
COSTS = {
    "generated_tokens": "generated tokens",
    "verifier_calls": "verifier calls",
    "distinct_questions": "questions",
    "trained_tokens": "trained tokens",
    "judge_calls": "judge calls",
    "judge_tokens": "judge tokens",
    "generator_calls": "generator calls",
    "generator_tokens": "generator tokens",
}
"""Costs and their names; those after the first four only where an arm has them."""
ALWAYS = 4


@dataclass(frozen=True, slots=True)
class ArmRow:
    """An arm over its seeds."""

    arm: str
    seeds: tuple[int, ...]
    means: Mapping[Measure, Estimate]
    per_seed: Mapping[Measure, tuple[float, ...]]
    ledger: Ledger
    """Mean of the seeds."""
    also: Mapping[str, Mapping[Measure, Estimate]]
    """Means on further sets of problems, by name."""


@dataclass(frozen=True, slots=True)
class ContrastRow:
    """The second arm minus the first, by one measure."""

    arms: tuple[str, str]
    measure: Measure
    primary: bool
    seeds: tuple[int, ...]
    found: SeedContrast
    adjusted: float | None
    """p over the seeds after Holm; None for what is only described, and for a single seed."""
    decides: bool
    """Whether this is the measure that the sweep's file decides by."""

    @property
    def verdict(self) -> str:
        """What may be said; of a contrast or a measure that decides nothing, nothing."""
        if not (self.primary and self.decides):
            return ""
        if self.adjusted is None:
            return "one seed: nothing can be said of new training runs"
        mean = self.found.difference.mean
        said = []
        if self.adjusted < ALPHA and mean:
            said.append("better" if mean > 0 else "worse")
        if self.found.equivalent:
            said.append("equivalent within the margin")
        return " and ".join(said) or "not established"


@dataclass(frozen=True)
class SweepTable:
    """What a sweep found so far."""

    sweep: Sweep
    rows: tuple[ArmRow, ...]
    contrasts: tuple[ContrastRow, ...]
    notes: tuple[str, ...]

    def blocks(self) -> list[TextTable]:
        """Accuracies, costs, differences."""
        title = "Accuracy %, mean of the seeds"
        blocks = [_accuracies(title, [(row, row.means) for row in self.rows]), _costs(self.rows)]
        for name in self.sweep.file.also:
            on_it = [(row, row.also[name]) for row in self.rows if name in row.also]
            blocks.append(_accuracies(f"Accuracy % on {name}, mean of the seeds", on_it))
        for measure in MEASURES:
            rows = [row for row in self.contrasts if row.measure == measure]
            if rows:
                blocks.append(_differences(measure, rows))
        return blocks

    def sentences(self) -> list[str]:
        """What may be said of the primary contrasts by the deciding measure."""
        return [
            f"{row.arms[1]} - {row.arms[0]}, {NAMES[row.measure]}: "
            f"{points(row.found.difference)} points: {row.verdict}."
            for row in self.contrasts
            if row.primary and row.measure == self.sweep.file.measure
        ]

    def to_text(self) -> str:
        """For a terminal."""
        parts = [text_of(block) for block in self.blocks()]
        return "\n\n".join([*parts, "\n".join([*self.sentences(), *self.notes])])

    def to_markdown(self) -> str:
        """For a README."""
        parts = [markdown_of(block) for block in self.blocks()]
        said = "\n".join(f"- {line}" for line in [*self.sentences(), *self.notes])
        return "\n\n".join([*parts, said]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """All numbers, JSON-able."""
        return {
            "measure": self.sweep.file.measure,
            "margin": self.sweep.file.margin,
            "arms": [asdict(row) for row in self.rows],
            "contrasts": [{**asdict(row), "verdict": row.verdict} for row in self.contrasts],
            "notes": list(self.notes),
        }

    def picture(self) -> str:
        """An SVG of the differences by the deciding measure; empty without contrasts."""
        rows = [
            (f"{row.arms[1]} - {row.arms[0]}", row.found.difference)
            for row in self.contrasts
            if row.measure == self.sweep.file.measure
        ]
        return standalone(gains(rows, self.sweep.file.margin)) if rows else ""


def sweep_table(sweep: Sweep, cells: Mapping[CellKey, Cell], missing: int = 0) -> SweepTable:
    """Build the table from cells without points; `missing` counts those that are not there yet."""
    arms = {
        arm: {key.seed: cell for key, cell in sorted(cells.items()) if key.arm == arm}
        for arm in sweep.file.arms
    }
    arms = {arm: by_seed for arm, by_seed in arms.items() if by_seed}
    measures = [
        m for m in MEASURES if m != "best" or all(c.measured.items.best for c in cells.values())
    ]
    rows = tuple(_arm(arm, by_seed, measures) for arm, by_seed in arms.items())
    contrasts = [
        row for measure in measures for row in _contrasts(sweep, arms, measure)
    ]  # fmt: skip
    notes = (*_missing(missing), *_notes(sweep, cells.values()))
    return SweepTable(sweep, rows, tuple(contrasts), notes)


def values_of(items: Items, measure: Measure) -> Floats:
    """A rate for each problem, in the items' order."""
    if measure == "greedy":
        return np.array(items.greedy, dtype=np.float64)
    if measure == "best":
        return np.array(items.best, dtype=np.float64)
    return np.array([k / n for k, n in zip(items.passed, items.samples, strict=True)])


def _arm(arm: str, by_seed: Mapping[int, Cell], measures: Sequence[Measure]) -> ArmRow:
    values = {m: [values_of(cell.measured.items, m) for cell in by_seed.values()] for m in measures}
    counts = [asdict(cell.ledger) for cell in by_seed.values()]
    return ArmRow(
        arm,
        tuple(by_seed),
        {m: mean_over_seeds(rates) for m, rates in values.items()},
        {m: tuple(float(r.mean()) for r in rates) for m, rates in values.items()},
        Ledger(**{k: round(sum(c[k] for c in counts) / len(counts)) for k in counts[0]}),
        {name: _means_on(name, by_seed) for name in next(iter(by_seed.values())).also},
    )


def _means_on(name: str, by_seed: Mapping[int, Cell]) -> dict[Measure, Estimate]:
    found = [cell.also[name].items for cell in by_seed.values()]
    kinds: tuple[Measure, ...] = ("greedy", "sampled")
    return {m: mean_over_seeds([values_of(items, m) for items in found]) for m in kinds}


def _contrasts(
    sweep: Sweep, arms: Mapping[str, Mapping[int, Cell]], measure: Measure
) -> list[ContrastRow]:
    found: list[tuple[tuple[str, str], tuple[int, ...], SeedContrast]] = []
    for first, second in sweep.pairs:
        seeds = tuple(seed for seed in arms.get(first, {}) if seed in arms.get(second, {}))
        if seeds:
            pairs = [(arms[first][seed], arms[second][seed]) for seed in seeds]
            found.append(((first, second), seeds, _compared(pairs, measure, sweep.file.margin)))
    tested = [
        (names, contrast.over_seeds.pvalue)
        for names, _, contrast in found
        if names in sweep.file.primary and contrast.over_seeds
    ]
    absent = [1.0] * (len(sweep.file.primary) - len(tested))  # the family stays as declared
    adjusted = dict(
        zip((n for n, _ in tested), holm([*(p for _, p in tested), *absent]), strict=False)
    )
    primary, decides = sweep.file.primary, measure == sweep.file.measure
    return [
        ContrastRow(names, measure, names in primary, seeds, contrast, adjusted.get(names), decides)
        for names, seeds, contrast in found
    ]


def _compared(pairs: Sequence[tuple[Cell, Cell]], measure: Measure, margin: float) -> SeedContrast:
    """Paired on the problems that both cells of a seed have."""
    before, after, ids = list[Floats](), list[Floats](), list[list[str]]()
    for first, second in pairs:
        ids.append(sorted({*first.measured.items.id} & {*second.measured.items.id}))
        for cell, arrays in ((first, before), (second, after)):
            items = cell.measured.items
            by_id = dict(zip(items.id, values_of(items, measure), strict=True))
            arrays.append(np.array([by_id[name] for name in ids[-1]]))
    shared = len(pairs) > 1 and all(names == ids[0] for names in ids)
    return compare_arms(before, after, margin / 100, shared)


def _missing(missing: int) -> list[str]:
    return [f"{missing} cells are not there yet; contrasts take the seeds that have both arms."][
        : bool(missing)
    ]


def _notes(sweep: Sweep, cells: Iterable[Cell]) -> list[str]:
    """How the numbers were made."""
    listed = list(cells)
    if not listed:
        return []
    evaluate, sampling = sweep.recipe.evaluate, sweep.recipe.sampling
    said = [
        f"{evaluate.problems:,} {evaluate.split} problems a seed; sampled: {evaluate.samples} "
        f"answers each at T={sampling.temperature:g}. Brackets: 95 % intervals over the seeds "
        "(Student's; of a single seed, over its problems).",
        "SD: of the seeds' differences. p: two-sided, over the seeds, adjusted over the primary "
        "contrasts (Holm). By problem: in how many seeds the two models differ at p < 0.05.",
    ]
    if sweep.file.margin:
        said.append(
            f"Equivalent: the 90 % interval lies within {sweep.file.margin:g} points of 0 (two "
            "one-sided tests at 0.05)."
        )
    problems = {cell.seed: frozenset(cell.measured.items.id) for cell in listed}
    if len(problems) > 1:
        common = frozenset.intersection(*problems.values())
        if common and len({*problems.values()}) == 1:
            said.append(
                "All seeds were measured on the same problems: seeds and problems are crossed."
            )
        elif len(frozenset.union(*problems.values())) < sum(map(len, problems.values())):
            said.append(
                "Seeds share some of their problems: intervals over the seeds speak of new "
                "problems less than of new training runs."
            )
    for what, values in (
        ("sources", {cell.source for cell in listed}),
        ("sets of package versions", {str(cell.made.get("versions")) for cell in listed}),
    ):
        if len(values) > 1:
            said.append(f"The cells were made by {len(values)} {what}.")
    return said


def _accuracies(title: str, rows: Sequence[tuple[ArmRow, Mapping[Measure, Estimate]]]) -> TextTable:
    names = tuple(rows[0][1]) if rows else ()
    return TextTable(
        title,
        ("", *(NAMES[name] for name in names), "seeds"),
        tuple(
            (row.arm, *(percent(means[name]) for name in names), str(len(row.seeds)))
            for row, means in rows
        ),
    )


def _costs(rows: Sequence[ArmRow]) -> TextTable:
    ledgers = [asdict(row.ledger) for row in rows]
    shown = [
        name for k, name in enumerate(COSTS) if k < ALWAYS or any(led[name] for led in ledgers)
    ]
    return TextTable(
        "Cost, mean of the seeds",
        ("", *(COSTS[name] for name in shown)),
        tuple(
            (row.arm, *(f"{ledger[name]:,}" for name in shown))
            for row, ledger in zip(rows, ledgers, strict=True)
        ),
    )


def _differences(measure: Measure, rows: Sequence[ContrastRow]) -> TextTable:
    title = f"Difference, {NAMES[measure]}, points"
    header = ("", "left - right", "SD", "df", "p", "seeds above 0", "by problem", "verdict")
    return TextTable(title, header, tuple(map(_difference, rows)))


def _difference(row: ContrastRow) -> tuple[str, ...]:
    found = row.found
    df = found.over_seeds.df if found.over_seeds else None
    per_seed = [one.difference.mean for one in found.per_seed]
    positive = sum(mean > 0 for mean in per_seed)
    by_item = sum(one.pvalue < ALPHA for one in found.per_seed)
    return (
        f"{row.arms[1]} - {row.arms[0]}",
        points(found.difference),
        f"{100 * statistics.stdev(per_seed):.1f}" if len(per_seed) > 1 else "-",
        f"{df:.3g}" if df is not None else "-",
        p_text(row.adjusted) if row.adjusted is not None else "-",
        f"{positive} of {len(per_seed)}",
        f"{by_item} of {len(per_seed)}",
        row.verdict or "-",
    )
