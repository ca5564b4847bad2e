from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest

from pts.algorithm.bisect import search_bisect, split_point
from pts.algorithm.paths import ScoredCompletion
from pts.algorithm.siblings import PathAnalysis
from pts.config import SearchConfig
from pts.types import Ids, Rollout, RolloutQuery, TokenDistribution, Verdict

CONFIG = SearchConfig(method="bisect", bisect_rollouts=100)


def make_path(
    probs: list[float], verdict: Verdict = Verdict.PASS, first: int = 7
) -> ScoredCompletion:
    ids = (first, *(7,) * (len(probs) - 1))
    rows = tuple(
        TokenDistribution(np.array([t, 90]), np.array([q, 1 - q]))
        for t, q in zip(ids, probs, strict=True)
    )
    return ScoredCompletion(ids, verdict, rows)


def drive(search: Generator[Any, Any, list[PathAnalysis]], p: Callable[[Ids], float]) -> Any:
    """Answer each sample with exactly p(prefix) n successes; also return the prefixes asked for."""
    asked: list[list[RolloutQuery]] = []
    try:
        queries = next(search)
        while True:
            asked.append(queries)
            queries = search.send([rollouts(query, p(query.prefix)) for query in queries])
    except StopIteration as stop:
        return stop.value, asked


def rollouts(query: RolloutQuery, p: float) -> list[Rollout]:
    passed = round(p * query.n)
    verdicts = [Verdict.PASS] * passed + [Verdict.FAIL] * (query.n - passed)
    return [Rollout((90 if v is Verdict.FAIL else 7,), v, False, 5) for v in verdicts]


def test_split_after_the_token_that_reaches_half_the_surprise() -> None:
    # -log2 π: 1, 1, 4, 1, 1 -> total 8, half 4: reached by the third token (cumulative 6).
    probs = [0.5, 0.5, 1 / 16, 0.5, 0.5]
    assert split_point(probs, 0, 5) == 3
    # First two and last three tokens: totals 2 (half 1 at the first) and 6 (half 3 at the first).
    assert split_point(probs, 0, 2) == 1
    assert split_point(probs, 2, 5) == 3


def test_split_leaves_a_token_on_both_sides() -> None:
    assert split_point([0.9, 0.9, 1e-9], 0, 3) == 2  # half is reached by the last token only
    assert split_point([1e-9, 0.9, 0.9], 0, 3) == 1


def test_split_in_the_middle_where_nothing_is_surprising() -> None:
    assert split_point([1.0] * 7, 0, 7) == 3
    assert split_point([0.5, *[1.0] * 4], 1, 5) == 3


def test_prefixes_are_asked_for_once_level_by_level() -> None:
    path = make_path([0.5] * 8)
    levels = [0.4] * 5 + [1.0] * 3  # p jumps at token 4 (index from 0)
    (finding,), asked = drive(search_bisect([path], CONFIG), lambda at: levels[len(at)])
    assert [[len(s.prefix) for s in queries] for queries in asked] == [[0], [4], [6], [5]]
    assert all(s.n == 100 and s.purpose == "search" for queries in asked for s in queries)
    (token,) = finding.result.tokens
    assert (token.position, token.delta.mean, token.decided) == (4, pytest.approx(0.6), True)
    assert finding.result.curve_at == (0, 4, 5, 6, 8)
    assert finding.result.curve[-1].method == "exact"
    assert finding.result.stopped == "decided"


def test_a_change_of_exactly_the_gap_is_followed() -> None:
    """7/10 - 5/10 reaches 0.2, although its float (0.19999999999999996) does not."""
    config = SearchConfig(method="bisect", bisect_rollouts=10)
    levels = [0.5, 0.5, 0.7, 0.7, 1.0]
    (finding,), asked = drive(
        search_bisect([make_path([0.5] * 4)], config), lambda at: levels[len(at)]
    )
    assert [[len(s.prefix) for s in queries] for queries in asked] == [[0], [2], [1, 3]]
    assert [token.position for token in finding.result.tokens] == [1, 3]


def test_end_of_the_path_is_judged_not_sampled() -> None:
    path = make_path([0.5] * 4, Verdict.FAIL)
    (finding,), asked = drive(search_bisect([path], CONFIG), lambda at: 0.6)
    assert max(len(s.prefix) for queries in asked for s in queries) == 3
    (token,) = finding.result.tokens
    assert (token.position, token.delta.mean) == (3, pytest.approx(-0.6))
    assert token.after.n == 0


def test_opposite_changes_inside_a_level_segment_stay_hidden() -> None:
    path = make_path([0.5] * 8)
    levels = [0.9, 0.9, 0.2, 0.9, 0.9, 0.9, 0.9, 0.9]
    (finding,), asked = drive(search_bisect([path], CONFIG), lambda at: levels[len(at)])
    assert len(asked) == 1
    assert finding.result.tokens == ()


def test_sister_paths_share_their_prefixes() -> None:
    paths = [make_path([0.5] * 4), make_path([0.5] * 4), make_path([0.5] * 4, first=8)]
    _, asked = drive(search_bisect(paths, CONFIG), lambda at: 0.5 if len(at) < 2 else 1.0)
    prefixes = [s.prefix for queries in asked for s in queries]
    assert len(prefixes) == len(set(prefixes))
    assert prefixes.count(()) == 1


def test_first_tokens_of_rollouts_fill_the_sibling_table() -> None:
    path = make_path([0.5] * 4)
    (finding,), _ = drive(search_bisect([path], CONFIG), lambda at: 0.9)
    assert finding.result.siblings == {0: ((90, 0.5, 0, 10),)}
    assert finding.groups[0, 7].n == 90


def test_intervals_widen_as_the_rollouts_get_fewer() -> None:
    def width(n: int) -> float:
        config = SearchConfig(method="bisect", bisect_rollouts=n)
        path = make_path([0.5])
        (finding,), _ = drive(search_bisect([path], config), lambda at: 0.5)
        (token,) = finding.result.tokens
        return token.delta.high - token.delta.low

    assert width(10) / width(160) == pytest.approx(math.sqrt(16), rel=0.2)
