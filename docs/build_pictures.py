"""The pictures of docs/: searches of a language model whose p(success) is known, drawn as SVG.

`python docs/build.py` writes them. Fixed seeds throughout, nothing but `pts` and numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

import pts
from pts.engines.tabular import TabularVerifier
from pts.testing import run_search
from pts.testing.shapes import SHAPES, Instance

FOLDER = Path(__file__).parent / "pictures"
GAP, ZONE = 0.2, 0.05
BISECT_10: dict[str, Any] = {"method": "bisect", "bisect_rollouts": 10}
BISECT_128: dict[str, Any] = {"method": "bisect", "bisect_rollouts": 128}
BRANCH: dict[str, Any] = {"method": "branch", "max_rollouts": 1200, "z": 2.24}
STYLE = """
svg{background:#fff;font:12px sans-serif}text{fill:#444}.title{font-weight:bold;fill:#222}
.grid{stroke:#ddd}.gap{stroke:#bbb;stroke-dasharray:2 3}.truth{fill:none;stroke:#222;
stroke-dasharray:5 3}.mean{fill:none;stroke:#2563eb;stroke-width:2}.band{fill:#2563eb;opacity:.18}
.dot{fill:#2563eb}.whisker{stroke:#2563eb}.up{fill:#16a34a;opacity:.3}.down{fill:#dc2626;
opacity:.3}.missed{fill:#b45309;font-weight:bold}.false{fill:#dc2626}.falseline{stroke:#dc2626}
"""


@dataclass(frozen=True)
class Searched:
    """One planted completion: what a search said of it, and the truth."""

    result: pts.CompletionResult
    truth: Sequence[float]
    rollouts: int

    @property
    def reported(self) -> dict[int, pts.Estimate]:
        """Position -> Δ. `bisect` reports every estimate of p_gap, as published."""
        bisect = any(point.method == "jeffreys" for point in self.result.curve)
        return {t.position: t.delta for t in self.result.tokens if bisect or t.decided}

    @property
    def changes(self) -> list[float]:
        return [float(d) for d in np.diff(self.truth)]

    @property
    def pivotal(self) -> list[int]:
        """Positions where the true change exceeds p_gap by the indifference margin."""
        return [i for i, d in enumerate(self.changes) if abs(d) >= GAP + ZONE]


def search(instance: Instance, settings: Mapping[str, Any]) -> Searched:
    """Search the completion that is planted in an instance, without making pairs."""
    assert instance.path is not None
    engine = pts.TabularEngine([instance.machine], instance.sampling)
    problem = engine.problems()[0]
    config = pts.SearchConfig(
        p_gap=GAP,
        indifference_margin=ZONE,
        p_min=0,
        p_max=1,
        paths=0,
        criteria=("path",),
        max_pairs=1,
        **settings,
    )
    prompt, limit = engine.encode(problem), instance.sampling.max_new_tokens
    steps = pts.search_question(
        problem.id, prompt, limit, config, 0, [instance.path], engine.stop_ids
    )
    found = run_search(steps, engine, problem, TabularVerifier())
    cost = found.cost["search"].rollouts
    return Searched(found.paths[0], engine.curve(instance.path), cost)


def pictures() -> dict[str, str]:
    """File name -> SVG."""
    hidden = SHAPES["cancelling"](np.random.default_rng(3))
    shapes = [
        SHAPES[name](np.random.default_rng(s)) for s in range(8) for name in ("sparse", "crowd")
    ]
    clear = search(SHAPES["sparse"](np.random.default_rng(5)), BRANCH)
    halves = search(hidden, BISECT_128)
    branches = search(hidden, BRANCH)
    return {
        "p-along-a-completion.svg": _page([_curve(clear, "branch")]),
        "what-bisect-misses.svg": _page(
            [_curve(halves, "bisect, 128 rollouts a prefix"), _curve(branches, "branch")]
        ),
        "reported-changes.svg": _page(
            [
                _scatter([search(i, BISECT_10) for i in shapes], "bisect, 10 rollouts a prefix"),
                _scatter([search(i, BRANCH) for i in shapes], "branch"),
            ],
            columns=2,
        ),
    }


Panel = tuple[int, int, str]
"""Width, height, content."""


def _curve(found: Searched, name: str, width: int = 760, height: int = 210) -> Panel:
    """p(success) after each token: truth dashed, estimates with intervals, reported tokens."""
    left, right, top, bottom = 34, width - 10, 44, height - 22
    length = len(found.result.ids)

    def xy(at: float, p: float) -> str:
        return f"{left + (right - left) * at / length:.1f},{bottom - (bottom - top) * p:.1f}"

    def x(at: float) -> float:
        return left + (right - left) * at / length

    missed = [i for i in found.pivotal if i not in found.reported]
    said = (
        f"{len(found.reported)} tokens reported, {len(missed)} of {len(found.pivotal)} "
        f"pivotal ones missed, {found.rollouts} rollouts"
    )
    parts = [_text(left, 16, name, "title"), _text(left, 32, said)]
    for p, label in ((0.0, "0"), (0.5, "½"), (1.0, "1")):
        y = bottom - (bottom - top) * p
        parts += [_line(left, y, right, y, "grid"), _text(left - 18, y + 4, label)]
    for at, delta in found.reported.items():
        kind = "up" if delta.mean > 0 else "down"
        parts.append(
            f'<rect class="{kind}" x="{x(at):.1f}" y="{top}" width="{max(4.0, x(1) - x(0)):.1f}" '
            f'height="{bottom - top}"/>'
        )
    parts += [_text(x(at) - 3, bottom - 4, "?", "missed") for at in missed]
    points = list(zip(found.result.curve_at, found.result.curve, strict=True))
    band = [xy(at, e.high) for at, e in points] + [xy(at, e.low) for at, e in reversed(points)]
    parts.append(f'<polygon class="band" points="{" ".join(band)}"/>')
    parts.append(_polyline("mean", (xy(at, e.mean) for at, e in points)))
    parts.append(_polyline("truth", (xy(at, p) for at, p in enumerate(found.truth))))
    if len(points) < length / 4:
        parts += [
            '<circle class="dot" r="3" cx="{}" cy="{}"/>'.format(*xy(at, e.mean).split(","))
            for at, e in points
        ]
    parts.append(_text(right - 66, height - 6, f"{length} tokens"))
    return width, height, "".join(parts)


def _scatter(runs: Sequence[Searched], name: str, size: int = 380) -> Panel:
    """Reported tokens: true change to the right, estimated change (with its interval) upwards."""
    left, right, top, bottom = 40, size - 10, 62, size - 28

    def x(d: float) -> float:
        return left + (right - left) * (d + 1) / 2

    def y(d: float) -> float:
        return bottom - (bottom - top) * (d + 1) / 2

    points = [(run.changes[at], delta) for run in runs for at, delta in run.reported.items()]
    wrong = sum(abs(true) < GAP - ZONE for true, _ in points)
    pivotal = sum(len(run.pivotal) for run in runs)
    hit = sum(at in run.reported for run in runs for at in run.pivotal)
    cost = sum(run.rollouts for run in runs) / len(runs)
    parts = [
        _text(left, 16, name, "title"),
        _text(left, 32, f"{len(points)} reported, {wrong} of them truly below {GAP - ZONE:.2f};"),
        _text(left, 48, f"{hit} of {pivotal} pivotal tokens found; {cost:.0f} rollouts a path"),
    ]
    for d in (-1.0, -0.5, 0.0, 0.5, 1.0):
        parts += [_line(x(d), top, x(d), bottom, "grid"), _line(left, y(d), right, y(d), "grid")]
        parts += [_text(x(d) - 8, bottom + 14, f"{d:g}"), _text(left - 30, y(d) + 4, f"{d:g}")]
    for d in (-GAP, GAP):
        parts += [_line(x(d), top, x(d), bottom, "gap"), _line(left, y(d), right, y(d), "gap")]
    parts.append(_line(x(-1), y(-1), x(1), y(1), "truth"))
    for true, delta in points:
        kind = "false" if abs(true) < GAP - ZONE else ""
        parts.append(_line(x(true), y(delta.low), x(true), y(delta.high), f"whisker {kind}line"))
        parts.append(
            f'<circle class="dot {kind}" r="3" cx="{x(true):.1f}" cy="{y(delta.mean):.1f}"/>'
        )
    return size, size, "".join(parts)


def _page(panels: Sequence[Panel], columns: int = 1) -> str:
    width = max(panel[0] for panel in panels) * columns
    height = panels[0][1] * (len(panels) // columns)
    placed = "".join(
        f'<g transform="translate({w * (k % columns)} {h * (k // columns)})">{content}</g>'
        for k, (w, h, content) in enumerate(panels)
    )
    style = " ".join(STYLE.split())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><style>{style}</style>'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{placed}</svg>\n'
    )


def _polyline(kind: str, points: Iterable[str]) -> str:
    return f'<polyline class="{kind}" points="{" ".join(points)}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, said: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(said)}</text>'


def files() -> dict[Path, str]:
    """What `python docs/build.py` writes for this part."""
    return {FOLDER / name: svg for name, svg in pictures().items()}
