"""Where an engine's rollouts are counted: the start, uncertain positions, a forced sibling.

Places are chosen by the rows of a completion alone, never by what was drawn there, so a test at a
place keeps its level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import entr

from pts.testing.statistics import SURE, likeliest_but
from pts.types import Ids, TokenDistribution


@dataclass(frozen=True)
class ProbePath:
    """A completion to draw places from."""

    name: str
    prompt: Ids
    ids: Ids
    rows: Sequence[TokenDistribution]


@dataclass(frozen=True)
class ProbePrefix:
    """A prefix where first tokens are counted. `forced` ends in a sibling, off the path."""

    path: ProbePath
    prefix: Ids
    forced: bool
    others: Mapping[str, TokenDistribution]
    """Rows of wrong places, named by the mistake that would take them."""


def choose_places(paths: Sequence[ProbePath], stops: frozenset[int]) -> list[ProbePrefix]:
    """The start of every path; of each, an early and a late uncertain position, one forced."""
    found = []
    for path in paths:
        others = {f"the prompt of problem {p.name}": p.rows[0] for p in paths if p is not path}
        found.append(ProbePrefix(path, (), False, others))
        half = len(path.ids) // 2
        early = _most_uncertain(path, range(1, half))
        late = _most_uncertain(path, range(max(1, half), len(path.ids)))
        found += [_on_path(path, i) for i in (early, late) if i is not None]
        if late is not None:
            sibling = likeliest_but(path.rows[late], {path.ids[late], *stops})
            if sibling is not None:
                found.append(_forced(path, late, sibling))
    return found


def _most_uncertain(path: ProbePath, positions: range) -> int | None:
    doubtful = [i for i in positions if path.rows[i].probs.max() <= SURE]
    return max(doubtful, key=lambda i: float(entr(path.rows[i].probs).sum()), default=None)


def _on_path(path: ProbePath, i: int) -> ProbePrefix:
    others = {"the prefix without its last token (off by one)": path.rows[i - 1]}
    if i + 1 < len(path.rows):
        others["the prefix with one token more (off by one)"] = path.rows[i + 1]
    others["no prefix, the prompt alone"] = path.rows[0]
    return ProbePrefix(path, path.ids[:i], False, others)


def _forced(path: ProbePath, i: int, sibling: int) -> ProbePrefix:
    """The prefix with a sibling in the place of the path's token."""
    others = {"the prefix without its last token (off by one)": path.rows[i]}
    if i + 1 < len(path.rows):
        others["the path's own token instead of the forced one"] = path.rows[i + 1]
    return ProbePrefix(path, (*path.ids[:i], sibling), True, others)
