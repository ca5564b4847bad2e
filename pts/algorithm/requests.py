"""Pieces that the searches are composed of: asking for measurements, several searches at once."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import islice
from typing import Any, TypeAlias, TypeVar, cast

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
    return _ask(samples)


def request_logprobs(
    queries: Sequence[LogprobQuery],
) -> SearchRoutine[list[list[TokenDistribution]]]:
    """Yield the queries (nothing if there are none) and return their rows in order."""
    return _ask(queries)


def request_steps(completions: Sequence[Ids]) -> SearchRoutine[list[list[int]]]:
    """Yield `StepQuery` of the completions and return the ends of their steps in order."""
    return _ask([StepQuery(ids) for ids in completions])


def _ask(queries: Sequence[RolloutQuery | LogprobQuery | StepQuery]) -> SearchRoutine[list[Any]]:
    return (yield list(queries)) if queries else []


def gather(searches: Sequence[SearchRoutine[T]]) -> SearchRoutine[list[T]]:
    """Run searches in lockstep: one yield holds the queries of all that are still running."""
    results: dict[int, T] = {}
    answers: dict[int, list[Measurement] | None] = dict.fromkeys(range(len(searches)))
    while True:
        asked: dict[int, Requests] = {}
        for i, answer in answers.items():
            try:
                asked[i] = next(searches[i]) if answer is None else searches[i].send(answer)
            except StopIteration as stop:
                results[i] = stop.value
        if not asked:
            return [results[i] for i in range(len(searches))]
        measured = iter((yield [query for queries in asked.values() for query in queries]))
        answers = {i: list(islice(measured, len(queries))) for i, queries in asked.items()}


def with_cost(search: SearchRoutine[T], spent: dict[Purpose, Cost]) -> SearchRoutine[T]:
    """Run a search and add up in `spent` its rollouts and sampled tokens, by purpose."""
    answers: list[Measurement] | None = None
    while True:
        try:
            queries = next(search) if answers is None else search.send(answers)
        except StopIteration as stop:
            return cast("T", stop.value)
        answers = yield queries
        for query, answer in zip(queries, answers, strict=True):
            if isinstance(query, RolloutQuery):
                # A finished prefix is judged without sampling, for nothing.
                rollouts = cast("list[Rollout]", answer)
                sampled = [rollout.length for rollout in rollouts if rollout.length]
                cost = Cost(len(sampled), sum(sampled))
                spent[query.purpose] = spent.get(query.purpose, Cost()) + cost
