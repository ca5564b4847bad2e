"""Engines that are wrong in one way each, and the finding that must name it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pts.config import SamplingConfig
from pts.engines.base import SampleRequest
from pts.engines.tabular import CLOSING, RIGHT, STOP, WRONG, Arc, Machine, TabularEngine
from pts.types import Ids, TokenDistribution

Requests = Iterator[SampleRequest | None]
Answers = Iterator[tuple[SampleRequest, list[Ids]]]


def machine(seed: int, states: int = 12, tokens: int = 12) -> Machine:
    """States of skewed distributions over the same twelve tokens, so that every order of them is
    possible; each token leads to any state, one step in 25 answers."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(states):
        probs = 0.96 * rng.dirichlet(np.full(tokens, 0.7))
        arcs = [Arc(3 + k, float(p), int(rng.integers(states))) for k, p in enumerate(probs)]
        made.append([*arcs, Arc(RIGHT, 0.02, CLOSING), Arc(WRONG, 0.02, CLOSING)])
    return Machine([_normed(arcs) for arcs in made])


def _normed(arcs: list[Arc]) -> list[Arc]:
    total = sum(arc.prob for arc in arcs)
    return [arc._replace(prob=arc.prob / total) for arc in arcs]


MACHINES = [machine(0), machine(1)]
PROBLEMS = TabularEngine(MACHINES, SamplingConfig()).problems()


class Base(TabularEngine):
    """A right engine: every mutant changes one thing."""

    def __init__(self, sampling: SamplingConfig) -> None:
        super().__init__(MACHINES, sampling)

    def twin(self, **changes: Any) -> TabularEngine:
        """A right engine under other settings."""
        return TabularEngine(MACHINES, self.sampling.model_copy(update=changes))

    def answered(self, requests: Requests) -> Answers:
        return super().sample(requests)


def completions(change: Callable[[Base, SampleRequest, Ids], Ids]) -> type[Base]:
    """An engine that changes every completion on the way out."""

    class Changed(Base):
        def sample(self, requests: Requests) -> Answers:
            for request, drawn in self.answered(requests):
                yield request, [change(self, request, ids) for ids in drawn]

    return Changed


def limits(change: Callable[[Base, SampleRequest], int]) -> type[Base]:
    """An engine that works with another limit than the request's."""

    class Changed(Base):
        def sample(self, requests: Requests) -> Answers:
            for request in requests:
                if request is not None:
                    other = replace(request, max_tokens=change(self, request))
                    ((_, drawn),) = super().sample(iter([other]))
                    yield request, drawn

    return Changed


def seeded(change: Callable[[SampleRequest, int, int], int]) -> type[Base]:
    """An engine whose seeds are made from (request, index in the request, running number of the
    request)."""

    class Changed(Base):
        def sample(self, requests: Requests) -> Answers:
            for number, request in enumerate(w for w in requests if w is not None):
                seeds = tuple(change(request, k, number) for k in range(len(request.seeds)))
                ((_, drawn),) = super().sample(iter([replace(request, seeds=seeds)]))
                yield request, drawn

    return Changed


def sampled_under(**changes: Any) -> type[Base]:
    """An engine that samples under other settings than it scores."""

    class Changed(Base):
        def sample(self, requests: Requests) -> Answers:
            return self.twin(**changes).sample(requests)

    return Changed


def scored_under(**changes: Any) -> type[Base]:
    """An engine that scores under other settings than it samples."""

    class Changed(Base):
        def score(self, prompt: Ids, completion: Ids) -> list[TokenDistribution]:
            return self.twin(**changes).score(prompt, completion)

    return Changed


def rows(change: Callable[[TokenDistribution], TokenDistribution]) -> type[Base]:
    """An engine that changes every row on the way out."""

    class Changed(Base):
        def score(self, prompt: Ids, completion: Ids) -> list[TokenDistribution]:
            return [change(row) for row in super().score(prompt, completion)]

    return Changed


class Drawn(Base):
    """An engine that draws token by token from rows of its own."""

    def __init__(self, sampling: SamplingConfig) -> None:
        super().__init__(sampling)
        self.plain = self.twin(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)

    def row(self, request: SampleRequest, ids: Ids) -> TokenDistribution:
        state = self._states(request.prompt, request.prefix + ids)[-1]
        return self.plain._support(request.prompt[0], state).row

    def random(self, seed: int) -> Callable[[], float]:
        return random.Random(seed).random

    def rollout(self, request: SampleRequest, seed: int) -> Ids:
        number, ids = self.random(seed), ()
        while len(ids) < request.max_tokens and ids[-1:] != (STOP,):
            row = self.row(request, ids)
            ids += (
                int(row.ids[min(np.searchsorted(row.probs.cumsum(), number()), len(row.ids) - 1)]),
            )
        return ids

    def sample(self, requests: Requests) -> Answers:
        for request in requests:
            if request is not None:
                yield request, [self.rollout(request, seed) for seed in request.seeds]


def kept(row: TokenDistribution, mask: Any) -> TokenDistribution:
    return TokenDistribution(row.ids[mask], row.probs[mask] / row.probs[mask].sum())


class NucleusFirst(Drawn):
    """top-p on the untempered distribution, the temperature afterwards."""

    def row(self, request: SampleRequest, ids: Ids) -> TokenDistribution:
        row = super().row(request, ids)
        row = kept(row, row.probs.cumsum() - row.probs < self.sampling.top_p)
        tempered = row.probs ** (1 / self.sampling.temperature)
        return TokenDistribution(row.ids, tempered / tempered.sum())


class BanThenCut(Drawn):
    """The most likely token is removed, then the nucleus is taken of what is left."""

    def row(self, request: SampleRequest, ids: Ids) -> TokenDistribution:
        row = super().row(request, ids)
        tempered = row.probs ** (1 / self.sampling.temperature)
        row = TokenDistribution(row.ids, tempered / tempered.sum())
        if len(row.ids) > 1:
            row = kept(row, np.arange(len(row.ids)) > 0)
        return kept(row, row.probs.cumsum() - row.probs < self.sampling.top_p)


class SameNumber(Drawn):
    """The generator is seeded anew at each step."""

    def random(self, seed: int) -> Callable[[], float]:
        return lambda: random.Random(seed).random()


class ShortMemory(Drawn):
    """From the 25th token on, the state of the prefix without its last token is used."""

    def row(self, request: SampleRequest, ids: Ids) -> TokenDistribution:
        whole = request.prefix + ids
        if len(whole) > 24 and whole[-1] not in (RIGHT, WRONG):
            whole = whole[:-1]
        return super().row(replace(request, prefix=whole), ())


class Stale(Base):
    """Prefixes are looked up without their prompt."""

    def __init__(self, sampling: SamplingConfig) -> None:
        super().__init__(sampling)
        self.known: dict[Ids, Ids] = {}

    def sample(self, requests: Requests) -> Answers:
        for request in requests:
            if request is not None:
                prompt = self.known.setdefault(request.prefix, request.prompt)
                ((_, drawn),) = super().sample(iter([replace(request, prompt=prompt)]))
                yield request, drawn


class ShiftedRows(Base):
    """TokenDistribution i is the distribution after token i."""

    def score(self, prompt: Ids, completion: Ids) -> list[TokenDistribution]:
        states = self._states(prompt, completion)
        return [self._support(prompt[0], state).row for state in states[1:]]


class NotNormalised(Base):
    """Probabilities of the whole vocabulary, cut."""

    def score(self, prompt: Ids, completion: Ids) -> list[TokenDistribution]:
        whole = self.twin(top_k=0).score(prompt, completion)
        k = self.sampling.top_k
        return [TokenDistribution(row.ids[:k], row.probs[:k]) for row in whole]


class RowForNothing(Base):
    def score(self, prompt: Ids, completion: Ids) -> list[TokenDistribution]:
        return super().score(prompt, completion) or [self._support(prompt[0], 0).row]


class Twice(Base):
    def sample(self, requests: Requests) -> Answers:
        for answer in self.answered(requests):
            yield answer
            yield answer


class Fewer(Base):
    """Equal rollouts are merged."""

    def sample(self, requests: Requests) -> Answers:
        for request, drawn in self.answered(requests):
            yield request, list(dict.fromkeys(drawn))


class AllEqual(Base):
    def sample(self, requests: Requests) -> Answers:
        for request, drawn in self.answered(requests):
            yield request, [drawn[0]] * len(drawn)


class OneGenerator(Base):
    """One generator for the life of the engine."""

    def __init__(self, sampling: SamplingConfig) -> None:
        super().__init__(sampling)
        self.seeds = random.Random(0)

    def sample(self, requests: Requests) -> Answers:
        for request in requests:
            if request is not None:
                seeds = tuple(self.seeds.getrandbits(64) for _ in request.seeds)
                ((_, drawn),) = super().sample(iter([replace(request, seeds=seeds)]))
                yield request, drawn


class Company(Base):
    """A request's random numbers depend on how many requests stand in the batch with it."""

    def sample(self, requests: Requests) -> Answers:
        batch: list[SampleRequest] = []
        for request in requests:
            if request is not None:
                batch.append(request)
            if request is None or len(batch) == 4:
                yield from self._run(batch)
                batch = []
        yield from self._run(batch)

    def _run(self, batch: list[SampleRequest]) -> Answers:
        for request in batch:
            seeds = tuple(seed ^ len(batch) for seed in request.seeds)
            ((_, drawn),) = super().sample(iter([replace(request, seeds=seeds)]))
            yield request, drawn


class Eager(Base):
    def sample(self, requests: Requests) -> Answers:
        yield from super().sample(iter(list(requests)))


class StopsAtNone(Base):
    """Two requests are held back; None is taken for the end."""

    def sample(self, requests: Requests) -> Answers:
        held: list[SampleRequest] = []
        for request in requests:
            if request is None:
                break
            held.append(request)
            if len(held) > 2:
                yield from super().sample(iter([held.pop(0)]))
        yield from super().sample(iter(held))


class LastInFirstOut(Base):
    """Right: it holds three requests and delivers the newest first."""

    def sample(self, requests: Requests) -> Answers:
        held: list[SampleRequest] = []
        for request in requests:
            if request is not None:
                held.append(request)
            if held and (request is None or len(held) > 3):
                yield from super().sample(iter([held.pop()]))
        yield from super().sample(iter(held[::-1]))


class NoneIsDropped(Base):
    """Two requests are held back; None does not release them."""

    def sample(self, requests: Requests) -> Answers:
        held: list[SampleRequest] = []
        for request in requests:
            if request is not None:
                held.append(request)
            if len(held) == 2:
                yield from super().sample(iter(held))
                held = []
        yield from super().sample(iter(held))


class Leftovers(Base):
    """Requests of a call that was closed early are answered by the next one."""

    def __init__(self, sampling: SamplingConfig) -> None:
        super().__init__(sampling)
        self.held: list[SampleRequest] = []

    def sample(self, requests: Requests) -> Answers:
        for request in requests:
            if request is not None:
                self.held.append(request)
            while self.held and (request is None or len(self.held) > 2):
                yield from super().sample(iter([self.held.pop(0)]))
        while self.held:
            yield from super().sample(iter([self.held.pop(0)]))


class Spoken(Base):
    """Special tokens are part of the text."""

    def decode(self, ids: Ids) -> str:
        return " ".join(self.token_texts(ids))


class Silent(Base):
    """Special tokens have no piece."""

    def token_texts(self, ids: Ids) -> list[str]:
        return super().token_texts(tuple(i for i in ids if i != STOP))


class NoPolicy(Base):
    def __init__(self, sampling: SamplingConfig) -> None:
        super().__init__(sampling)
        self.policy_digest = ""


class SmallSeeds(Base):
    """Seeds are signed 64-bit numbers."""

    def sample(self, requests: Requests) -> Answers:
        for request, drawn in self.answered(requests):
            np.asarray(request.seeds, dtype=np.int64)
            yield request, drawn


@dataclass(frozen=True)
class Mutant:
    """A wrong engine, the settings that show it, and what a finding must say."""

    name: str
    make: Callable[[SamplingConfig], Any]
    check: str
    cause: str
    sampling: dict[str, float] = field(default_factory=dict)


def doubled(row: TokenDistribution) -> TokenDistribution:
    """The drawn token listed twice, as a server does that adds it to the top ones."""
    ids, probs = np.append(row.ids, row.ids[0]), np.append(row.probs, row.probs[0])
    return TokenDistribution(ids, probs / probs.sum())


PLAIN: dict[str, float] = {}
K = {"temperature": 0.8, "top_k": 4}
P = {"temperature": 0.6, "top_p": 0.8}
M = {"temperature": 0.7, "min_p": 0.1}

MUTANTS = [
    Mutant(
        "one token over the limit", limits(lambda _, w: w.max_tokens + 1), "limit", "off by one"
    ),
    Mutant(
        "limit of its own",
        limits(lambda e, w: e.sampling.max_new_tokens),
        "limit",
        "the request's limit is not used",
    ),
    Mutant(
        "limit too small",
        limits(lambda _, w: max(1, w.max_tokens - 1)),
        "stop",
        "its limit is smaller",
    ),
    Mutant(
        "stop id stripped",
        completions(lambda _, w, ids: ids[:-1] if ids[-1:] == (STOP,) else ids),
        "stop",
        "the stop id is stripped",
    ),
    Mutant(
        "tokens after the stop",
        completions(lambda _, w, ids: (*ids, STOP, STOP)[: w.max_tokens]),
        "stop",
        "a finished rollout stays in the batch",
    ),
    Mutant(
        "temperature ignored in score",
        scored_under(temperature=1.0),
        "settings",
        "in score: the temperature is ignored",
        {"temperature": 0.6},
    ),
    Mutant(
        "temperature ignored in sample",
        sampled_under(temperature=1.0),
        "frequencies",
        "in sample: the temperature is ignored",
        {"temperature": 0.6},
    ),
    Mutant("nucleus before temperature", NucleusFirst, "frequencies", "before the temperature", P),
    Mutant("ban before the nucleus", BanThenCut, "frequencies", "truncate first, remove second", P),
    Mutant(
        "one token more than top_k", sampled_under(top_k=5), "frequencies", "one token too many", K
    ),
    Mutant(
        "one token less than top_k", sampled_under(top_k=3), "frequencies", "one token too few", K
    ),
    Mutant(
        "top_p forgotten", sampled_under(top_p=1.0), "frequencies", "in sample: top_p is ignored", P
    ),
    Mutant(
        "min_p forgotten", sampled_under(min_p=0.0), "frequencies", "in sample: min_p is ignored", M
    ),
    Mutant(
        "min_p forgotten in score", scored_under(min_p=0.0), "settings", "in score: min_p is ign", M
    ),
    Mutant("rows not renormalised", NotNormalised, "rows", "not renormalised", K),
    Mutant("rows shifted by one", ShiftedRows, "rows", "shifted by one"),
    Mutant("a token twice in a row", rows(doubled), "rows", "a second time"),
    Mutant(
        "rows by token id",
        rows(lambda r: TokenDistribution(*_by_id(r))),
        "rows",
        "sort them by probability",
    ),
    Mutant(
        "log-probabilities",
        rows(lambda r: TokenDistribution(r.ids, np.log(r.probs))),
        "rows",
        "log-probabilities or logits",
    ),
    Mutant("a row for nothing", RowForNothing, "rows", "no token was asked for"),
    Mutant("answers repeated", Twice, "answers", "not taken out of the batch"),
    Mutant("equal rollouts merged", Fewer, "answers", "merged when they are equal"),
    Mutant("n equal completions", AllEqual, "seeds", "one rollout is repeated n times"),
    Mutant("seeds ignored", OneGenerator, "seeds", "seeds of a request are not used"),
    Mutant(
        "order decides",
        seeded(lambda w, k, number: w.seeds[k] + number),
        "seeds",
        "depend on the order of the requests",
    ),
    Mutant("company decides", Company, "seeds", "depends on the others in its batch"),
    Mutant(
        "place in the request decides",
        seeded(lambda w, k, number: w.seeds[0] + k),
        "seeds",
        "depends on its place in a request",
    ),
    Mutant("same number at each step", SameNumber, "rollouts", "the same random number"),
    Mutant("wrong from the 25th token", ShortMemory, "rollouts", "go wrong with length"),
    Mutant("prompts confused", Stale, "frequencies", "continues the prompt of problem"),
    Mutant("whole queue read at once", Eager, "queue", "reads the whole queue"),
    Mutant("requests held back at None", NoneIsDropped, "queue", "without working on what it has"),
    Mutant("ends at None", StopsAtNone, "answers", "stops at the first None"),
    Mutant("leftovers of a closed call", Leftovers, "answers", "an earlier call"),
    Mutant("special tokens decoded", Spoken, "text", "decode shows special tokens"),
    Mutant("special tokens without a piece", Silent, "text", "special tokens are skipped"),
    Mutant(
        "numpy ids",
        completions(lambda _, w, ids: tuple(np.asarray(ids, np.int64))),  # type: ignore[arg-type]
        "ids",
        "tuple(ids.tolist())",
    ),
    Mutant("no policy", NoPolicy, "protocol", "pairs carry it"),
    Mutant("seeds of 63 bits", SmallSeeds, "rows", "raised in"),
]


def _by_id(row: TokenDistribution) -> tuple[Any, Any]:
    order = np.argsort(row.ids)
    return row.ids[order], row.probs[order]
