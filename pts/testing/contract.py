"""Checks that do not depend on sampling settings: parts, live queue across calls, texts, seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count
from typing import TypeAlias

from pts.config import SamplingConfig
from pts.engines.base import Engine, SampleRequest
from pts.testing.report import FindingCollector, clipped
from pts.testing.rollouts import EngineHarness, asked
from pts.testing.rows import ProbePath
from pts.types import Ids

EACH = 4
"""Rollouts of each request whose seeds are tried again."""

ATTRIBUTES = ("sampling", "policy_digest", "reproducible", "stop_ids")
METHODS = ("encode", "decode", "token_texts", "score", "sample")

Calls: TypeAlias = list[list[list[SampleRequest]]]
"""Calls of an engine, each of one or more waves of requests."""


def check_parts(engine: Engine, notes: FindingCollector) -> bool:
    """Note parts of the protocol that are missing or cannot be used; False if there are any."""
    faults = list(_part_faults(engine))
    for fault in faults:
        notes.add("protocol", type(engine).__name__, *fault)
    return not faults


def _part_faults(engine: Engine) -> Iterator[tuple[str, str, str]]:
    """(expected, observed, cause) of parts that are missing, or cannot be used."""
    missing = [name for name in (*ATTRIBUTES, *METHODS) if not hasattr(engine, name)]
    if missing:
        cause = "see the protocol in pts.engines.base"
        yield "all attributes and methods of Engine", f"no {', '.join(missing)}", cause
        return
    if not isinstance(engine.sampling, SamplingConfig):
        yield "sampling is a SamplingConfig", repr(engine.sampling), "keep the one given"
    digest = engine.policy_digest
    if not isinstance(digest, str) or not digest:
        yield "policy_digest is a digest of the weights, as text", repr(digest), "pairs carry it"
    if not isinstance(engine.reproducible, bool):
        cause = "declare whether seeds are honoured"
        yield "reproducible is True or False", repr(engine.reproducible), cause
    stops = engine.stop_ids
    if not isinstance(stops, frozenset) or not stops or {type(s) for s in stops} != {int}:
        cause = "without a stop id every completion is cut and fails"
        yield "stop_ids is a frozenset of ints, not empty", clipped(stops), cause


def check_contract(harness: EngineHarness, paths: Sequence[ProbePath]) -> None:
    """Put an engine through all of these checks."""
    with harness.notes.part("queue", harness.settings):
        check_queue(harness, paths[0])
    with harness.notes.part("text", harness.settings):
        check_text(harness, paths)
    if harness.engine.reproducible:
        with harness.notes.part("seeds", harness.settings):
            check_seeds(harness, paths)


def check_queue(harness: EngineHarness, path: ProbePath) -> None:
    """Requests in waves, an empty queue, and a call that is closed early."""
    keys, limit = count(1000), harness.limit

    def request(limit: int, n: int) -> SampleRequest:
        return SampleRequest(next(keys), path.prompt, (), limit, harness.seeds(n))

    harness.collect([request(1, 2)], [request(limit, 3), request(2, 1)], [request(3, 5)])
    if list(harness.engine.sample(iter([]))):
        cause = "answers of an earlier call are still in the engine"
        expected = "no answer to an empty queue"
        harness.notes.add("queue", harness.settings, expected, "answers", cause)
    answers = harness.engine.sample(iter([request(limit, 2) for _ in range(4)]))
    next(answers)
    if hasattr(answers, "close"):
        answers.close()
    harness.collect([request(limit, 2)])


def check_text(harness: EngineHarness, paths: Sequence[ProbePath]) -> None:
    """`decode` leaves special tokens out, `token_texts` shows every token by itself."""
    engine = harness.engine
    stop = min(engine.stop_ids)
    for path in paths:
        place = f"problem {path.name}"
        spoken = tuple(token for token in path.ids if token not in engine.stop_ids)
        texts, text = engine.token_texts((*spoken, stop)), engine.decode((*spoken, stop))
        if len(texts) != len(spoken) + 1 or not all(isinstance(piece, str) for piece in texts):
            observed = f"{len(texts)} texts of {len(spoken) + 1} tokens"
            cause = "special tokens are skipped, or ids are decoded together"
            harness.add("text", place, "one text a token, special ones shown", observed, cause)
        if text != engine.decode(spoken) or engine.decode((stop,)).strip():
            observed = f"the text ends in {clipped(text[-30:])}"
            cause = "decode shows special tokens (skip_special_tokens=False)"
            harness.add("text", place, "decode leaves stop ids out", observed, cause)


def check_seeds(harness: EngineHarness, paths: Sequence[ProbePath]) -> None:
    """`reproducible`: ask for the same rollouts again, in other orders and in other company.

    A rollout must be a function of its prefix and its seed alone.

    A difference is a finding when it shows with fresh seeds too: rounding in a matrix product may
    move a draw across an edge once in about a million tokens.
    """
    for way, (again, cause) in _WAYS.items():
        found = _difference(harness, paths, again) and _difference(harness, paths, again)
        if found:
            request, usual, other = found
            expected = f"the same rollout for the same seed: {clipped(usual, 60)}"
            harness.add("seeds", f"{asked(request)}; {way}", expected, clipped(other, 60), cause)
            return


def _difference(
    harness: EngineHarness,
    paths: Sequence[ProbePath],
    again: Callable[[list[SampleRequest]], Calls],
) -> tuple[SampleRequest, Ids, Ids] | None:
    """The first rollout, of two prefixes a path, that comes out differently in another way."""
    prefixes = [(path, path.ids[:n]) for path in paths for n in (0, len(path.ids) // 2)]
    requests = [
        SampleRequest(key, path.prompt, at, harness.limit - len(at), harness.seeds(EACH))
        for key, (path, at) in enumerate(prefixes)
    ]
    usual, other = _by_seed(harness, [[requests]]), _by_seed(harness, again(requests))
    for request in requests:
        for seed in request.seeds:
            if seed in usual and seed in other and usual[seed] != other[seed]:
                return request, usual[seed], other[seed]
    return None


def _by_seed(harness: EngineHarness, calls: Calls) -> dict[int, Ids]:
    """Rollouts by their seed, which no two of them share."""
    found: dict[int, Ids] = {}
    for waves in calls:
        answers = harness.collect(*waves)
        for request in chain(*waves):
            completions = answers.get(request.key, [])
            if len(completions) == len(request.seeds):
                found |= zip(request.seeds, completions, strict=True)
    return found


def _singly(requests: list[SampleRequest]) -> Calls:
    """Every rollout as a request of its own, in two waves."""
    singles = [
        dataclasses.replace(request, key=request.key * EACH + k, seeds=(seed,))
        for request in requests
        for k, seed in enumerate(request.seeds)
    ]
    half = len(singles) // 2
    return [[singles[:half], singles[half:]]]


_WAYS: dict[str, tuple[Callable[[list[SampleRequest]], Calls], str]] = {
    "the same call again": (
        lambda requests: [[requests]],
        "rollouts come from a generator that runs on from call to call, or the seeds of a request "
        "are not used; declare reproducible = False if that cannot be mended",
    ),
    "the requests in reverse order": (
        lambda requests: [[requests[::-1]]],
        "a rollout's random numbers depend on the order of the requests (one generator for the "
        "whole call, or a row's index in the seed)",
    ),
    "each request in a call of its own": (
        lambda requests: [[[request]] for request in requests],
        "a rollout depends on the others in its batch: shared random numbers, padding that is "
        "attended to, or rows mixed up",
    ),
    "each rollout as a request of its own": (
        _singly,
        "a rollout depends on its place in a request: the seed of the first rollout, or its index, "
        "decides",
    ),
}
