"""Drives one search in plain Python, with none of a run's concurrency, journal or redraws.

engine = TabularEngine([machine], SamplingConfig(max_new_tokens=64))
problem = engine.problems()[0]
search = search_question(problem.id, engine.encode(problem), 64, SearchConfig(), seed=0)
result = run_search(search, engine, problem, TabularVerifier())
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator
from typing import TypeVar

from pts.engines.base import Engine, SampleRequest
from pts.engines.boundaries import completion_steps
from pts.errors import VerifierError
from pts.types import (
    WHOLE,
    Ids,
    LogprobQuery,
    Measurement,
    Problem,
    Requests,
    Rollout,
    RolloutQuery,
    StepQuery,
    Verdict,
)
from pts.verifiers.base import Verifier

T = TypeVar("T")


def run_search(
    search: Generator[Requests, list[Measurement], T],
    engine: Engine,
    problem: Problem,
    verifier: Verifier,
    seed: int = 0,
) -> T:
    """Drive a search to its end and return its result.

    Finished prefixes are judged without sampling; the length limit is that of the whole
    completion; rollouts are seeded by (seed, problem, prefix, purpose, running index). Raises
    VerifierError on an UNSCORED verdict.
    """
    answers = _Answers(engine, problem, verifier, seed)
    try:
        queries = next(search)
        while True:
            queries = search.send([answers.of(query) for query in queries])
    except StopIteration as stop:
        result: T = stop.value
        return result


def seed_of(name: str) -> int:
    """The 64-bit seed of a rollout by its name; the upper half of the range occurs too."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


class _Answers:
    def __init__(self, engine: Engine, problem: Problem, verifier: Verifier, seed: int) -> None:
        self.engine, self.problem, self.verifier, self.seed = engine, problem, verifier, seed
        self.prompt = engine.encode(problem)
        self.drawn: Counter[str] = Counter()

    def of(self, query: RolloutQuery | LogprobQuery | StepQuery) -> Measurement:
        if isinstance(query, StepQuery):
            return completion_steps(self.engine, query.completion)
        if isinstance(query, LogprobQuery):
            return self.engine.score(self.prompt, query.completion)
        left = self.engine.sampling.max_new_tokens - len(query.prefix)
        if left <= 0 or (query.prefix and query.prefix[-1] in self.engine.stop_ids):
            return [self._judge(query, ())] * query.n
        name = f"{self.seed}/{self.problem.id}/{query.prefix}/{query.purpose}"
        first = self.drawn[name]
        self.drawn[name] += query.n
        seeds = tuple(seed_of(f"{name}/{first + i}") for i in range(query.n))
        sought = SampleRequest(0, self.prompt, query.prefix, left, seeds)
        ((_, rollouts),) = self.engine.sample(iter([sought]))
        return [self._judge(query, ids) for ids in rollouts]

    def _judge(self, query: RolloutQuery, ids: Ids) -> Rollout:
        whole = query.prefix + ids
        cut = not whole or whole[-1] not in self.engine.stop_ids
        verdict = Verdict.FAIL
        if not cut:
            verdict = self.verifier(self.problem, self.engine.decode(whole)).verdict
        if verdict is Verdict.UNSCORED:
            raise VerifierError(f"problem {self.problem.id!r} could not be judged: {whole}")
        return Rollout(ids if query.purpose in WHOLE else ids[:1], verdict, cut, len(ids))
