"""Checks of `Engine.reproducible`: a rollout is a function of its prefix and its seed alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from pts.engines.base import Wish
from pts.testing.probes import Path
from pts.testing.report import clipped
from pts.testing.rollouts import Answers, Desk
from pts.testing.sampling import Seeds
from pts.types import Ids

EACH = 4
"""Rollouts of each wish."""

Drawn = dict[tuple[int, int], Ids]
"""A rollout by its wish's key and its place in the wish."""


def check_seeds(desk: Desk, paths: Sequence[Path], seeds: Seeds, limit: int) -> None:
    """Ask for the same rollouts again, in other orders and in other company.

    A difference is a finding when it shows with fresh seeds too: rounding in a matrix product may
    move a draw across an edge once in about a million tokens.
    """
    for way, (ask, cause) in _WAYS.items():
        first = _difference(desk, _wishes(paths, seeds, limit), ask)
        if first is None:
            continue
        second = _difference(desk, _wishes(paths, seeds, limit), ask)
        if second is not None:
            wish, expected, observed = second
            desk.notes.add(
                "seeds",
                f"{desk.where(wish)}; {way}",
                f"the same rollout for the same seed: {clipped(expected, 60)}",
                clipped(observed, 60),
                cause,
            )
            return


def _wishes(paths: Sequence[Path], seeds: Seeds, limit: int) -> list[Wish]:
    """Two prefixes of each path."""
    prefixes = [(path, path.ids[:n]) for path in paths for n in (0, len(path.ids) // 2)]
    return [
        Wish(key, path.prompt, at, limit - len(at), seeds(EACH))
        for key, (path, at) in enumerate(prefixes)
    ]


def _difference(
    desk: Desk, wishes: list[Wish], ask: Callable[[Desk, list[Wish]], Drawn]
) -> tuple[Wish, Ids, Ids] | None:
    """The first rollout that comes out differently when asked for in another way."""
    usual, other = _named(desk.collect(wishes)), ask(desk, wishes)
    for wish in wishes:
        for k in range(EACH):
            a, b = usual.get((wish.key, k)), other.get((wish.key, k))
            if a is not None and b is not None and a != b:
                return wish, a, b
    return None


def _named(answers: Answers) -> Drawn:
    return {
        (key, k): ids
        for key, completions in answers.items()
        if len(completions) == EACH
        for k, ids in enumerate(completions)
    }


def _again(desk: Desk, wishes: list[Wish]) -> Drawn:
    return _named(desk.collect(wishes))


def _reversed(desk: Desk, wishes: list[Wish]) -> Drawn:
    return _named(desk.collect(wishes[::-1]))


def _alone(desk: Desk, wishes: list[Wish]) -> Drawn:
    found: Drawn = {}
    for wish in wishes:
        found.update(_named(desk.collect([wish])))
    return found


def _split(desk: Desk, wishes: list[Wish]) -> Drawn:
    """Every rollout as a wish of its own, in waves."""
    singles = list(_singles(wishes))
    half = len(singles) // 2
    answers = desk.collect(singles[:half], singles[half:])
    return {
        divmod(key, EACH): completions[0] for key, completions in answers.items() if completions
    }


def _singles(wishes: Sequence[Wish]) -> Iterator[Wish]:
    for wish in wishes:
        for k, seed in enumerate(wish.seeds):
            yield dataclasses.replace(wish, key=wish.key * EACH + k, seeds=(seed,))


_WAYS: dict[str, tuple[Callable[[Desk, list[Wish]], Drawn], str]] = {
    "the same call again": (
        _again,
        "rollouts come from a generator that runs on from call to call, or the seeds of a wish "
        "are not used; declare reproducible = False if that cannot be mended",
    ),
    "the wishes in reverse order": (
        _reversed,
        "a rollout's random numbers depend on the order of the wishes (one generator for the "
        "whole call, or a row's index in the seed)",
    ),
    "each wish in a call of its own": (
        _alone,
        "a rollout depends on the others in its batch: shared random numbers, padding that is "
        "attended to, or rows mixed up",
    ),
    "each rollout as a wish of its own": (
        _split,
        "a rollout depends on its place in a wish: the seed of the first rollout, or its index, "
        "decides",
    ),
}
