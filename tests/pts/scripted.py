"""A scripted engine: a Markov chain over three letters and a stop token, every seed honoured."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np

from pts.config import SamplingConfig
from pts.engines.base import SampleRequest
from pts.types import Grade, Ids, Problem, TokenDistribution, Verdict

STOP = 0
LETTERS = {STOP: "", 1: "a", 2: "b", 3: "c"}
NEXT = {
    STOP: [0.0, 0.5, 0.5, 0.0],  # the state before the first token
    1: [0.3, 0.3, 0.3, 0.1],
    2: [0.2, 0.1, 0.6, 0.1],
    3: [0.5, 0.0, 0.0, 0.5],
}


class ScriptedEngine:
    """`width` requests are in hand at once and delivered last first, to shuffle the order."""

    policy_digest = "scripted"
    reproducible = True
    stop_ids = frozenset({STOP})

    def __init__(self, max_new_tokens: int = 6, width: int = 1) -> None:
        self.sampling = SamplingConfig(max_new_tokens=max_new_tokens)
        self.width = width
        self.requests: list[SampleRequest] = []

    def encode(self, problem: Problem) -> Ids:
        return tuple(map(ord, str(problem.prompt)))

    def decode(self, ids: Ids) -> str:
        return "".join(LETTERS[i] for i in ids)

    def token_texts(self, ids: Ids) -> list[str]:
        return [LETTERS.get(i, chr(i)) or "<stop>" for i in ids]

    def score(self, prompt: Ids, completion: Ids) -> list[TokenDistribution]:
        states = (STOP, *completion[:-1])
        order = [np.argsort(NEXT[state])[::-1] for state in states]
        return [
            TokenDistribution(o, np.asarray(NEXT[s])[o]) for s, o in zip(states, order, strict=True)
        ]

    def sample(
        self, requests: Iterator[SampleRequest | None]
    ) -> Iterator[tuple[SampleRequest, list[Ids]]]:
        held: list[SampleRequest] = []
        for request in requests:
            if request is not None:
                self.requests.append(request)
                held.append(request)
            if held and (request is None or len(held) == self.width):
                last = held.pop()
                yield last, [self._rollout(last, seed) for seed in last.seeds]
        yield from ((w, [self._rollout(w, seed) for seed in w.seeds]) for w in held)

    def _rollout(self, request: SampleRequest, seed: int) -> Ids:
        draw, state, ids = random.Random(seed), (STOP, *request.prefix)[-1], []
        while len(ids) < request.max_tokens and (not ids or ids[-1] != STOP):
            state = draw.choices(range(4), NEXT[state])[0]
            ids.append(state)
        return tuple(ids)


def judge_odd(problem: Problem, text: str) -> Grade:
    """PASS when the number of a's is odd."""
    return Grade(Verdict.PASS if text.count("a") % 2 else Verdict.FAIL)


def problems(n: int) -> list[Problem]:
    return [Problem(f"q{k}", "ab"[k % 2] * (k + 1), "odd") for k in range(n)]
