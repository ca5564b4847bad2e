"""Pieces that the searches are composed of: asking for measurements, several searches at once."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeAlias, TypeVar, cast

from pts.types import (
    Boundaries,
    Cost,
    Ids,
    Measurement,
    Outcome,
    Purpose,
    Row,
    Sample,
    Score,
    Wishes,
)

T = TypeVar("T")

Steps: TypeAlias = Generator[Wishes, list[Measurement], T]
"""A part of a search: yields wishes, is sent their measurements in order, returns a T."""


def ask(samples: Sequence[Sample]) -> Steps[list[list[Outcome]]]:
    """Yield the samples (nothing if there are none) and return their outcomes in order."""
    if not samples:
        return []
    answers = yield list(samples)
    return [cast("list[Outcome]", answer) for answer in answers]


def ask_rows(scores: Sequence[Score]) -> Steps[list[list[Row]]]:
    """Yield the scores (nothing if there are none) and return their rows in order."""
    if not scores:
        return []
    answers = yield list(scores)
    return [cast("list[Row]", answer) for answer in answers]


def ask_ends(completions: Sequence[Ids]) -> Steps[list[tuple[int, ...]]]:
    """Yield `Boundaries` of the completions and return the ends of their steps in order."""
    if not completions:
        return []
    answers = yield [Boundaries(ids) for ids in completions]
    return [tuple(cast("list[int]", answer)) for answer in answers]


def together(searches: Sequence[Steps[T]]) -> Steps[list[T]]:
    """Run searches in lockstep: one yield holds the wishes of all that are still running."""
    results: dict[int, T] = {}
    pending: dict[int, Wishes] = {}
    for i, search in enumerate(searches):
        _advance(search, None, i, pending, results)
    while pending:
        running = sorted(pending)
        answers = yield [wish for i in running for wish in pending[i]]
        start = 0
        for i in running:
            end = start + len(pending[i])
            _advance(searches[i], answers[start:end], i, pending, results)
            start = end
    return [results[i] for i in range(len(searches))]


def _advance(
    search: Steps[T],
    answers: list[Measurement] | None,
    i: int,
    pending: dict[int, Wishes],
    results: dict[int, T],
) -> None:
    try:
        pending[i] = next(search) if answers is None else search.send(answers)
    except StopIteration as stop:
        pending.pop(i, None)
        results[i] = stop.value


def metered(search: Steps[T], spent: dict[Purpose, Cost]) -> Steps[T]:
    """Run a search and add up in `spent` what its samples cost, by purpose."""
    answers: list[Measurement] | None = None
    while True:
        try:
            wishes = next(search) if answers is None else search.send(answers)
        except StopIteration as stop:
            return cast("T", stop.value)
        answers = yield wishes
        for wish, answer in zip(wishes, answers, strict=True):
            if isinstance(wish, Sample):
                cost = cost_of(cast("list[Outcome]", answer))
                spent[wish.purpose] = spent.get(wish.purpose, Cost()) + cost


def cost_of(outcomes: Sequence[Outcome]) -> Cost:
    """Rollouts and sampled tokens; a finished prefix is judged without sampling, for nothing."""
    sampled = [outcome.length for outcome in outcomes if outcome.length]
    return Cost(len(sampled), sum(sampled))
