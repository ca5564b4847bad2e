"""The table over several training seeds: means, their ranges, and paired differences.

    table = build_seed_table([Path("runs/a-seed0"), Path("runs/a-seed1")], ["base", "sft", ...])
    compare_evaluations([run / "eval/sft" ...], [other / "eval/token_dpo" ...])     two arms

All runs must be measured on the same problems (one `evaluate.seed`). Two p values are given for
each difference: `by item` averages every problem over the seeds and speaks of these models on new
problems; `new seeds` treats seeds and problems as random and crossed (see
`align.evaluation.statistics.combine_seeds`) and is the one to ask for before a claim about the
method.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from align.errors import StageError
from align.evaluation.records import read_evaluation
from align.evaluation.statistics import SeedComparison, combine_seeds, holm
from align.evaluation.tables import (
    ALPHA,
    Measure,
    TextTable,
    markdown_of,
    measured,
    p_text,
    paired_values,
    points,
    text_of,
)


@dataclass(frozen=True, slots=True)
class SeedStep:
    """A difference over the seeds, its p value by item adjusted over the steps (Holm)."""

    comparison: SeedComparison
    adjusted: float

    @property
    def holds(self) -> bool:
        """Positive at the family's level, and positive in every seed."""
        return min(self.comparison.per_seed) > 0 and self.adjusted < ALPHA


@dataclass(frozen=True, slots=True)
class SeedRow:
    """A stage: one mean a seed for every measure, and its differences to the row before."""

    stage: str
    label: str
    means: Mapping[Measure, tuple[float, ...]]
    steps: Mapping[Measure, SeedStep]


@dataclass(frozen=True, slots=True)
class SeedTable:
    """The rows of several runs of one recipe."""

    rows: tuple[SeedRow, ...]

    def blocks(self) -> list[TextTable]:
        """Means with ranges, then differences."""
        names = tuple(self.rows[0].means)
        seeds = len(next(iter(self.rows[0].means.values())))
        means = tuple(
            (row.label, *(_mean_and_range(row.means[name]) for name in names)) for row in self.rows
        )
        steps = tuple(
            (row.label, *(_step(row.steps[name]) for name in names)) for row in self.rows[1:]
        )
        title = f"Accuracy %, mean of {seeds} seeds (range)"
        difference = "Difference to the row before, points; p by item; p for new seeds"
        return [TextTable(title, ("", *names), means), TextTable(difference, ("", *names), steps)]

    def to_text(self) -> str:
        """For a terminal."""
        return "\n\n".join(text_of(block) for block in self.blocks())

    def to_markdown(self) -> str:
        """For a README."""
        return "\n\n".join(markdown_of(block) for block in self.blocks()) + "\n"

    def to_json(self) -> dict[str, Any]:
        """All numbers, JSON-able."""
        return {"rows": [asdict(row) for row in self.rows]}


def build_seed_table(
    runs: Sequence[Path], names: Sequence[str], labels: Mapping[str, str] | None = None
) -> SeedTable:
    """Read the evaluations of several runs and compare each stage with the one before it.

    Raises:
        StageError: an evaluation is missing, or the runs share no problem.
    """
    stages = [[read_evaluation(run / "eval" / name) for run in runs] for name in names]
    everything = [evaluation for stage in stages for evaluation in stage]
    means: list[dict[Measure, tuple[float, ...]]] = [{} for _ in names]
    steps: list[dict[Measure, SeedStep]] = [{} for _ in names]
    for measure in measured(everything):
        values = paired_values(everything, measure).reshape(len(names), len(runs), -1)
        compared = [combine_seeds(a, b) for a, b in itertools.pairwise(values)]
        adjusted = holm([step.by_item.pvalue for step in compared])
        for k, of_stage in enumerate(values):
            means[k][measure] = tuple(float(m) for m in of_stage.mean(axis=1))
        for k, step in enumerate(zip(compared, adjusted, strict=True), 1):
            steps[k][measure] = SeedStep(*step)
    return SeedTable(
        tuple(
            SeedRow(name, (labels or {}).get(name, name), mean, step)
            for name, mean, step in zip(names, means, steps, strict=True)
        )
    )


def compare_evaluations(
    before: Sequence[Path], after: Sequence[Path]
) -> dict[Measure, SeedComparison]:
    """Compare two arms, one evaluation folder a seed each, in the same order of seeds.

    Raises:
        StageError: the arms have different numbers of seeds, or share no problem.
    """
    if len(before) != len(after):
        raise StageError(f"got {len(before)} and {len(after)} evaluations; need one a seed in both")
    read = [read_evaluation(folder) for folder in (*before, *after)]
    compared: dict[Measure, SeedComparison] = {}
    for measure in measured(read):
        first, second = np.split(paired_values(read, measure), 2)
        compared[measure] = combine_seeds(first, second)
    return compared


def _mean_and_range(means: Sequence[float]) -> str:
    low, high = 100 * min(means), 100 * max(means)
    return f"{100 * float(np.mean(means)):.1f} ({low:.1f} to {high:.1f})"


def _step(step: SeedStep) -> str:
    both = step.comparison.by_item_and_seed
    said = f"{points(step.comparison.by_item.difference)} {p_text(step.adjusted)}"
    return f"{said}; {p_text(both.pvalue)}" if both else said
