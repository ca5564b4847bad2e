"""Confirmation of proposed pairs: designs compared on simulated pairs whose p is known.

    python benchmarks/confirmation.py            # writes benchmarks/results/confirmation.md

- `fixed n`: n rollouts a side, given up at half if the gap is below the margin, then an asymptotic
  score test: what pts did before, with Benjamini-Hochberg over the run.
- `sequential n`: the test of `pts.algorithm.sequential`, up to n a side, with Benjamini-Hochberg.
- `e-process n`: the Krichevsky-Trofimov mixture over both sides divided by the largest likelihood
  under the null (universal inference, Wasserman, Ramdas & Balakrishnan 2020), looked at every 4
  rollouts, stopped at a fixed value; e-BH over the run (Wang & Ramdas 2022), whose threshold is
  K / (k · fdr). It is given up along the line of `sequential`.

Every run has 200 proposals. Counts are drawn from a seed that no design was chosen on; the table of
single pairs is exact for `sequential`, which needs no simulation.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import betaln, ndtr, ndtri, xlog1py, xlogy

from pts.algorithm.sequential import (
    FUTILE,
    GO_ON,
    SequentialTest,
    gap_interval,
    operating_characteristics,
    sequential_test,
)
from pts.stats import (
    Floats,
    benjamini_hochberg,
    constrained_mle,
    jeffreys,
    newcombe,
    score_statistic,
)

TARGET = Path(__file__).parent / "results" / "confirmation.md"
MARGIN, FDR, LEVEL, PROPOSALS = 0.15, 0.05, 0.05, 200
Ints = npt.NDArray[np.int64]

PAIRS = (
    (1.0, 0.0), (0.85, 0.0), (0.6, 0.0), (0.4, 0.0), (0.9, 0.5), (0.9, 0.6), (0.7, 0.2),
    (0.6, 0.3), (0.5, 0.35), (0.15, 0.0), (1.0, 0.85), (0.5, 0.5),
)  # fmt: skip
"""p(chosen) and p(rejected) of single pairs; of the last four the null hypothesis is true."""

MIXTURES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "fatal forks": (
        (1.0, 0.0, 41), (0.9, 0.0, 33), (0.8, 0.0, 32), (0.7, 0.0, 27), (0.6, 0.0, 23),
        (0.5, 0.0, 28), (0.4, 0.0, 13), (0.3, 0.0, 6), (0.2, 0.0, 4), (0.1, 0.0, 3), (0.0, 0.0, 3),
        (0.7, 0.3, 2), (0.6, 0.2, 1), (0.9, 0.3, 1), (0.9, 0.1, 1), (0.7, 0.1, 1), (0.8, 0.2, 1),
        (0.8, 0.9, 1),
    ),
    "soft forks": ((0.9, 0.5, 3), (0.9, 0.6, 2), (0.7, 0.2, 1), (0.6, 0.3, 2), (0.5, 0.35, 2)),
    "half null": (
        (0.85, 0.0, 2), (0.9, 0.5, 2), (0.6, 0.3, 1), (0.5, 0.35, 2), (0.15, 0.0, 1),
        (1.0, 0.85, 1), (0.5, 0.5, 1),
    ),
    "nearly all null": (
        (0.85, 0.0, 2), (0.9, 0.5, 2), (0.6, 0.3, 1), (0.5, 0.35, 35), (0.15, 0.0, 20),
        (1.0, 0.85, 20), (0.5, 0.5, 20),
    ),
    "all null": ((0.5, 0.35, 2), (0.15, 0.0, 1), (1.0, 0.85, 1), (0.3, 0.15, 1)),
}  # fmt: skip
"""p(chosen), p(rejected) and weight. `fatal forks` are the rates of the 221 proposals of one search
of phi-nano (recipe phi-nano, seed 0, 24 rollouts a side)."""


@dataclass(frozen=True)
class Ends:
    """Ends of K tests: rollouts of each side, passed ones, evidence (a p-value or an e-value)."""

    n: Ints
    chosen: Ints
    rejected: Ints
    evidence: Floats


@dataclass(frozen=True)
class Design:
    """A test of one pair by the passes of each side, [K, most], and how a run selects by it."""

    name: str
    test: Callable[[Ints, Ints], Ends]
    selected: Callable[[Floats], npt.NDArray[np.bool_]]
    single: float
    """Evidence at which one pair alone would be confirmed at LEVEL: a p-value, or an e-value."""


def by_pvalue(pvalues: Floats) -> npt.NDArray[np.bool_]:
    """Selected by Benjamini-Hochberg."""
    return np.array(benjamini_hochberg(list(pvalues), FDR), dtype=bool)


def by_evalue(evalues: Floats) -> npt.NDArray[np.bool_]:
    """Selected by e-BH: Benjamini-Hochberg of 1 / e."""
    return by_pvalue(1 / np.maximum(evalues, 1e-300))


def fixed(n: int) -> Design:
    """n rollouts a side, given up at half below the margin, else the asymptotic score test."""

    def test(first: Ints, second: Ints) -> Ends:
        half = n // 2
        ahead = (first[:, half] - second[:, half]) / half >= MARGIN
        a, b = first[:, n], second[:, n]
        pvalues = np.where(ahead, ndtr(-score_statistic(a, n, b, n, MARGIN)), 1.0)
        size = np.where(ahead, n, half)
        at = np.arange(len(first))
        return Ends(size, first[at, size], second[at, size], pvalues)

    return Design(f"fixed {n}", test, by_pvalue, LEVEL)


def none_ended(count: int) -> Ends:
    """Pairs that have drawn nothing."""
    drawn, chosen, rejected = np.zeros((3, count), dtype=np.int64)
    return Ends(drawn, chosen, rejected, np.ones(count))


def sequential(most: int) -> Design:
    """The test that pts uses."""
    plan = sequential_test(most, MARGIN)

    def test(first: Ints, second: Ints) -> Ends:
        ends = none_ended(len(first))
        going = np.ones(len(first), dtype=bool)
        for look in plan.looks:
            a, b = first[:, look.n], second[:, look.n]
            stop = going & (look.decision[a, b] != GO_ON)
            for kept, new in ((ends.n, look.n), (ends.chosen, a), (ends.rejected, b)):
                kept[stop] = new if isinstance(new, int) else new[stop]
            ends.evidence[stop] = look.pvalues[a, b][stop]
            going &= ~stop
        return ends

    return Design(f"sequential {most}", test, by_pvalue, LEVEL)


def e_process(most: int, stop_at: float) -> Design:
    """The e-process, stopped at an e-value of `stop_at`."""

    def test(first: Ints, second: Ints) -> Ends:
        ends = none_ended(len(first))
        going = np.ones(len(first), dtype=bool)
        for n in range(8, most + 1, 4):
            a, b = first[:, n], second[:, n]
            found = np.exp(_log_e_value(n, a, b))
            line = FUTILE[0] + (FUTILE[1] - FUTILE[0]) * n / most
            futile = score_statistic(a, n, b, n, MARGIN) < line
            stop = going & (futile | (found >= stop_at) | (n == most))
            ends.n[stop], ends.chosen[stop], ends.rejected[stop] = n, a[stop], b[stop]
            ends.evidence[stop] = found[stop]
            going &= ~stop
        return ends

    return Design(f"e-process {most}, stopped at {stop_at:g}", test, by_evalue, 1 / LEVEL)


def _log_e_value(n: int, a: Ints, b: Ints) -> Floats:
    mixture = sum(betaln(s + 0.5, n - s + 0.5) - betaln(0.5, 0.5) for s in (a, b))
    p, q = constrained_mle(a, n, b, n, MARGIN)
    inside = (a - b) / n <= MARGIN
    p, q = np.where(inside, a / n, p), np.where(inside, b / n, q)
    largest = xlogy(a, p) + xlog1py(n - a, -p) + xlogy(b, q) + xlog1py(n - b, -q)
    return np.asarray(mixture - largest)


def passes(rng: np.random.Generator, p: Floats, most: int) -> Ints:
    """Passed ones among the first 0, 1, … `most` rollouts, shape [K, most + 1]."""
    drawn = rng.random((len(p), most)) < p[:, None]
    return np.concatenate([np.zeros((len(p), 1), int), drawn.cumsum(axis=1)], axis=1)


def singles(designs: Sequence[Design], most: int, seed: int) -> Iterator[Sequence[str]]:
    """Power at LEVEL and rollouts a side of single pairs."""
    yield ["p chosen / rejected", *(design.name for design in designs)]
    for at, (p, q) in enumerate(PAIRS):
        rng = np.random.default_rng([seed, at])
        first, second = (passes(rng, np.full(4000, x), most) for x in (p, q))
        cells = []
        for design in designs:
            ends = design.test(first, second)
            e = design.name.startswith("e-")
            good = ends.evidence >= design.single if e else ends.evidence <= design.single
            cells.append(f"{good.mean():.3f} · {ends.n.mean():.1f}")
        yield [f"{p:g} / {q:g}", *cells]


def runs(
    designs: Sequence[Design], name: str, count: int, most: int, seed: int
) -> Iterator[Sequence[str]]:
    """What whole runs cost and select: a row for each design."""
    rows = np.array(MIXTURES[name])
    totals = {design.name: np.zeros(4) for design in designs}
    false = {design.name: list[float]() for design in designs}
    for run in range(count):
        rng = np.random.default_rng([seed, run])
        drawn = rng.choice(len(rows), PROPOSALS, p=rows[:, 2] / rows[:, 2].sum())
        p, q = rows[drawn, 0], rows[drawn, 1]
        real = p - q > MARGIN + 1e-9
        first, second = passes(rng, p, most), passes(rng, q, most)
        for design in designs:
            ends = design.test(first, second)
            chosen = design.selected(ends.evidence)
            totals[design.name] += [ends.n.sum(), (chosen & real).sum(), real.sum(), chosen.sum()]
            false[design.name].append((chosen & ~real).sum() / max(1, chosen.sum()))
    for design in designs:
        n, found, real_pairs, selected = totals[design.name]
        power = f"{found / real_pairs:.3f}" if real_pairs else "none real"
        each = f"{2 * n / found:.0f}" if found else "none"
        yield [
            name, design.name, f"{n / count / PROPOSALS:.1f}", power, each,
            f"{np.mean(false[design.name]):.4f}", f"{selected:,.0f}",
        ]  # fmt: skip


def reported(name: str, least: int, seed: int) -> Iterator[Sequence[str]]:
    """Coverage and bias of what runs of `sequential 128` publish of at least so many pairs."""
    rows, design, test = np.array(MIXTURES[name]), sequential(128), sequential_test(128, MARGIN)
    missed = dict[str, list[float]]()
    errors = dict[str, list[float]]()
    pairs = run = 0
    while pairs < least:
        rng = np.random.default_rng([seed, run])
        drawn = rng.choice(len(rows), PROPOSALS, p=rows[:, 2] / rows[:, 2].sum())
        p, q = rows[drawn, 0], rows[drawn, 1]
        ends = design.test(passes(rng, p, 128), passes(rng, q, 128))
        selected = np.flatnonzero(design.selected(ends.evidence))
        level = 1 - FDR * len(selected) / PROPOSALS
        z = float(ndtri((1 + level) / 2))
        out = dict.fromkeys((*INTERVALS, *SIDES), 0)
        for i in selected:
            n, a, b = int(ends.n[i]), int(ends.chosen[i]), int(ends.rejected[i])
            gap, found = p[i] - q[i], gap_interval(test, n, a, b, level)
            sides = jeffreys(a, n, z), jeffreys(b, n, z)
            told = (newcombe(a, n, b, n), newcombe(a, n, b, n, z), found, *sides)
            truths = (gap, gap, gap, p[i], q[i])
            for key, estimate, truth in zip(out, told, truths, strict=True):
                out[key] += not estimate.low - 1e-9 <= truth <= estimate.high + 1e-9
            errors.setdefault("median-unbiased", []).append(found.mean - gap)
            errors.setdefault("raw", []).append((a - b) / n - gap)
        for key, misses in out.items():
            missed.setdefault(key, []).append(misses / max(1, len(selected)))
        pairs, run = pairs + len(selected), run + 1
    cells = [f"{1 - np.mean(missed[key]):.3f}" for key in (*INTERVALS, *SIDES)]
    bias = [f"{np.mean(errors[key]):+.3f}" for key in ("raw", "median-unbiased")]
    yield [name, f"{pairs:,} in {run}", *cells, *bias]


INTERVALS = ("Newcombe, 95 %", "Newcombe, adjusted", "group-sequential, adjusted")
SIDES = ("p(chosen), adjusted", "p(rejected), adjusted")
"""Intervals of reported pairs, in the order in which `reported` makes them."""


def sizes(test: SequentialTest) -> Iterator[Sequence[str]]:
    """Exactly: the largest P(p-value <= level) over null hypotheses, inner ones included."""
    yield ["level", "gap 0.15 (1,000 places)", "smaller gaps (gap 0 to 0.14, 300 places)"]
    edge = np.linspace(0, 1 - MARGIN, 1000)
    gaps, places = np.meshgrid(np.linspace(0, 0.14, 6), np.linspace(0, 1, 50))
    inner_p = (places * (1 - gaps) + gaps).ravel()
    for level in (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05):
        at_edge = max(
            operating_characteristics(test, list(part + MARGIN), list(part), level)[0].max()
            for part in np.array_split(edge, 10)
        )
        inside = max(
            operating_characteristics(test, list(p), list(p - g), level)[0].max()
            for p, g in zip(
                np.array_split(inner_p, 5), np.array_split(gaps.ravel(), 5), strict=True
            )
        )
        yield [f"{level:g}", f"{at_edge:.5f}", f"{inside:.5f}"]


def table(rows: Iterator[Sequence[str]]) -> str:
    """Rows of cells as Markdown; the first one is the head."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *body])


TEXT = """\
# Confirmation: what a pair costs, and how many pairs it finds

Written by `python benchmarks/confirmation.py --seed {seed} --runs {count}`: simulated pairs of
known p; null hypothesis: gap ≤ 0.15 (`p_gap=0.2`, `indifference_margin=0.05`). No setting was
chosen on this seed.

## Is the p-value valid?

The largest exact probability, over true null hypotheses, that `sequential 128` shows a
p-value of at most the level. No place may exceed it.

{sizes}

## Single pairs

P(confirmed, alone, at 0.05; an e-value has to reach 20) · rollouts a side. {singles_count:,}
simulated pairs a row; in the last four the null hypothesis is true.

{singles}

## Runs

{count} runs of {proposals} proposals for each mixture (its make-up is in the script). `confirmed`:
share of the real pairs that the run selects at a false discovery rate of 0.05; `false`: mean share
of selected pairs whose null hypothesis is true, over runs.

{runs}

## What is published of selected pairs

Runs of `sequential 128` as above: 1 minus the mean share of selected pairs whose interval misses
the truth. Nominal: 0.95, for all selected pairs together; `adjusted` intervals have the level
1 − 0.05 · selected / proposed (Benjamini & Yekutieli 2005). Bias: mean of the published gap minus
the true one. pts publishes `group-sequential, adjusted`, and the median-unbiased gap.

{reported}
"""


def main() -> None:
    """Write benchmarks/results/confirmation.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=500000)
    parser.add_argument("--runs", type=int, default=200)
    asked = parser.parse_args()
    designs = [fixed(24), fixed(48), sequential(48), sequential(128)]
    designs += [e_process(128, stop_at=1 / FDR), e_process(128, stop_at=200)]
    head = [
        "mixture", "design", "rollouts a side, a proposal", "confirmed", "rollouts a real pair",
        "false", "pairs selected",
    ]  # fmt: skip
    rows = [row for name in MIXTURES for row in runs(designs, name, asked.runs, 128, asked.seed)]
    published = [
        "mixture",
        "pairs in runs",
        *INTERVALS,
        *SIDES,
        "bias, raw",
        "bias, median-unbiased",
    ]
    told = [
        row for name in MIXTURES if name != "all null" for row in reported(name, 2000, asked.seed)
    ]
    text = TEXT.format(
        seed=asked.seed, count=asked.runs, proposals=PROPOSALS, singles_count=4000,
        sizes=table(sizes(sequential_test(128, MARGIN))),
        reported=table(iter([published, *told])),
        singles=table(singles(designs, 128, asked.seed)), runs=table(iter([head, *rows])),
    )  # fmt: skip
    TARGET.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
