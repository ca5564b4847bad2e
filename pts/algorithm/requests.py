"""Pieces that the searches are composed of: asking for measurements, several searches at once."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeAlias, TypeVar, cast

from pts.types import (
    Cost,
    Ids,
    LogprobQuery,
    Measurement,
    Purpose,
    Requests,
    Rollout,
    RolloutQuery,
    StepQuery,
    TokenDistribution,
)

T = TypeVar("T")

SearchRoutine: TypeAlias = Generator[Requests, list[Measurement], T]
"""A part of a search: yields queries, is sent their measurements in order, returns a T."""


def request(samples: Sequence[RolloutQuery]) -> SearchRoutine[list[list[Rollout]]]:
    """Yield the samples (nothing if there are none) and return their rollouts in order."""
    if not samples:
        return []
    answers = yield list(samples)
    return [cast("list[Rollout]", answer) for answer in answers]


def request_logprobs(
    scores: Sequence[LogprobQuery],
) -> SearchRoutine[list[list[TokenDistribution]]]:
    """Yield the scores (nothing if there are none) and return their rows in order."""
    if not scores:
        return []
    answers = yield list(scores)
    return [cast("list[TokenDistribution]", answer) for answer in answers]


def request_steps(completions: Sequence[Ids]) -> SearchRoutine[list[tuple[int, ...]]]:
    """Yield `StepQuery` of the completions and return the ends of their steps in order."""
    if not completions:
        return []
    answers = yield [StepQuery(ids) for ids in completions]
    return [tuple(cast("list[int]", answer)) for answer in answers]


def gather(searches: Sequence[SearchRoutine[T]]) -> SearchRoutine[list[T]]:
    """Run searches in lockstep: one yield holds the queries of all that are still running."""
    results: dict[int, T] = {}
    pending: dict[int, Requests] = {}
    for i, search in enumerate(searches):
        _advance(search, None, i, pending, results)
    while pending:
        running = sorted(pending)
        answers = yield [query for i in running for query in pending[i]]
        start = 0
        for i in running:
            end = start + len(pending[i])
            _advance(searches[i], answers[start:end], i, pending, results)
            start = end
    return [results[i] for i in range(len(searches))]


def _advance(
    search: SearchRoutine[T],
    answers: list[Measurement] | None,
    i: int,
    pending: dict[int, Requests],
    results: dict[int, T],
) -> None:
    try:
        pending[i] = next(search) if answers is None else search.send(answers)
    except StopIteration as stop:
        pending.pop(i, None)
        results[i] = stop.value


def with_cost(search: SearchRoutine[T], spent: dict[Purpose, Cost]) -> SearchRoutine[T]:
    """Run a search and add up in `spent` what its samples cost, by purpose."""
    answers: list[Measurement] | None = None
    while True:
        try:
            queries = next(search) if answers is None else search.send(answers)
        except StopIteration as stop:
            return cast("T", stop.value)
        answers = yield queries
        for query, answer in zip(queries, answers, strict=True):
            if isinstance(query, RolloutQuery):
                cost = cost_of(cast("list[Rollout]", answer))
                spent[query.purpose] = spent.get(query.purpose, Cost()) + cost


def cost_of(rollouts: Sequence[Rollout]) -> Cost:
    """Rollouts and sampled tokens; a finished prefix is judged without sampling, for nothing."""
    sampled = [rollout.length for rollout in rollouts if rollout.length]
    return Cost(len(sampled), sum(sampled))
