"""Results of benchmarks as text."""

from __future__ import annotations

from collections.abc import Sequence

from align.benchmarks.run import BenchmarkResult
from align.evaluation.tables import TextTable, number, percent, text_of

HIDDEN = ("length", "cut")


def to_text(results: Sequence[BenchmarkResult]) -> str:
    """A line a benchmark and score, then strata, then what was left out."""
    rows = [
        (
            result.name, f"{result.questions:,}", name, percent(estimate),
            number(result.scores["length"], 0) if "length" in result.scores else "",
            percent(result.scores["cut"]) if "cut" in result.scores else "",
        )
        for result in results
        for name, estimate in result.scores.items()
        if name not in HIDDEN
    ]  # fmt: skip
    blocks = [
        TextTable("Scores in %", ("", "questions", "score", "mean", "tokens", "cut"), tuple(rows))
    ]
    for result in results:
        if result.strata:
            lines = tuple((name, percent(estimate)) for name, estimate in result.strata.items())
            blocks.append(TextTable(f"{result.name}, by stratum", ("", result.main), lines))
    said = [
        f"{result.name}: {result.unscored:,} questions could not be judged and are left out."
        for result in results
        if result.unscored
    ]
    said.append("Brackets: 95 % intervals over questions, samples of one averaged first.")
    return "\n\n".join([*map(text_of, blocks), "\n".join(said)])
