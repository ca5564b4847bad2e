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
from pts.engines.tabular import Machine, TabularVerifier
from pts.stats import score_test
from pts.testing.shapes import wandering

TARGET = Path(__file__).parent / "choosing-settings.md"
GAP, ZONE, P_MIN, P_MAX = 0.2, 0.05, 0.2, 0.8
QUESTIONS, LIMIT = 12, 70
Floats = npt.NDArray[np.float64]


def filtered() -> Iterator[Sequence[str]]:
    """P(a question is kept) by its true p and the number of filter rollouts."""
    yield ["true p", *(f"{n} rollouts" for n in (8, 16, 32, 64))]
    for p in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5):
        yield [f"{p:g}", *(f"{kept(p, n):.2f}" for n in (8, 16, 32, 64))]


def kept(p: float, n: int) -> float:
    """P(p_min <= passed / n <= p_max) of n rollouts that pass with p."""
    share = np.arange(n + 1) / n
    return float(binomial(n, p)[(share >= P_MIN) & (share <= P_MAX)].sum())


def binomial(n: int, p: float) -> Floats:
    """P(k of n pass), k = 0 … n."""
    return np.array([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])


def confirmed() -> Iterator[Sequence[str]]:
    """P(a pair is confirmed) by its true gap (around p = 1/2) and the rollouts a side."""
    sizes = (12, 24, 48, 96)
    yield ["true gap", *(f"{n} a side" for n in sizes)]
    rejects = {n: rejected(n) for n in sizes}
    for gap in (0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8):
        shares = (power(0.5 + gap / 2, 0.5 - gap / 2, n, rejects[n]) for n in sizes)
        yield [f"{gap:g}", *(f"{share:.2f}" for share in shares)]


def rejected(n: int) -> Floats:
    """Whether the test rejects at 0.05, by passed rollouts of each side: shape [n + 1, n + 1]."""
    margin, size = GAP - ZONE, n + 1
    pairs = ((a, b) for a in range(size) for b in range(size))
    found = [score_test(a, n, b, n, margin) <= 0.05 for a, b in pairs]
    return np.array(found, dtype=np.float64).reshape(size, size)


def power(p1: float, p2: float, n: int, rejects: Floats) -> float:
    """P(the first half shows p_gap - indifference margin, and the test then rejects), exactly."""
    first, rest = n // 2, n - n // 2
    half1, half2 = binomial(first, p1), binomial(first, p2)
    late1, late2 = binomial(rest, p1), binomial(rest, p2)
    total = 0.0
    for a in range(first + 1):
        for b in range(first + 1):
            if (a - b) / first >= GAP - ZONE:
                ahead = rejects[a : a + rest + 1, b : b + rest + 1]
                total += float(half1[a] * half2[b] * (late1 @ ahead @ late2))
    return total


def budgets() -> Iterator[Sequence[str]]:
    """Searches with several gaps and budgets; the same questions each time."""
    yield ["p_gap", "max_rollouts", "rollouts a path", "for want of budget", "pairs"]
    for gap, budget in ((0.1, 1200), (0.2, 1200), (0.3, 1200), (0.2, 100)):
        engine, settings = _engine(), {"p_gap": gap, "max_rollouts": budget}
        config = pts.SearchConfig(indifference_margin=ZONE, confirm_rollouts=24, z=2.24, **settings)
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
