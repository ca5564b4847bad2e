"""The tables of docs/choosing-settings.md: exact where they can be, else searches of TabularEngine.

`python docs/build.py` writes each between its marks `<!-- built: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import pts
from pts.algorithm.filtering import equal_verdicts, lost
from pts.algorithm.sequential import (
    SequentialTest,
    operating_characteristics,
    sequential_test,
)
from pts.engines.tabular import Machine, TabularVerifier
from pts.testing.shapes import wandering

TARGET = Path(__file__).parent / "choosing-settings.md"
GAP, ZONE, P_MIN, P_MAX, LEVEL = 0.2, 0.05, 0.2, 0.8, 0.05
QUESTIONS, LIMIT = 12, 70
Floats = npt.NDArray[np.float64]


def filtered() -> Iterator[Sequence[str]]:
    """P(a question is kept), and rollouts on average, by its true p and `filter_rollouts`."""
    yield ["true p", *(f"{n} rollouts" for n in (8, 16, 32, 64))]
    for p in (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5):
        yield [f"{p:g}", *(f"{kept(p, n):.2f} ({drawn(p, n):.1f})" for n in (8, 16, 32, 64))]


def kept(p: float, n: int) -> float:
    """P(a question is kept) by n rollouts that pass with p, unless the first are all equal."""
    share = np.arange(n + 1) / n
    by_all = float(binomial(n, p)[(share >= P_MIN) & (share <= P_MAX)].sum())
    return by_all - float(lost(np.array([p]), n, _first(n), P_MIN, P_MAX)[0])


def drawn(p: float, n: int) -> float:
    """Rollouts on average of a filter of n at most."""
    first = _first(n)
    return n - (p**first + (1 - p) ** first) * (n - first)


def _first(n: int) -> int:
    return equal_verdicts(pts.SearchConfig(filter_rollouts=n, p_min=P_MIN, p_max=P_MAX))


def binomial(n: int, p: float) -> Floats:
    """P(k of n pass), k = 0 … n."""
    return np.array([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])


def confirmed() -> Iterator[Sequence[str]]:
    """P(a pair is confirmed) and its rollouts a side, by its true gap (around p = 1/2)."""
    sizes, gaps = (24, 48, 128), (0.0, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
    yield ["true gap", *(f"{n} a side at most" for n in sizes)]
    better, worse = [0.5 + gap / 2 for gap in gaps], [0.5 - gap / 2 for gap in gaps]
    found = [operating_characteristics(_test(n), better, worse, LEVEL) for n in sizes]
    for i, gap in enumerate(gaps):
        yield [f"{gap:g}", *(f"{power[i]:.2f} ({drawn[i]:.0f})" for power, drawn in found)]


def _test(n: int) -> SequentialTest:
    return sequential_test(n, GAP - ZONE)


def budgets() -> Iterator[Sequence[str]]:
    """Searches with several gaps and budgets; the same questions each time."""
    yield ["p_gap", "max_rollouts", "rollouts a path", "for want of budget", "pairs"]
    for gap, budget in ((0.1, 1200), (0.2, 1200), (0.3, 1200), (0.2, 100)):
        engine, settings = _engine(), {"p_gap": gap, "max_rollouts": budget}
        config = pts.SearchConfig(indifference_margin=ZONE, z=2.24, **settings)
        run = pts.search(engine.problems(), engine, TabularVerifier(), config, progress=False)
        paths, told = sum(run.summary.paths.values()), run.summary
        pairs = f"{len(run.pairs)} of {sum(told.proposed.values())}"
        each = f"{told.spent['search'].rollouts / paths:.0f}"
        short = f"{told.paths.get('budget', 0)} of {paths}"
        yield [f"{gap:g}", str(budget), each, short, pairs]


def _engine() -> pts.TabularEngine:
    sampling = pts.SamplingConfig(max_new_tokens=LIMIT)
    return pts.TabularEngine([_machine(seed) for seed in range(QUESTIONS)], sampling)


def _machine(seed: int) -> Machine:
    return wandering(np.random.default_rng(seed)).machine


TABLES: dict[str, Callable[[], Iterator[Sequence[str]]]] = {
    "filtered": filtered,
    "confirmed": confirmed,
    "budgets": budgets,
}


def table(rows: Iterator[Sequence[str]]) -> str:
    """Rows of cells as Markdown; the first one is the head."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *body])


def filled(text: str) -> str:
    """The page with all its tables computed anew. KeyError for a mark that names no table."""

    def build(match: re.Match[str]) -> Any:
        name = match[1]
        return f"<!-- built: {name} -->\n\n{table(TABLES[name]())}\n\n<!-- end -->"

    return re.sub(r"<!-- built: (\w+) -->.*?<!-- end -->", build, text, flags=re.DOTALL)


def files() -> dict[Path, str]:
    """What `python docs/build.py` writes for this part."""
    return {TARGET: filled(TARGET.read_text(encoding="utf-8"))}
