"""What is wrong with a judge, in numbers: does it prefer a place, or length; what is UNSCORED.

All are about the judge's own overall scores, whoever scores accuracy for the pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from align.judging.orders import BothOrders, differences
from align.judging.prompt import Case
from pts.stats import jeffreys


def vices(cases: Sequence[Case], found: Sequence[BothOrders]) -> dict[str, Any]:
    """Figures of a judge, from its cases and what it said of them; shares have 95 % intervals.

    - `compared`: pairs of replies that were scored in both orders.
    - `position`: share of these whose preference follows the position: each order prefers the
      reply that stands earlier (`position_first` of them), or each the later one.
    - `longer`: of the pairs that have a preferred side and unlike lengths (characters), the share
      that prefers the longer one. It need not be a vice: longer answers may be better.
    - `length_correlation`: Pearson's, of the difference in length with the difference in score;
      None where one of them never varies.
    - `unscored`: share of the judgements without scores, and `unscored_by`, by what became of the
      last attempt.
    """
    pairs = [one for case, both in zip(cases, found, strict=True) for one in _pairs(case, both)]
    follow = [given for _, given, turned in pairs if given * turned < 0]
    decided = [(length, given + turned) for length, given, turned in pairs]
    clear = [(length, points) for length, points in decided if length and points]
    judged = [one for both in found for one in (both.given, both.turned)]
    without = Counter(one.kind for one in judged if not one.scored)
    return {
        "compared": len(pairs),
        "position": _share(len(follow), len(pairs)),
        "position_first": sum(given > 0 for given in follow),
        "longer": _share(sum((length > 0) == (points > 0) for length, points in clear), len(clear)),
        "length_correlation": _correlation(decided),
        "unscored": _share(sum(without.values()), len(judged)),
        "unscored_by": dict(sorted(without.items())),
    }


def _pairs(case: Case, both: BothOrders) -> Iterator[tuple[int, int, int]]:
    """Of each two replies: how much longer the earlier one is, and its points above the other's in
    either order."""
    if both.scored:
        for i, j in combinations(range(len(case.replies)), 2):
            longer = len(case.replies[i]) - len(case.replies[j])
            yield longer, *differences(both, "overall", i, j)


def _share(part: int, n: int) -> Mapping[str, Any]:
    if not n:
        return {"share": None, "n": 0}
    found = jeffreys(part, n)
    return {"share": found.mean, "low": found.low, "high": found.high, "n": n}


def _correlation(pairs: Sequence[tuple[int, int]]) -> float | None:
    values = np.array(pairs, float).reshape(-1, 2)
    # Each pair counts both ways round: which reply stands first says nothing.
    spread = np.sqrt((values**2).sum(0))
    if not spread.all():
        return None
    return float((values[:, 0] * values[:, 1]).sum() / spread.prod())
