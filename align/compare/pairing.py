"""Two models on the same items: differences paired by item, tests, and what pairing was worth.

    comparison = compare(read_results(Path("a")), read_results(Path("b")))
    [row.test.difference for row in comparison.rows]

The unit is the item: several samples of one are averaged first, so that intervals cluster by item.
Single verdicts get the exact McNemar test, all else Student's paired t over items. p values are
adjusted over all rows that are tested (Holm). Not covered: items that belong together (several
questions on one passage), which are taken for independent; several training runs (`align sweep`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from align.compare.records import Key, Reading, Readings
from align.errors import CompareError
from align.evaluation.statistics import (
    Comparison,
    Floats,
    holm,
    paired_binary,
    paired_mean,
    z_of,
)
from pts.errors import did_you_mean
from pts.types import Estimate


@dataclass(frozen=True, slots=True)
class Row:
    """One measure of one task: B minus A over the items that both have."""

    task: str
    measure: str
    items: int
    samples: tuple[float, float]
    """Of an item, on average, in A and B."""
    means: tuple[float, float]
    """Over the shared items."""
    only: tuple[int, int]
    """Items that A alone has, and B alone; they are in no figure."""
    unscored: tuple[int, int]
    """Samples without a score."""
    test: Comparison
    adjusted: float
    unpaired: Estimate
    """The difference as if the models had been given different items; see `unpaired_z`."""
    unpaired_p: float
    worth: float
    """How many times as many items an unpaired comparison needs for an interval as narrow."""
    rates: bool
    """Whether all values lie in 0..1, and are told in points."""


@dataclass(frozen=True, slots=True)
class ModelComparison:
    """All rows, and what could not be compared."""

    names: tuple[str, str]
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]


def compare(
    first: Readings,
    second: Readings,
    names: tuple[str, str] = ("A", "B"),
    measures: Sequence[str] = (),
    tasks: Sequence[str] = (),
) -> ModelComparison:
    """Compare the measures that both sides have, or those that are named.

    Raises:
        CompareError: the sides share nothing, something named is not there, or an item of one id
            is another question on the other side.
    """
    shared = [key for key in first if key in second]
    for kind, place, asked in (("task", 0, tasks), ("measure", 1, measures)):
        known = sorted({key[place] for key in shared})
        for name in asked:
            if name not in known:
                hint = did_you_mean(name, known) or f"; both have {', '.join(known) or 'none'}"
                raise CompareError(f"{kind} {name!r} is not on both sides{hint}")
    keys = [
        k for k in shared if (not tasks or k[0] in tasks) and (not measures or k[1] in measures)
    ]
    if not keys:
        said = [", ".join(sorted(f"{t} ({m})" for t, m in side)) for side in (first, second)]
        raise CompareError(
            f"nothing to compare: A has {said[0]}; B has {said[1]}; give results of the same tasks"
        )
    rows = [_row(key, first[key], second[key]) for key in keys]
    adjusted = holm([row.test.pvalue for row in rows])
    told = tuple(replace(row, adjusted=p) for row, p in zip(rows, adjusted, strict=True))
    return ModelComparison(names, told, tuple(_remarks(first, second, keys, names)))


def _row(key: Key, first: Reading, second: Reading) -> Row:
    """The row of a measure, its p value not yet adjusted."""
    shared = [name for name in first.items if name in second.items]
    for name in shared:
        one, other = first.items[name], second.items[name]
        if one.content != other.content:
            raise CompareError(
                f"{other.place}: item {name} of {key[0]} is another question than {one.place} has "
                "under this id; compare results on one version of the data"
            )
    if len(shared) < 2:
        raise CompareError(
            f"{key[0]} ({key[1]}): {first.source} and {second.source} share {len(shared)} items; "
            "a comparison needs 2"
        )
    scores = [[side.items[name].scores for name in shared] for side in (first, second)]
    a, b = (np.array([float(np.mean(values)) for values in side]) for side in scores)
    test = paired(a, b, all(len(values) == 1 for side in scores for values in side))
    unpaired, unpaired_p = unpaired_z(a, b)
    of_pairs = float((b - a).var(ddof=1))
    samples = [sum(map(len, side)) / len(side) for side in scores]
    return Row(
        task=key[0],
        measure=key[1],
        items=len(shared),
        samples=(samples[0], samples[1]),
        means=(float(a.mean()), float(b.mean())),
        only=(len(first.items) - len(shared), len(second.items) - len(shared)),
        unscored=(first.unscored, second.unscored),
        test=test,
        adjusted=test.pvalue,
        unpaired=unpaired,
        unpaired_p=unpaired_p,
        worth=float(a.var(ddof=1) + b.var(ddof=1)) / of_pairs if of_pairs else math.nan,
        rates=bool(min(a.min(), b.min()) >= 0 and max(a.max(), b.max()) <= 1),
    )


def paired(a: Floats, b: Floats, single: bool) -> Comparison:
    """B minus A: McNemar's exact test of single verdicts, else the paired t of item means."""
    verdicts = single and bool(np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all())
    return paired_binary(a, b) if verdicts else paired_mean(a, b)


def unpaired_z(a: Floats, b: Floats) -> tuple[Estimate, float]:
    """The z test of two independent samples, as lm-evaluation-harness' model_comparator has it.

    Standard errors of both means are added in quadrature, which takes the models for unrelated:
    they answered the same items, and what makes an item easy for one does so for the other.
    """
    difference = float(b.mean() - a.mean())
    error = math.sqrt(float(a.var(ddof=1)) / len(a) + float(b.var(ddof=1)) / len(b))
    half = z_of(0.95) * error
    z = abs(difference) / error if error else (0.0 if difference == 0 else math.inf)
    estimate = Estimate(difference, difference - half, difference + half, len(a), "unpaired z")
    return estimate, float(2 * special.ndtr(-z))


def _remarks(
    first: Readings, second: Readings, keys: Iterable[Key], names: tuple[str, str]
) -> Iterable[str]:
    """What is on one side only, and what the readers had to say."""
    for name, side, other in ((names[0], first, second), (names[1], second, first)):
        alone = [f"{task} ({measure})" for task, measure in side if (task, measure) not in other]
        if alone:
            yield f"Only {name} has {', '.join(alone)}: not compared."
    said = [side[key].remark for key in keys for side in (first, second)]
    yield from dict.fromkeys(filter(None, said))
