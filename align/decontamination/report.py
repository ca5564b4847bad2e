"""The summary of a decontamination as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def summary_text(summary: dict[str, Any]) -> str:
    """What was removed from each source, and what each evaluation set removed."""
    sources = [
        (
            count["source"],
            *(f"{count[key]:,}" for key in ("rows", "13-gram", "7-gram", "partial")),
            f"{(count['13-gram'] + count['7-gram']) / max(1, count['rows']):.3%}",
        )
        for count in summary["sources"]
    ]
    sets = [
        (row["set"], *(f"{row[key]:,}" for key in ("texts", "too_short", "removed")))
        for row in summary["sets"]
    ]
    blocks = [
        _aligned([("source", "rows", "13-gram", "7-gram", "partial", "removed"), *sources]),
        _aligned([("evaluation set", "texts", "too short", "rows removed"), *sets]),
    ]
    if summary["allowed"]:
        blocks.append(f"{summary['allowed']:,} 13-grams of the evaluation sets were allowed.")
    return "\n\n".join(blocks)


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
