"""Ask an engine for rollouts and check what comes back: shape, completeness, the live queue."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pts.engines.base import Engine, SampleRequest
from pts.testing.report import FindingCollector, clipped
from pts.types import Ids

FREE_POLLS = 100
"""An engine may ask this often while it works; after that the queue slows it down."""
POLL_SECONDS = 0.001

Seeds = Callable[[int], tuple[int, ...]]
"""Fresh 64-bit seeds, as many as asked for."""

Answers = dict[int, list[Ids]]
"""Well-formed completions of each answered request, by the request's key."""


class DeadlockError(Exception):
    """The engine keeps asking an empty queue instead of delivering what it owes."""


@dataclass
class LiveQueue:
    """Releases requests in waves, the next one when the engine has delivered something.

    Between waves it yields None, as a search does whose questions all wait for answers. After
    `patience` seconds of asking without a delivery it raises DeadlockError.
    """

    waves: Sequence[Sequence[SampleRequest]]
    patience: float
    owed: set[int] = field(default_factory=set)
    pulled: int = 0
    ended: bool = False

    def __iter__(self) -> Iterator[SampleRequest | None]:
        for wave in self.waves:
            # None until something is delivered of what is owed, if anything is.
            owed, polls, start = len(self.owed), 0, time.monotonic()
            while self.owed and len(self.owed) == owed:
                polls += 1
                if polls > FREE_POLLS:
                    time.sleep(POLL_SECONDS)
                    if time.monotonic() - start > self.patience:
                        raise DeadlockError
                yield None
            for request in wave:
                self.owed.add(request.key)
                self.pulled += 1
                yield request
        self.ended = True


@dataclass
class EngineHarness:
    """One engine under check: how it is asked, and the notes about it."""

    engine: Engine
    plain: Engine | None
    """The same engine without temperature and truncation, where there is one to compare with."""
    notes: FindingCollector
    settings: str
    limit: int
    """Most tokens of a whole completion."""
    seeds: Seeds
    patience: float

    def add(self, check: str, place: str, expected: str, observed: str, cause: str) -> None:
        """Note a finding at a place under these settings."""
        self.notes.add(check, f"{self.settings}; {place}", expected, observed, cause)

    def collect(self, *waves: Sequence[SampleRequest]) -> Answers:
        """Well-formed answers to requests given in waves; everything else becomes a finding."""
        queue = LiveQueue([wave for wave in waves if wave], self.patience)
        requests = {request.key: request for wave in waves for request in wave}
        found: Answers = {}
        try:
            self._receive(queue, requests, found)
        except DeadlockError:
            self.add(
                "queue",
                "a live queue that holds nothing for the moment",
                "after None the engine delivers something, then asks again",
                f"it pulled {queue.pulled} requests and kept asking for {self.patience:g} s "
                f"without a delivery ({len(queue.owed)} requests owed)",
                "sample reads the whole queue before it starts (list(requests)), or a loop skips "
                "None without working on what it has",
            )
            return found
        missing = [request for key, request in requests.items() if key in queue.owed]
        if missing or not queue.ended:
            which = clipped([key for key in requests if key not in found])
            expected = f"every one of {len(requests)} requests is answered before sample ends"
            observed = f"sample ended without answers to {which}, having pulled {queue.pulled}"
            cause = (
                "requests still in the batch are dropped when the queue is exhausted, or sample "
                "stops at the first None"
            )
            first = (missing or list(requests.values()))[0]
            self.add("answers", asked(first), expected, observed, cause)
        return found

    def _receive(
        self, queue: LiveQueue, requests: dict[int, SampleRequest], found: Answers
    ) -> None:
        twice = 0
        for request, completions in self.engine.sample(iter(queue)):
            if requests.get(request.key) != request:
                self.add(
                    "answers",
                    asked(request),
                    "an answer names a request of this call, unchanged",
                    f"an answer to a request with key {request.key} that was not given so",
                    "requests of an earlier call that was closed early are still in the engine, or "
                    "the request was rebuilt instead of handed back",
                )
            elif request.key in queue.owed:
                queue.owed.discard(request.key)
                found[request.key] = self._checked(request, completions)
            else:
                self.add(
                    "answers",
                    asked(request),
                    "each request is answered exactly once",
                    f"another answer to request {request.key}",
                    "finished requests are not taken out of the batch, or partial answers are "
                    "delivered",
                )
                twice += 1
                if twice > len(requests):
                    break

    def _checked(self, request: SampleRequest, completions: list[Ids]) -> list[Ids]:
        """Those of the completions that are well formed."""
        if len(completions) != len(request.seeds):
            expected = f"{len(request.seeds)} completions, one a seed"
            observed = f"{len(completions)} completions"
            cause = "rollouts are lost, merged when they are equal, or n is set elsewhere"
            self.add("answers", asked(request), expected, observed, cause)
        found = []
        for ids in completions:
            fault = _fault(request, ids, self.engine.stop_ids)
            if fault is None:
                found.append(ids)
            else:
                check, *told = fault
                self.add(check, asked(request), *told)
        stopped = {ids[-1] in self.engine.stop_ids for ids in found if ids}
        self.notes.seen.update("stopped" if stop else "truncated" for stop in stopped)
        return found


def asked(request: SampleRequest) -> str:
    """What a request asks for, as the place of a finding."""
    return (
        f"prompt of {len(request.prompt)} tokens, prefix of {len(request.prefix)}, limit "
        f"{request.max_tokens}, {len(request.seeds)} seeds"
    )


def _fault(
    request: SampleRequest, ids: Ids, stops: frozenset[int]
) -> tuple[str, str, str, str] | None:
    """(check, expected, observed, cause) of a completion that breaks the protocol."""
    if not isinstance(ids, tuple) or not all(type(token) is int for token in ids):
        kinds = sorted({type(token).__name__ for token in ids})
        observed = f"a {type(ids).__name__} of {', '.join(kinds) or 'nothing'}: {clipped(ids)}"
        cause = "ids come from an array or a tensor; give tuple(ids.tolist())"
        return "ids", "a completion is a tuple of Python ints", observed, cause
    first = next((k for k, token in enumerate(ids) if token in stops), None)
    if first is not None and first < len(ids) - 1:
        return (
            "stop",
            "nothing follows the first stop id",
            f"{len(ids) - 1 - first} tokens after stop id {ids[first]} at token {first}: "
            f"{clipped(ids)}",
            "a finished rollout stays in the batch (padding, or tokens after the stop), or the "
            "engine stops at another id than its stop_ids say",
        )
    if len(ids) > request.max_tokens:
        cause = "off by one: limit counts all new tokens, the stop id included"
        if len(ids) > request.max_tokens + 1:
            cause = (
                "the request's limit is not used: a rollout from a prefix may add only what is "
                "left of the whole completion, not max_new_tokens again"
            )
        return "limit", f"at most {request.max_tokens} tokens", f"{len(ids)} tokens", cause
    if len(ids) < request.max_tokens and first is None:
        return (
            "stop",
            f"a completion fills its limit of {request.max_tokens} or ends with a stop id of "
            f"{sorted(stops)}, which is part of it",
            f"{len(ids)} tokens without a stop id, ending in {clipped(ids[-3:])}",
            "the stop id is stripped from the returned ids, stop_ids lacks the id that the "
            "engine stops at, or its limit is smaller than the request's",
        )
    return None
