"""Drives one search in plain Python, with none of a run's concurrency, journal or redraws.

engine = TabularEngine([machine], SamplingConfig(max_new_tokens=64))
problem = engine.problems()[0]
search = search_question(problem.id, engine.encode(problem), 64, SearchConfig(), seed=0)
result = run_search(search, engine, problem, TabularVerifier())
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from typing import TypeVar

from pts.engines.base import Engine, SampleRequest, score_rows
from pts.engines.boundaries import completion_steps
from pts.errors import VerifierError
from pts.files import hash64
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
    prompt, drawn = engine.encode(problem), Counter[str]()

    def answer(query: RolloutQuery | LogprobQuery | StepQuery) -> Measurement:
        if isinstance(query, StepQuery):
            return completion_steps(engine, query.completion)
        if isinstance(query, LogprobQuery):
            return score_rows(engine, prompt, query)
        left = engine.sampling.max_new_tokens - len(query.prefix)
        if left <= 0 or (query.prefix and query.prefix[-1] in engine.stop_ids):
            return [judged(query, ())] * query.n
        name = f"{seed}/{problem.id}/{query.prefix}/{query.purpose}"
        seeds = tuple(hash64(f"{name}/{drawn[name] + i}") for i in range(query.n))
        drawn[name] += query.n
        sought = SampleRequest(0, prompt, query.prefix, left, seeds)
        ((_, rollouts),) = engine.sample(iter([sought]))
        return [judged(query, ids) for ids in rollouts]

    def judged(query: RolloutQuery, ids: Ids) -> Rollout:
        whole = query.prefix + ids
        cut = not whole or whole[-1] not in engine.stop_ids
        verdict = Verdict.FAIL
        if not cut:
            verdict = verifier(problem, engine.decode(whole)).verdict
        if verdict is Verdict.UNSCORED:
            raise VerifierError(f"problem {problem.id!r} could not be judged: {whole}")
        return Rollout(ids if query.purpose in WHOLE else ids[:1], verdict, cut, len(ids))

    try:
        queries = next(search)
        while True:
            queries = search.send([answer(query) for query in queries])
    except StopIteration as stop:
        result: T = stop.value
        return result
