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

from pts.engines.base import Engine, Wish
from pts.engines.boundaries import completion_steps
from pts.errors import VerifierError
from pts.types import (
    Boundaries,
    Ids,
    Measurement,
    Outcome,
    Problem,
    Sample,
    Score,
    Verdict,
    Wishes,
)
from pts.verifiers.base import Verifier

T = TypeVar("T")


def run_search(
    search: Generator[Wishes, list[Measurement], T],
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
        wishes = next(search)
        while True:
            wishes = search.send([answers.of(wish) for wish in wishes])
    except StopIteration as stop:
        result: T = stop.value
        return result


class _Answers:
    def __init__(self, engine: Engine, problem: Problem, verifier: Verifier, seed: int) -> None:
        self.engine, self.problem, self.verifier, self.seed = engine, problem, verifier, seed
        self.prompt = engine.encode(problem)
        self.drawn: Counter[tuple[Ids, str]] = Counter()

    def of(self, wish: Sample | Score | Boundaries) -> Measurement:
        if isinstance(wish, Sample):
            return self._outcomes(wish)
        if isinstance(wish, Boundaries):
            return completion_steps(self.engine, wish.at)
        return self.engine.score(self.prompt, wish.at)

    def _outcomes(self, wish: Sample) -> list[Outcome]:
        left = self.engine.sampling.max_new_tokens - len(wish.at)
        if left <= 0 or (wish.at and wish.at[-1] in self.engine.stop_ids):
            return [self._judge(wish, ())] * wish.n
        request = Wish(0, self.prompt, wish.at, left, self._seeds(wish))
        ((_, rollouts),) = self.engine.sample(iter([request]))
        return [self._judge(wish, ids) for ids in rollouts]

    def _seeds(self, wish: Sample) -> tuple[int, ...]:
        first = self.drawn[wish.at, wish.purpose]
        self.drawn[wish.at, wish.purpose] += wish.n
        name = f"{self.seed}/{self.problem.id}/{wish.at}/{wish.purpose}"
        digests = (
            hashlib.blake2b(f"{name}/{first + i}".encode(), digest_size=8).digest()
            for i in range(wish.n)
        )
        return tuple(int.from_bytes(digest, "big") for digest in digests)

    def _judge(self, wish: Sample, ids: Ids) -> Outcome:
        whole = wish.at + ids
        cut = not whole or whole[-1] not in self.engine.stop_ids
        verdict = Verdict.FAIL
        if not cut:
            verdict = self.verifier(self.problem, self.engine.decode(whole)).verdict
        if verdict is Verdict.UNSCORED:
            raise VerifierError(f"problem {self.problem.id!r} could not be judged: {whole}")
        return Outcome(ids if wish.purpose == "filter" else ids[:1], verdict, cut, len(ids))
