"""The table of a run: one row a stage, every difference paired with the row before.

    table = build_table(run_folder, ["base", "sft", "token_dpo", "full_dpo"], labels)
    table.to_text(), table.to_markdown(), table.to_json()

`align.evaluation.seeds` does the same over several training seeds.

Three measures are tested: greedy accuracy (exact McNemar), accuracy at the recipe's temperature
and at the best temperature (paired t over problems). Each measure is a family of its own: its p
values are adjusted over the steps (Holm). A step holds where its difference is positive at
p < 0.05 after that; steps that do not hold are named first under the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from align.errors import StageError
from align.evaluation.forms import flat_rows, html_list, html_table
from align.evaluation.records import EvalSummary, Evaluation, Item, read_evaluation
from align.evaluation.statistics import (
    Comparison,
    holm,
    paired_binary,
    paired_mean,
)
from align.run_folder import chain_of
from pts.types import Estimate

Measure = Literal["greedy", "sampled", "best"]
MEASURES: tuple[Measure, ...] = ("greedy", "sampled", "best")
ALPHA = 0.05
"""Level of the family of steps."""

_VALUE: Mapping[Measure, Callable[[Item], float | None]] = {
    "greedy": lambda item: float(item.greedy),
    "sampled": lambda item: item.passed / item.samples,
    "best": lambda item: item.best,
}


@dataclass(frozen=True, slots=True)
class AdjustedComparison:
    """A paired difference and its p value after Holm over the steps."""

    comparison: Comparison
    adjusted: float

    @property
    def claim(self) -> Literal["holds", "does harm", "does not hold"]:
        """What may be said of the step."""
        if self.adjusted >= ALPHA or self.comparison.difference.mean == 0:
            return "does not hold"
        return "holds" if self.comparison.difference.mean > 0 else "does harm"

    @property
    def holds(self) -> bool:
        return self.claim == "holds"


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage, and its differences to the policy that it started from (none for the first row)."""

    stage: str
    label: str
    summary: EvalSummary
    steps: Mapping[Measure, AdjustedComparison]


@dataclass(frozen=True, slots=True)
class TextTable:
    """A small table of texts; the first column names the stage."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """The rows of a run, and what can be said of its steps."""

    rows: tuple[StageRow, ...]

    def blocks(self) -> list[TextTable]:
        """Accuracies, paired differences, behaviour."""
        return [_accuracies(self.rows), *_differences(self.rows), _behaviour(self.rows)]

    def sentences(self) -> list[str]:
        """What does not hold, then what does."""
        return verdicts([(row.label, _named(row)) for row in self.rows[1:]])

    def to_text(self) -> str:
        """For a terminal."""
        parts = [text_of(block) for block in self.blocks()]
        return "\n\n".join([*parts, "\n".join(self.sentences()), "\n".join(notes(self.rows))])

    def to_markdown(self) -> str:
        """For a README."""
        parts = [markdown_of(block) for block in self.blocks()]
        said = [*self.sentences(), *notes(self.rows)]
        return "\n\n".join([*parts, "\n".join(f"- {line}" for line in said)]) + "\n"

    def _repr_html_(self) -> str:
        """For a notebook."""
        parts = [html_table(block.title, block.header, block.rows) for block in self.blocks()]
        return "".join([*parts, html_list([*self.sentences(), *notes(self.rows)])])

    def to_pandas(self) -> Any:
        """A data frame with a row a stage and a column a number, as `align table` writes them.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas

        return pandas.DataFrame(flat_rows(self.to_json()["rows"]))

    def to_json(self) -> dict[str, Any]:
        """All numbers, JSON-able."""
        return {
            "rows": [
                {
                    "stage": row.stage,
                    "label": row.label,
                    "summary": asdict(row.summary),
                    "steps": {name: _tested_json(test) for name, test in row.steps.items()},
                }
                for row in self.rows
            ],
            "sentences": self.sentences(),
            "notes": notes(self.rows),
        }


def run_table(folder: Path, manifest: Mapping[str, Any]) -> Table | None:
    """The table of what a run has measured so far, in the order of its chain; None of nothing.

    Raises:
        StageError: as `build_table`.
    """
    # The chain's order: a folder may hold rows of an earlier recipe, made in any order.
    chain = chain_of(manifest)
    labels = {stage["name"]: stage["label"] for stage in chain}
    starts = {stage["name"]: stage["from"] for stage in chain if stage.get("from")}
    names = [name for name in labels if f"eval/{name}" in manifest["stages"]]
    return build_table(folder, names, labels, starts) if names else None


def build_table(
    folder: Path,
    names: Sequence[str],
    labels: Mapping[str, str] | None = None,
    starts: Mapping[str, str] | None = None,
) -> Table:
    """Read the evaluations of a run and compare each with the policy that it started from.

    Args:
        names: the policies, in order.
        labels: how they are called; their names if not given.
        starts: the policy that each started from; where it is not told (or not measured), the one
            before.

    Raises:
        StageError: an evaluation is missing, or two of them share no problem.
    """
    labels, starts = labels or {}, starts or {}
    found = {name: read_evaluation(folder / "eval" / name) for name in names}
    before = {name: starts.get(name, "") for name in names[1:]}
    before = {
        name: start if start in found else earlier
        for (name, start), earlier in zip(before.items(), names, strict=False)
    }
    tested: dict[str, dict[Measure, AdjustedComparison]] = {name: {} for name in names}
    for measure in measured(list(found.values())):
        compared = [_compare(found[start], found[name], measure) for name, start in before.items()]
        adjusted = holm([comparison.pvalue for comparison in compared])
        for name, test in zip(before, zip(compared, adjusted, strict=True), strict=True):
            tested[name][measure] = AdjustedComparison(*test)
    jumps = [
        name for name, earlier in zip(names[1:], names, strict=False) if before[name] != earlier
    ]
    rows = tuple(
        StageRow(
            name,
            labels.get(name, name)
            + (f" from {labels.get(before[name], before[name])}" if name in jumps else ""),
            found[name].summary,
            tested[name],
        )
        for name in names
    )
    return Table(rows)


def measured(evaluations: Sequence[Evaluation]) -> list[Measure]:
    """The measures that every evaluation has."""
    tuned = all(evaluation.summary.best for evaluation in evaluations)
    return [measure for measure in MEASURES if measure != "best" or tuned]


def _compare(before: Evaluation, after: Evaluation, measure: Measure) -> Comparison:
    values = paired_values([before, after], measure)
    return paired_binary(*values) if measure == "greedy" else paired_mean(*values)


def paired_values(evaluations: Sequence[Evaluation], measure: Measure) -> np.ndarray:
    """Values of the problems that all evaluations share, shape [evaluations, problems].

    Raises:
        StageError: there is no such problem.
    """
    by_id = [{item.id: _VALUE[measure](item) for item in e.items} for e in evaluations]
    shared = [name for name in by_id[0] if all(values.get(name) is not None for values in by_id)]
    if not shared:
        stages = " and ".join(e.summary.stage for e in evaluations)
        raise StageError(f"the evaluations of {stages} share no problem; use one evaluate.seed")
    return np.array([[values[name] for name in shared] for values in by_id], dtype=np.float64)


def _named(row: StageRow) -> list[tuple[str, AdjustedComparison]]:
    return [(_measure_name(name, row.summary), test) for name, test in row.steps.items()]


def _measure_name(measure: Measure, summary: EvalSummary) -> str:
    names = {"greedy": "greedy", "sampled": f"T={summary.temperature:g}", "best": "best T"}
    return names[measure]


def verdicts(steps: Sequence[tuple[str, Sequence[tuple[str, AdjustedComparison]]]]) -> list[str]:
    """A sentence for every step that fails at some measure, then one for each that holds."""
    bad = [
        _sentence(label, tests, claim)
        for claim in ("does harm", "does not hold")
        for label, tests in steps
    ]
    held = [
        f"{label} holds at {_listed(names)}."
        for label, tests in steps
        if (names := [measure for measure, test in tests if test.holds])
    ]
    return [sentence for sentence in bad if sentence] + held


def _sentence(label: str, tests: Sequence[tuple[str, AdjustedComparison]], claim: str) -> str:
    """`+ token DPO does not hold at greedy (+2.5 [-4.1, +9.0] points, p=1.00).`, or nothing."""
    said = [
        f"{measure} ({points(test.comparison.difference)} points, {p_text(test.adjusted)})"
        for measure, test in tests
        if test.claim == claim
    ]
    return f"{label} {claim} at {_listed(said)}." if said else ""


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def notes(rows: Sequence[StageRow]) -> list[str]:
    """How the numbers were made, in the words that a reader needs."""
    first = rows[0].summary
    counts = {row.summary.problems for row in rows}
    said = [
        f"{'/'.join(f'{n:,}' for n in sorted(counts))} held-out problems; {first.samples} samples "
        f"each at T={first.temperature:g}. Brackets: 95 % intervals, clustered by problem. "
        "p values: two-sided, adjusted over the steps (Holm); the intervals are not.",
        "One training seed: the tests speak of these models on new problems, not of new training "
        "runs.",
    ]
    if any(row.summary.best for row in rows):
        said.append("Best T was chosen on dev problems and measured on these.")
    left_out = {row.label: row.summary.unscored for row in rows if row.summary.unscored}
    if left_out:
        counted = ", ".join(f"{name} {n}" for name, n in left_out.items())
        said.append(f"Problems left out because completions could not be judged: {counted}.")
    return said


def _accuracies(rows: Sequence[StageRow]) -> TextTable:
    first = rows[0].summary
    header = ["", "greedy %", f"T={first.temperature:g} %", f"pass@{first.samples} %"]
    tuned = any(row.summary.best for row in rows)
    return TextTable(
        "Accuracy",
        (*header, "best T %") if tuned else tuple(header),
        tuple(_accuracy_row(row, tuned) for row in rows),
    )


def _accuracy_row(row: StageRow, tuned: bool) -> tuple[str, ...]:
    s = row.summary
    cells = [row.label, *(percent(e) for e in (s.greedy, s.sampled, s.pass_at_k))]
    if tuned:
        cells.append(f"{percent(s.best.accuracy)} T={s.best.temperature:g}" if s.best else "-")
    return tuple(cells)


def _differences(rows: Sequence[StageRow]) -> list[TextTable]:
    """One block, or none for a single row."""
    steps = rows[1:]
    if not steps:
        return []
    header = ("", *(name for name, _ in _named(steps[0])))
    cells = tuple((row.label, *(_difference(test) for _, test in _named(row))) for row in steps)
    return [TextTable("Difference to the row before, points", header, cells)]


def _difference(test: AdjustedComparison) -> str:
    return f"{points(test.comparison.difference)} {p_text(test.adjusted)}"


def _behaviour(rows: Sequence[StageRow]) -> TextTable:
    header = ("", "entropy", "KL to before", "tokens", "unfinished %")
    title = "Behaviour of samples (entropy and KL in nats a token)"
    return TextTable(title, header, tuple(_behaviour_row(row) for row in rows))


def _behaviour_row(row: StageRow) -> tuple[str, ...]:
    s = row.summary
    kl = number(s.kl, 3) if s.kl else "-"
    return row.label, number(s.entropy, 3), kl, number(s.length, 1), percent(s.unfinished)


def percent(estimate: Estimate) -> str:
    """`80.3 [77.7, 82.7]`."""
    return f"{100 * estimate.mean:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def number(estimate: Estimate, digits: int) -> str:
    """A mean with its interval."""
    low, high = f"{estimate.low:.{digits}f}", f"{estimate.high:.{digits}f}"
    return f"{estimate.mean:.{digits}f} [{low}, {high}]"


def points(estimate: Estimate) -> str:
    """A difference in percentage points with its interval, signed: "-0.0" is just below 0."""
    mean, low, high = (
        f"{100 * value + 0.0:+.1f}"  # + 0.0 turns a 0 of either sign into +0.0
        for value in (estimate.mean, estimate.low, estimate.high)
    )
    return f"{mean} [{low}, {high}]"


def p_text(pvalue: float) -> str:
    """`p=0.012`, `p<0.001`."""
    return "p<0.001" if pvalue < 0.001 else f"p={pvalue:.3f}" if pvalue < 0.1 else f"p={pvalue:.2f}"


def text_of(block: TextTable) -> str:
    """Aligned columns under the block's title."""
    lines = [block.header, *block.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(block.header))]

    def shown(line: Sequence[str]) -> str:
        first, *others = line
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        return "  ".join([first.ljust(widths[0]), *cells]).rstrip()

    return "\n".join([block.title, *map(shown, lines)])


def markdown_of(block: TextTable) -> str:
    """A Markdown table, titled in its first cell."""
    rule = [":--", *["--:"] * (len(block.header) - 1)]
    lines = [(block.title, *block.header[1:]), rule, *block.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _tested_json(test: AdjustedComparison) -> dict[str, Any]:
    return {**asdict(test.comparison), "adjusted": test.adjusted, "holds": test.holds}
