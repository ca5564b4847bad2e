"""Checks of `Engine.reproducible`: a rollout is a function of its prefix and its seed alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from pts.engines.base import SampleRequest
from pts.testing.probes import ProbePath
from pts.testing.report import clipped
from pts.testing.rollouts import Answers, EngineHarness, Seeds
from pts.types import Ids

EACH = 4
"""Rollouts of each request."""

Drawn = dict[tuple[int, int], Ids]
"""A rollout by its request's key and its place in the request."""


def check_seeds(
    harness: EngineHarness, paths: Sequence[ProbePath], seeds: Seeds, limit: int
) -> None:
    """Ask for the same rollouts again, in other orders and in other company.

    A difference is a finding when it shows with fresh seeds too: rounding in a matrix product may
    move a draw across an edge once in about a million tokens.
    """
    for way, (ask, cause) in _WAYS.items():
        first = _difference(harness, _requests(paths, seeds, limit), ask)
        if first is None:
            continue
        second = _difference(harness, _requests(paths, seeds, limit), ask)
        if second is not None:
            request, expected, observed = second
            harness.notes.add(
                "seeds",
                f"{harness.where(request)}; {way}",
                f"the same rollout for the same seed: {clipped(expected, 60)}",
                clipped(observed, 60),
                cause,
            )
            return


def _requests(paths: Sequence[ProbePath], seeds: Seeds, limit: int) -> list[SampleRequest]:
    """Two prefixes of each path."""
    prefixes = [(path, path.ids[:n]) for path in paths for n in (0, len(path.ids) // 2)]
    return [
        SampleRequest(key, path.prompt, at, limit - len(at), seeds(EACH))
        for key, (path, at) in enumerate(prefixes)
    ]


def _difference(
    harness: EngineHarness,
    requests: list[SampleRequest],
    ask: Callable[[EngineHarness, list[SampleRequest]], Drawn],
) -> tuple[SampleRequest, Ids, Ids] | None:
    """The first rollout that comes out differently when asked for in another way."""
    usual, other = _named(harness.collect(requests)), ask(harness, requests)
    for request in requests:
        for k in range(EACH):
            a, b = usual.get((request.key, k)), other.get((request.key, k))
            if a is not None and b is not None and a != b:
                return request, a, b
    return None


def _named(answers: Answers) -> Drawn:
    return {
        (key, k): ids
        for key, completions in answers.items()
        if len(completions) == EACH
        for k, ids in enumerate(completions)
    }


def _alone(harness: EngineHarness, requests: list[SampleRequest]) -> Drawn:
    found: Drawn = {}
    for request in requests:
        found.update(_named(harness.collect([request])))
    return found


def _split(harness: EngineHarness, requests: list[SampleRequest]) -> Drawn:
    """Every rollout as a request of its own, in waves."""
    singles = list(_singles(requests))
    half = len(singles) // 2
    answers = harness.collect(singles[:half], singles[half:])
    return {
        divmod(key, EACH): completions[0] for key, completions in answers.items() if completions
    }


def _singles(requests: Sequence[SampleRequest]) -> Iterator[SampleRequest]:
    for request in requests:
        for k, seed in enumerate(request.seeds):
            yield dataclasses.replace(request, key=request.key * EACH + k, seeds=(seed,))


_WAYS: dict[str, tuple[Callable[[EngineHarness, list[SampleRequest]], Drawn], str]] = {
    "the same call again": (
        lambda harness, requests: _named(harness.collect(requests)),
        "rollouts come from a generator that runs on from call to call, or the seeds of a request "
        "are not used; declare reproducible = False if that cannot be mended",
    ),
    "the requests in reverse order": (
        lambda harness, requests: _named(harness.collect(requests[::-1])),
        "a rollout's random numbers depend on the order of the requests (one generator for the "
        "whole call, or a row's index in the seed)",
    ),
    "each request in a call of its own": (
        _alone,
        "a rollout depends on the others in its batch: shared random numbers, padding that is "
        "attended to, or rows mixed up",
    ),
    "each rollout as a request of its own": (
        _split,
        "a rollout depends on its place in a request: the seed of the first rollout, or its index, "
        "decides",
    ),
}
