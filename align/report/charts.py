"""Small SVG charts for the run's report: text in, text out, nothing to load.

Colours are the classes c0, c1, ... of the page's style sheet; what differs in colour differs in
its marker or its dashes too. Every text is escaped, and what is drawn is marked as markup here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from markupsafe import Markup

from pts.types import Estimate

Series = tuple[str, Sequence[tuple[float, float]]]
"""A name and its (x, y) points."""
Scale = Callable[[float], float]


def forest(rows: Sequence[tuple[str, Sequence[Estimate]]], width: int = 520) -> Markup:
    """Dots with intervals on an axis from 0 to 100 %; one row a stage, one colour a measure."""
    left, right, row_height, top = 92, 14, 38, 8
    bottom = top + row_height * len(rows)

    def x(share: float) -> float:
        return left + (width - left - right) * share

    parts = [_percent_axis(x, top, bottom)]
    for k, (label, estimates) in enumerate(rows):
        middle = top + row_height * (k + 0.5)
        parts.append(_text(left - 10, middle + 4, label, "end", "label"))
        offsets = [9 * (i - (len(estimates) - 1) / 2) for i in range(len(estimates))]
        for i, (estimate, offset) in enumerate(zip(estimates, offsets, strict=True)):
            parts.append(_whisker(x, middle + offset, estimate, i))
    return _svg(width, bottom + 22, parts, "accuracy by stage, with 95 % intervals")


def _percent_axis(x: Scale, top: float, bottom: float) -> str:
    ticks = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        ticks.append(_line(x(share), top, x(share), bottom, "grid"))
        ticks.append(_text(x(share), bottom + 15, f"{100 * share:.0f}", "middle"))
    return "".join(ticks)


def _whisker(x: Scale, y: float, estimate: Estimate, colour: int) -> str:
    said = f"{100 * estimate.mean:.1f} % [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
    return (
        f'<g class="c{colour}"><title>{said}</title>'
        + _line(x(estimate.low), y, x(estimate.high), y, "mark")
        + _marker(x(estimate.mean), y, colour)
        + "</g>"
    )


def _marker(x: float, y: float, kind: int) -> str:
    """A dot, a square, a triangle or a diamond, centred."""
    if kind % 4 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>'
    corners = (
        ((-3.2, -3.2), (3.2, -3.2), (3.2, 3.2), (-3.2, 3.2)),
        ((0, -4.2), (4.2, 3.2), (-4.2, 3.2)),
        ((0, -4.6), (4.6, 0), (0, 4.6), (-4.6, 0)),
    )[kind % 4 - 1]
    return f'<polygon points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}"/>'


def gains(rows: Sequence[tuple[str, Estimate]], margin: float = 0.0, width: int = 640) -> Markup:
    """Differences with intervals on an axis of points; a band shows what counts as equivalent.

    Args:
        rows: a label and a difference of rates (not of percents) each.
        margin: half-width of the band, in points.
    """
    left, right, row_height, top = 250, 20, 26, 8
    bottom = top + row_height * len(rows)
    reach = max(100 * max(abs(e.low), abs(e.high)) for _, e in rows)
    step = _tick(max(reach, margin, 0.1))
    end = step * math.ceil(max(reach, margin, 0.1) / step)

    def x(share: float) -> float:
        return left + (width - left - right) * (100 * share + end) / (2 * end)

    parts = []
    if margin:
        band = x(margin / 100) - x(-margin / 100)
        parts.append(
            f'<rect class="band" x="{x(-margin / 100):.1f}" y="{top}" width="{band:.1f}" '
            f'height="{bottom - top}"/>'
        )
    parts.append(_points_axis(x, -end, end, step, top, bottom))
    for k, (label, estimate) in enumerate(rows):
        middle = top + row_height * (k + 0.5)
        parts.append(_text(left - 10, middle + 4, label, "end", "label"))
        parts.append(_whisker(x, middle, estimate, 0))
    return _svg(width, bottom + 22, parts, "differences in points, with 95 % intervals")


def gains_side_by_side(panels: Mapping[str, Sequence[tuple[str, Sequence[float]]]]) -> Markup:
    """Differences of several settings beside each other, on one scale; all have the same rows.

    Args:
        panels: a title and its rows each; a row is a label and a difference of rates for each seed,
            drawn as a stroke each and a dot at their mean. The labels of the first panel are shown.
    """
    left, gap, inner, row_height, top = 200, 26, 140, 24, 26
    labels = [label for label, _ in next(iter(panels.values()))]
    bottom = top + row_height * len(labels)
    values = [value for rows in panels.values() for _, seeds in rows for value in seeds]
    low, high = 100 * min(0.0, *values) - 1, 100 * max(0.0, *values) + 1
    step = _tick(high - low)
    parts = [
        _text(left - 10, top + row_height * (k + 0.5) + 4, label, "end", "label")
        for k, label in enumerate(labels)
    ]
    for i, (title, rows) in enumerate(panels.items()):
        start = left + i * (inner + gap)

        def x(share: float, start: float = start) -> float:
            return start + inner * (100 * share - low) / (high - low)

        parts.append(_text(start + inner / 2, top - 10, title, "middle", "label"))
        parts.append(_points_axis(x, low, high, step, top, bottom))
        parts += [
            _seeds(x, top + row_height * (k + 0.5), seeds) for k, (_, seeds) in enumerate(rows)
        ]
    width = left + len(panels) * (inner + gap)
    return _svg(width, bottom + 22, parts, "differences in points: strokes are seeds, dots means")


def _seeds(x: Scale, y: float, values: Sequence[float]) -> str:
    """A stroke a seed, and a dot at their mean."""
    mean = sum(values) / len(values)
    said = f"{100 * mean:+.1f} (" + ", ".join(f"{100 * value:+.1f}" for value in values) + ")"
    strokes = [_line(x(value), y - 6, x(value), y + 6, "mark") for value in values]
    return f'<g class="c0"><title>{said}</title>{"".join(strokes)}{_marker(x(mean), y, 0)}</g>'


def _points_axis(x: Scale, low: float, high: float, step: float, top: float, bottom: float) -> str:
    """Lines at the multiples of `step` points from `low` to `high`; that of 0 stronger."""
    ticks = []
    for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        at = x(k * step / 100)
        ticks.append(_line(at, top, at, bottom, "grid" if k else "zero"))
        ticks.append(_text(at, bottom + 15, f"{k * step:+g}" if k else "0", "middle"))
    return "".join(ticks)


def _tick(reach: float) -> float:
    """A round step that divides an axis of +-reach into two to five parts a side."""
    power = 10.0 ** math.floor(math.log10(reach))
    return next(power * k for k in (0.2, 0.5, 1.0, 2.0, 5.0) if reach / (power * k) <= 5)


def standalone(chart: Markup) -> str:
    """A chart as a file of its own, with the colours that a page would give it."""
    start = '<svg xmlns="http://www.w3.org/2000/svg" '
    body = str(chart).replace("<svg ", start, 1)
    head, _, rest = body.partition(">")
    return f"{head}><style>{_STYLE}</style>{rest}\n"


_STYLE = (
    "svg{background:#fff;font:12px sans-serif}text{fill:#444}.label{fill:#222}.grid{stroke:#ddd}"
    ".zero{stroke:#888}.mark{stroke:#2563eb;stroke-width:2}.c0{fill:#2563eb}"
    ".band{fill:#2563eb;opacity:.12}"
)


def lines(series: Sequence[Series], title: str, width: int = 300, height: int = 150) -> Markup:
    """Curves over training steps; the axes span the data."""
    points = [point for _, values in series for point in values]
    if not points:
        return Markup("")
    (x_low, x_high), (y_low, y_high) = (_span([p[i] for p in points]) for i in (0, 1))
    left, right, top, bottom = 46.0, width - 10.0, 8.0, height - 22.0

    def place(point: tuple[float, float]) -> str:
        x = left + (right - left) * (point[0] - x_low) / (x_high - x_low)
        y = bottom - (bottom - top) * (point[1] - y_low) / (y_high - y_low)
        return f"{x:.1f},{y:.1f}"

    parts = []
    for share in (0.0, 0.5, 1.0):
        y = bottom - (bottom - top) * share
        parts.append(_line(left, y, right, y, "grid"))
        parts.append(_text(left - 6, y + 4, _short(y_low + share * (y_high - y_low)), "end"))
    parts += [_text(left, height - 6, _short(x_low), "start")]
    parts += [_text(right, height - 6, f"{_short(x_high)} steps", "end")]
    for k, (_, values) in enumerate(series):
        path = " ".join(map(place, values))
        parts.append(f'<polyline class="c{k} curve" points="{path}"/>')
    return _svg(width, height, parts, title)


def success_curve(
    curve: Sequence[tuple[int, float, float, float, int]],
    pivots: Mapping[int, float],
    length: int,
    width: int = 760,
    height: int = 142,
) -> Markup:
    """p(success) after each token of an answer, its interval as a band, pivotal tokens shaded."""
    left, right, top, bottom = 30.0, width - 8.0, 14.0, height - 30.0

    def x(at: float) -> float:
        return left + (right - left) * at / max(1, length)

    def y(p: float) -> float:
        return bottom - (bottom - top) * p

    parts = []
    for p, said in ((0.0, "0"), (0.5, "½"), (1.0, "1")):
        parts += [_line(left, y(p), right, y(p), "grid"), _text(left - 6, y(p) + 4, said, "end")]
    for at, delta in pivots.items():
        kind = "up" if delta > 0 else "down"
        parts.append(
            f'<rect class="{kind}" x="{x(at):.1f}" y="{top}" width="{max(3.0, x(1) - x(0)):.1f}" '
            f'height="{bottom - top:.1f}"/>'
        )
    high = [f"{x(at):.1f},{y(above):.1f}" for at, _, _, above, _ in curve]
    low = [f"{x(at):.1f},{y(below):.1f}" for at, _, below, _, _ in reversed(curve)]
    mean = [f"{x(at):.1f},{y(p):.1f}" for at, p, _, _, _ in curve]
    parts.append(f'<polygon class="band" points="{" ".join(high + low)}"/>')
    parts.append(f'<polyline class="c0 curve" points="{" ".join(mean)}"/>')
    parts.append(_text(right, height - 6, f"{length} tokens", "end"))
    return _svg(width, height, parts, "p(success) along an answer")


def legend(names: Sequence[str], marked: bool = True) -> Markup:
    """Names with their colour and marker (of `forest`), or their kind of line (of `lines`)."""
    keys = []
    for i, name in enumerate(names):
        line = '<polyline class="curve" points="0,6 22,6"/>'
        shape = _marker(11, 6, i) if marked else line
        key = f'<svg class="key c{i}" width="22" height="12" aria-hidden="true">{shape}</svg>'
        keys.append(f"<span>{key}{escape(name)}</span>")
    return Markup(f'<p class="legend">{"".join(keys)}</p>')


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low < 1e-12:
        pad = abs(high) * 0.1 or 1.0
        return low - pad, high + pad
    return low, high


def _short(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
        return f"{value:.{min(digits, 3)}f}".rstrip("0").rstrip(".") if digits else f"{value:.0f}"
    return f"{value:.0e}"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, said: str, anchor: str, kind: str = "tick") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(said)}</text>'
    )


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> Markup:
    return Markup(
        f'<svg width="{width:g}" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(label)}">' + "".join(parts) + "</svg>"
    )
