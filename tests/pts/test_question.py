from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pts.algorithm.filtering import equal_verdicts
from pts.algorithm.question import search_question
from pts.algorithm.requests import gather, request, with_cost
from pts.algorithm.tails import HEAD
from pts.config import SearchConfig
from pts.engines.tabular import STOP, TabularEngine, TabularVerifier
from pts.errors import DataError
from pts.stats import jeffreys
from pts.testing import run_search
from pts.testing.shapes import Instance, sparse, wandering
from pts.types import (
    Cost,
    FilterCounts,
    Ids,
    LogprobQuery,
    QuestionResult,
    Rollout,
    RolloutQuery,
    TokenDistribution,
    Verdict,
)

WIDE = {"p_min": 0.01, "p_max": 0.99}


def searched(instance: Instance, config: SearchConfig, seed: int = 0) -> QuestionResult:
    engine = TabularEngine([instance.machine], instance.sampling)
    problem = engine.problems()[0]
    given = [instance.path] if instance.path else None
    search = search_question(
        problem.id,
        engine.encode(problem),
        instance.sampling.max_new_tokens,
        config,
        seed,
        given,
        engine.stop_ids,
    )
    return run_search(search, engine, problem, TabularVerifier(), seed)


def drive(
    search: Any, passes: Callable[[RolloutQuery, int], bool]
) -> tuple[QuestionResult, list[Any]]:
    """Answer a search by rule: rollouts are (7, 7, 0) or (8, 0), each position has a fixed row."""
    asked: list[Any] = []
    try:
        queries = next(search)
        while True:
            asked.append(queries)
            queries = search.send([answer(query, passes) for query in queries])
    except StopIteration as stop:
        return stop.value, asked


def answer(query: Any, passes: Callable[[RolloutQuery, int], bool]) -> Any:
    if isinstance(query, LogprobQuery):
        row = TokenDistribution(np.array([7, 8, 0]), np.array([0.5, 0.3, 0.2]))
        return [row] * len(query.completion)
    found = []
    for i in range(query.n):
        good = passes(query, i)
        ids = (7, 7, 0) if good else (8, 0)
        finished = bool(query.prefix) and query.prefix[-1] == 0
        ids = () if finished else ids if query.purpose == "filter" else ids[:1]
        verdict = Verdict.PASS if good else Verdict.FAIL
        found.append(Rollout(ids, verdict, False, 0 if finished else 3))
    return found


def start(config: SearchConfig, completions: list[Ids] | None = None) -> Any:
    return search_question("q", (1, 2), 9, config, 0, completions, frozenset({0}))


FIRST, REST = RolloutQuery((), 6, "filter"), RolloutQuery((), 10, "filter")
"""What a filter of 16 rollouts asks for: the first ones, and the others unless these were equal."""


def passing(successes: int) -> Callable[[RolloutQuery, int], bool]:
    """So many of 16 filter rollouts pass, three of them among the first six."""
    return lambda query, i: i < (3 if query == FIRST else successes - 3)


@pytest.mark.parametrize(("successes", "status"), [(3, "too hard"), (13, "too easy")])
def test_questions_outside_the_range_cost_the_filter_only(successes: int, status: str) -> None:
    result, asked = drive(start(SearchConfig()), passing(successes))
    assert asked == [[FIRST], [REST]]
    assert (result.status, result.paths) == (status, ())
    assert result.solved.mean == successes / 16
    assert result.filtered == FilterCounts(successes, 16, stopped=False)
    assert result.cost == {"filter": Cost(16, 48)}


@pytest.mark.parametrize(("passes", "status"), [(False, "too hard"), (True, "too easy")])
def test_a_few_equal_verdicts_set_a_question_aside(passes: bool, status: str) -> None:
    result, asked = drive(start(SearchConfig()), lambda query, i: passes)
    assert asked == [[FIRST]]
    assert (result.status, result.paths) == (status, ())
    assert result.filtered == FilterCounts(6 * passes, 6, stopped=True)
    assert result.solved == jeffreys(6 * passes, 6)
    assert result.cost == {"filter": Cost(6, 18)}


def test_equal_verdicts_that_the_range_keeps_stop_nothing() -> None:
    config = SearchConfig(p_min=0.0)
    first = equal_verdicts(config)
    result, asked = drive(start(config), lambda query, i: False)
    assert [query.n for (query,) in asked[:2]] == [first, 16 - first]
    assert (result.status, result.filtered) == ("searched", FilterCounts(0, 16, stopped=False))


@pytest.mark.parametrize("successes", [4, 12])
def test_questions_inside_the_range_are_searched(successes: int) -> None:
    result, _ = drive(start(SearchConfig()), passing(successes))
    assert result.status == "searched"
    assert result.filtered == FilterCounts(successes, 16, stopped=False)
    assert result.prompt_ids == (1, 2)


def test_paths_are_the_first_rollouts_whatever_became_of_them() -> None:
    config = SearchConfig(paths=9, filter_rollouts=16)
    result, asked = drive(start(config), lambda query, i: i >= (5 if query == FIRST else 4))
    # Rollouts 0 to 4 are all (8, 0) and fail, rollout 5 is (7, 7, 0): equal paths count once.
    assert [(path.ids, path.verdict) for path in result.paths] == [
        ((8, 0), Verdict.FAIL),
        ((7, 7, 0), Verdict.PASS),
    ]
    assert asked[2] == [LogprobQuery((8, 0), HEAD), LogprobQuery((7, 7, 0), HEAD)]


def test_given_completions_are_judged_and_searched_too() -> None:
    result, asked = drive(start(SearchConfig(), [(7, 0)]), lambda query, i: i % 2 == 0)
    assert asked[2] == [RolloutQuery((7, 0), 1, "search")]
    assert [path.ids for path in result.paths] == [(7, 7, 0), (7, 0)]


def test_a_completion_that_the_policy_cannot_sample_is_set_aside() -> None:
    result, _ = drive(start(SearchConfig(), [(99, 0)]), lambda query, i: i % 2 == 0)
    aside = result.paths[1]
    assert aside.probs[0] == 0.0
    assert (aside.curve, aside.tokens, aside.stopped) == ((), (), "impossible")


def test_faults_of_completions_are_told_together() -> None:
    with pytest.raises(DataError) as caught:
        start(SearchConfig(), [(), (7, 7), (7, 0, 7, 0), (7,) * 10, (7,) * 9, (7, 0)])
    lines = str(caught.value).split("\n")
    assert len(lines) == 4
    assert "completion 0 of problem 'q': has no tokens" in lines[0]
    assert "completion 1 of problem 'q': ends in 7, no stop token" in lines[1]
    assert "after the stop token at position 1" in lines[2]
    assert "over the limit of 9" in lines[3]


@pytest.mark.parametrize("method", ["branch", "bisect"])
def test_planted_token_becomes_a_confirmed_pair(method: str) -> None:
    instance = sparse(np.random.default_rng(1))  # one token of change -0.57 at 92
    result = searched(instance, SearchConfig(method=method, **WIDE))
    path = result.paths[-1]
    assert 92 in [token.position for token in path.tokens]
    (pair,) = [pair for pair in path.pairs if pair.position == 92 and pair.criterion == "path"]
    assert pair.rejected == path.ids[92]
    assert pair.pvalue < 0.01
    assert 8 <= pair.confirm_chosen.n == pair.confirm_rejected.n <= 128


def test_cost_is_told_by_purpose_and_confirmation_is_fresh() -> None:
    result = searched(sparse(np.random.default_rng(1)), SearchConfig(**WIDE))
    pairs = [pair for path in result.paths for pair in path.pairs]
    confirmed = sum(pair.confirm_chosen.n + pair.confirm_rejected.n for pair in pairs)
    assert result.cost["filter"].rollouts == 16
    assert result.cost["confirm"].rollouts == confirmed > 0
    assert 0 < result.cost["search"].rollouts <= 2 * 1200
    assert result.cost["search"].tokens > result.cost["search"].rollouts


@pytest.mark.parametrize("method", ["branch", "bisect"])
def test_same_seed_same_result(method: str) -> None:
    instance, config = wandering(np.random.default_rng(3)), SearchConfig(method=method, paths=2)
    assert searched(instance, config, 5) == searched(instance, config, 5)


def test_pairs_are_capped_by_question_not_by_path() -> None:
    config = SearchConfig(paths=3, max_pairs=2, **WIDE)
    result = searched(wandering(np.random.default_rng(1)), config)
    assert len(result.paths) == 3
    assert sum(len(path.pairs) for path in result.paths) == 2


def test_curve_ends_in_the_verdict() -> None:
    result = searched(wandering(np.random.default_rng(2)), SearchConfig(**WIDE))
    (path,) = result.paths
    assert path.ids[-1] == STOP
    assert path.curve_at[0] == 0
    assert path.curve_at[-1] == len(path.ids) == len(path.probs)
    assert path.curve[-1].mean == float(path.verdict is Verdict.PASS)
    assert path.curve[-1].method == "exact"


def counting(name: int, rounds: int) -> Any:
    seen = []
    for i in range(rounds):
        ((rollout,),) = yield from request([RolloutQuery((name, i), 1, "search")])
        seen.append(rollout.length)
    return name, seen


def test_searches_in_lockstep_get_their_own_answers() -> None:
    search, asked = gather([counting(1, 2), counting(2, 0), counting(3, 3)]), []
    try:
        queries = next(search)
        while True:
            asked.append([query.prefix for query in queries])
            queries = search.send(
                [
                    [Rollout((), Verdict.PASS, False, 10 * w.prefix[0] + w.prefix[1])]
                    for w in queries
                ]
            )
    except StopIteration as stop:
        results = stop.value
    assert asked == [[(1, 0), (3, 0)], [(1, 1), (3, 1)], [(3, 2)]]
    assert results == [(1, [10, 11]), (2, []), (3, [30, 31, 32])]


def test_finished_prefixes_are_judged_for_nothing() -> None:
    spent: dict[Any, Cost] = {}
    search = with_cost(counting(1, 2), spent)
    next(search)
    search.send([[Rollout((), Verdict.PASS, False, 0)]])
    with pytest.raises(StopIteration):
        search.send([[Rollout((), Verdict.PASS, False, 7)]])
    assert spent == {"search": Cost(1, 7)}
