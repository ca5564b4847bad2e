"""A scripted engine: a Markov chain over three letters and a stop token, every seed honoured."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np

from pts.config import SamplingConfig
from pts.engines.base import Wish
from pts.types import Ids, Judgement, Problem, Row, Verdict

STOP = 0
LETTERS = {STOP: "", 1: "a", 2: "b", 3: "c"}
NEXT = {
    STOP: [0.0, 0.5, 0.5, 0.0],  # the state before the first token
    1: [0.3, 0.3, 0.3, 0.1],
    2: [0.2, 0.1, 0.6, 0.1],
    3: [0.5, 0.0, 0.0, 0.5],
}


class ScriptedEngine:
    """`width` wishes are in hand at once and delivered last first, to shuffle the order."""

    policy = "scripted"
    reproducible = True
    stop_ids = frozenset({STOP})

    def __init__(self, max_new_tokens: int = 6, width: int = 1) -> None:
        self.sampling = SamplingConfig(max_new_tokens=max_new_tokens)
        self.width = width
        self.wishes: list[Wish] = []

    def encode(self, problem: Problem) -> Ids:
        return tuple(map(ord, str(problem.prompt)))

    def decode(self, ids: Ids) -> str:
        return "".join(LETTERS[i] for i in ids)

    def pieces(self, ids: Ids) -> list[str]:
        return [LETTERS.get(i, chr(i)) or "<stop>" for i in ids]

    def score(self, prompt: Ids, completion: Ids) -> list[Row]:
        states = (STOP, *completion[:-1])
        order = [np.argsort(NEXT[state])[::-1] for state in states]
        return [Row(o, np.asarray(NEXT[s])[o]) for s, o in zip(states, order, strict=True)]

    def sample(self, wishes: Iterator[Wish | None]) -> Iterator[tuple[Wish, list[Ids]]]:
        held: list[Wish] = []
        for wish in wishes:
            if wish is not None:
                self.wishes.append(wish)
                held.append(wish)
            if held and (wish is None or len(held) == self.width):
                last = held.pop()
                yield last, [self._rollout(last, seed) for seed in last.seeds]
        yield from ((w, [self._rollout(w, seed) for seed in w.seeds]) for w in held)

    def _rollout(self, wish: Wish, seed: int) -> Ids:
        draw, state, ids = random.Random(seed), (STOP, *wish.at)[-1], []
        while len(ids) < wish.limit and (not ids or ids[-1] != STOP):
            state = draw.choices(range(4), NEXT[state])[0]
            ids.append(state)
        return tuple(ids)


def judge_odd(problem: Problem, text: str) -> Judgement:
    """PASS when the number of a's is odd."""
    return Judgement(Verdict.PASS if text.count("a") % 2 else Verdict.FAIL)


def problems(n: int) -> list[Problem]:
    return [Problem(f"q{k}", "ab"[k % 2] * (k + 1), "odd") for k in range(n)]
