"""A comparison as text, JSON and one HTML page that loads nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from align.compare.pairing import ModelComparison, Row
from align.evaluation.tables import ALPHA, TextTable, p_text, points, text_of
from align.report.charts import gains
from pts.files import replacing
from pts.types import Estimate

FORMAT = 1
"""Of the JSON."""


def to_text(comparison: ModelComparison) -> str:
    """For a terminal."""
    parts = [text_of(block) for block in _blocks(comparison)]
    said = [*sentences(comparison), *notes(comparison)]
    return "\n\n".join([*parts, "\n".join(said)])


def to_json(comparison: ModelComparison) -> dict[str, Any]:
    """All numbers, JSON-able."""
    rows = [
        {**asdict(row), "worth": row.worth if math.isfinite(row.worth) else None}
        for row in comparison.rows
    ]
    return {
        "format": FORMAT,
        "a": comparison.names[0],
        "b": comparison.names[1],
        "rows": rows,
        "sentences": sentences(comparison),
        "notes": notes(comparison),
    }


def write_page(comparison: ModelComparison, path: Path) -> None:
    """Write the page: the picture, the table and the notes."""
    templates = Environment(
        loader=PackageLoader("align", "compare"), autoescape=True, undefined=StrictUndefined
    )
    text = templates.get_template("page.html").render(
        names=comparison.names,
        picture=picture(comparison),
        blocks=list(_blocks(comparison)),
        sentences=sentences(comparison),
        notes=notes(comparison),
    )
    with replacing(path) as file:
        file.write(text)


def picture(comparison: ModelComparison) -> Markup:
    """An SVG of the differences that are told in points; empty if there are none."""
    rows = [
        (f"{row.task}, {row.measure}"[:40], row.test.difference)
        for row in comparison.rows
        if row.rates
    ]
    return gains(rows) if rows else Markup("")


def _blocks(comparison: ModelComparison) -> Iterator[TextTable]:
    a, b = comparison.names
    head = ("", "items", "samples", "A", "B", "B - A", "p", "p (Holm)", "B up", "B down")
    yield TextTable(f"A = {a}\nB = {b}\n", head, tuple(_cells(row) for row in comparison.rows))
    left = [row for row in comparison.rows if any(row.only) or any(row.unscored)]
    if left:
        yield TextTable(
            "In no figure above",
            ("", "items of A only", "of B only", "unscored samples of A", "of B"),
            tuple((_name(row), *map(str, (*row.only, *row.unscored))) for row in left),
        )
    yield TextTable(
        "What pairing is worth",
        ("", "unpaired B - A", "unpaired p", "items that it would need"),
        tuple(
            (
                _name(row), _difference(row, row.unpaired), p_text(row.unpaired_p),
                f"{row.items * row.worth:,.0f}" if math.isfinite(row.worth) else "-",
            )
            for row in comparison.rows
        ),
    )  # fmt: skip


def _name(row: Row) -> str:
    return f"{row.task}, {row.measure}"


def _cells(row: Row) -> tuple[str, ...]:
    samples = "/".join(dict.fromkeys(f"{n:.3g}" for n in row.samples))
    means = (f"{100 * m:.1f} %" if row.rates else f"{m:.4g}" for m in row.means)
    return (
        _name(row), f"{row.items:,}", samples, *means, _difference(row, row.test.difference),
        p_text(row.test.pvalue), p_text(row.adjusted), str(row.test.better), str(row.test.worse),
    )  # fmt: skip


def _difference(row: Row, found: Estimate) -> str:
    if row.rates:
        return points(found)
    return f"{found.mean:+.4g} [{found.low:+.4g}, {found.high:+.4g}]"


def sentences(comparison: ModelComparison) -> list[str]:
    """What may be said of each row."""
    return [
        f"{_name(row)}: {_verdict(row)} ({_difference(row, row.test.difference)}"
        f"{' points' if row.rates else ''}, {p_text(row.adjusted)} after Holm)."
        for row in comparison.rows
    ]


def _verdict(row: Row) -> str:
    if row.adjusted >= ALPHA or row.test.difference.mean == 0:
        return "no difference is established"
    return f"B is {'higher' if row.test.difference.mean > 0 else 'lower'}"


def notes(comparison: ModelComparison) -> list[str]:
    """How the numbers were made, and what was left out."""
    tests = " and ".join(sorted({row.test.test for row in comparison.rows}))
    return [
        "Paired by item, samples of an item averaged first; brackets: 95 % intervals. "
        f"p: two-sided ({tests}), then adjusted over the {len(comparison.rows)} rows (Holm). B up "
        "and B down count items; intervals are not adjusted.",
        "Unpaired: as if A and B had answered different items (a z test); the last column is how "
        "many items such a test needs for an interval as narrow as the paired one.",
        "The tests speak of these two models on new items, not of new training runs.",
        *comparison.remarks,
    ]
