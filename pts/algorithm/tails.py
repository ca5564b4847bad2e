"""Rows are kept as heads; what lies in the tail of one is read from the whole row when needed.

A question under way holds one row a position of its paths. Whole ones would take some 0.8 GB for
500 tokens and a vocabulary of 100,352; heads take 8 MB. Nothing is lost by it: a draw that falls
into the tail is made from the whole row, scored again, and so is the same draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pts.algorithm.paths import BranchPoint, ScoredCompletion, TailDraw, draw_sibling
from pts.algorithm.requests import SearchRoutine, request_logprobs
from pts.types import LogprobQuery, TokenDistribution

HEAD = 1024
"""Tokens of a row that are kept. Of one less likely than all of these no pair is made."""


def resolved(
    path: ScoredCompletion, draws: Sequence[BranchPoint | TailDraw]
) -> SearchRoutine[list[BranchPoint]]:
    """The draws in order, those from a tail made from their whole rows."""
    rows = yield from _whole(path, (d.position for d in draws if isinstance(d, TailDraw)))
    found = []
    for draw in draws:
        if isinstance(draw, TailDraw):
            own = path.ids[draw.position]
            draw = draw_sibling(rows[draw.position], own, draw.position, draw.u)
            assert isinstance(draw, BranchPoint)  # a whole row has no tail
        found.append(draw)
    return found


def listed(
    path: ScoredCompletion, siblings: Iterable[tuple[int, int]]
) -> SearchRoutine[ScoredCompletion]:
    """The path with rows that list these (position, token) too, so that their π is known."""
    missing: dict[int, list[int]] = {}
    for position, token in siblings:
        row = path.rows[position]
        if row.tail and not row.prob(token):
            missing.setdefault(position, []).append(token)
    if not missing:
        return path
    whole = yield from _whole(path, missing)
    rows = list(path.rows)
    for position, tokens in missing.items():
        known = rows[position].ids
        rows[position] = whole[position].head(HEAD, [*known.tolist(), *tokens])
    return replace(path, rows=tuple(rows))


def _whole(
    path: ScoredCompletion, positions: Iterable[int]
) -> SearchRoutine[dict[int, TokenDistribution]]:
    at = tuple(sorted(set(positions)))
    if not at:
        return {}
    [rows] = yield from request_logprobs([LogprobQuery(path.ids, at=at)])
    return dict(zip(at, rows, strict=True))
