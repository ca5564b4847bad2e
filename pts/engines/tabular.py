"""A small language model whose p(success) is known exactly at every prefix.

It is a finite state machine over tokens: the next token depends on the state, the state on the
tokens so far. A completion answers by `RIGHT` or `WRONG` and then stops. Truncation (temperature,
top-k, top-p, min-p) and the length limit apply as for any engine, and `success` accounts for
both, so a search can be scored against the truth. `pts.testing.shapes` makes machines of
chosen difficulty, `pts.testing.run_search` runs a search on them.

Not covered: text. A token decodes to its own name, and problems hold a machine's index.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pts.config import SamplingConfig
from pts.engines.base import Answer, RequestQueue, SampleRequest
from pts.engines.truncation import Floats, first_k, min_p, temper, top_p, truncate
from pts.errors import ConfigError, EngineError
from pts.types import Grade, Ids, Problem, TokenDistribution, Verdict

STOP, RIGHT, WRONG = 0, 1, 2
"""Reserved tokens; machines name their other tokens from 3 upwards."""

CLOSING = -1
"""The state after an answer: only `STOP` follows."""


class _Names(dict[int, str]):
    def __missing__(self, token: int) -> str:
        self[token] = f"t{token}"
        return self[token]


_NAMES = _Names({STOP: "<stop>", RIGHT: "right", WRONG: "wrong"})


def _token_named(name: str) -> int:
    fixed = {"<stop>": STOP, "right": RIGHT, "wrong": WRONG}
    if name in fixed:
        return fixed[name]
    if name[:1] != "t" or not name[1:].isdigit():
        raise EngineError(
            f"no token is called {name!r}; names are {', '.join(fixed)} and t3, t4, …"
        )
    return int(name[1:])


class Arc(NamedTuple):
    """A next token, its probability before truncation, and the state it leads to."""

    token: int
    prob: float
    to: int


@dataclass(frozen=True)
class Machine:
    """States as lists of arcs; generation starts in state 0.

    Raises ConfigError with every fault: probabilities that do not sum to 1, a token twice in a
    state, an arc to nowhere, an answer that does not lead to `CLOSING` or another token that does.
    """

    states: Sequence[Sequence[Arc]]

    def __post_init__(self) -> None:
        faults = [f for i, arcs in enumerate(self.states) for f in _faults(i, arcs, self.states)]
        if faults:
            raise ConfigError(*faults)

    def arcs(self, state: int) -> Sequence[Arc]:
        """What may come next in a state; after an answer the stop token alone."""
        return [Arc(STOP, 1.0, CLOSING)] if state == CLOSING else self.states[state]


def _faults(index: int, arcs: Sequence[Arc], states: Sequence[Sequence[Arc]]) -> Iterator[str]:
    total = sum(arc.prob for arc in arcs)
    if abs(total - 1.0) > 1e-9 or any(arc.prob <= 0 for arc in arcs):
        yield f"state {index}: probabilities must be positive and sum to 1, found {total}"
    if len({arc.token for arc in arcs}) < len(arcs):
        yield f"state {index}: a token occurs twice; merge its arcs"
    for arc in arcs:
        if arc.token == STOP or arc.token < 0:
            yield f"state {index}: token {arc.token} is reserved; answer by {RIGHT} or {WRONG}"
        elif (arc.token in (RIGHT, WRONG)) != (arc.to == CLOSING):
            yield f"state {index}: answers, and only they, lead to {CLOSING}, found {arc}"
        elif not CLOSING <= arc.to < len(states):
            yield f"state {index}: {arc} leads to no state (there are {len(states)})"


@dataclass(frozen=True)
class _Support:
    """A state under the sampling distribution: its row, and the same for fast drawing."""

    row: TokenDistribution
    edges: list[float]
    tokens: list[int]
    to: list[int]


class TabularEngine:
    """An `Engine` over one or several machines; `problems()` lists one problem a machine.

    A `Machine` is a list of states, a state a list of `Arc(token, prob, to)`; both are in
    `pts.engines.tabular`, machines of chosen difficulty in `pts.testing.shapes`. `success`
    and `curve` tell the exact p(success), under the truncation and the length limit of `sampling`.
    """

    reproducible = True
    stop_ids = frozenset({STOP})

    def __init__(self, machines: Sequence[Machine], sampling: SamplingConfig) -> None:
        self.machines, self.sampling = list(machines), sampling
        content = repr(self.machines).encode()
        self.policy_digest = hashlib.blake2b(content, digest_size=8).hexdigest()
        self._supports: dict[tuple[int, int], _Support] = {}
        self._values: dict[int, list[Floats]] = {}

    def problems(self) -> list[Problem]:
        """One problem a machine; its prompt is the machine's index."""
        return [Problem(f"tabular-{i}", str(i), "right") for i in range(len(self.machines))]

    def encode(self, problem: Problem) -> Ids:
        text = problem.prompt
        if not isinstance(text, str) or not text.isdigit() or int(text) >= len(self.machines):
            raise EngineError(
                f"problem {problem.id!r}: the prompt must be the index of one of "
                f"{len(self.machines)} machines, found {text!r}; take one from problems()"
            )
        return (int(text),)

    def decode(self, ids: Ids) -> str:
        spoken = ids if STOP not in ids else [token for token in ids if token != STOP]
        return " ".join(map(_NAMES.__getitem__, spoken))

    def encode_text(self, text: str) -> Ids:
        """Tokens by their names, blanks between them: the inverse of `decode`."""
        return tuple(map(_token_named, text.split()))

    def token_texts(self, ids: Ids) -> list[str]:
        return [_NAMES[token] for token in ids]

    def score(self, prompt: Ids, completion: Ids) -> list[TokenDistribution]:
        """Rows along a completion; EngineError at a token that its machine does not have."""
        states = self._states(prompt, completion)
        return [self._support(prompt[0], state).row for state in states[:-1]]

    def sample(self, requests: RequestQueue) -> Iterator[Answer]:
        for request in requests:
            if request is not None:
                state = self._states(request.prompt, request.prefix)[-1]
                yield request, [self._rollout(request, state, seed) for seed in request.seeds]

    def success(self, at: Ids, prompt: Ids = (0,)) -> float:
        """The exact p(success) of the completion prefix `at` (or of a finished completion)."""
        return self.curve(at, prompt)[-1]

    def curve(self, completion: Ids, prompt: Ids = (0,)) -> list[float]:
        """The exact p(success) after 0, 1, … all tokens of a completion."""
        machine, limit = prompt[0], self.sampling.max_new_tokens
        if machine not in self._values:
            states = range(len(self.machines[machine].states))
            supports = [self._support(machine, state) for state in states]
            self._values[machine] = _successes(supports, limit)
        values, curve = self._values[machine], list[float]()
        for n, state in enumerate(self._states(prompt, completion)):
            if state == CLOSING:
                stops = limit > n or completion[n - 1] == STOP
                curve.append(float(stops and RIGHT in completion[:n]))
            else:
                left = max(0, min(limit - n, len(values) - 1))
                curve.append(float(values[left][state]))
        return curve

    def _states(self, prompt: Ids, at: Ids) -> list[int]:
        """The state before each token, and the one after the last."""
        states, machine = [0], self.machines[prompt[0]]
        for position, token in enumerate(at):
            state = states[-1]
            to = next((arc.to for arc in machine.arcs(state) if arc.token == token), None)
            if to is None:
                raise EngineError(
                    f"machine {prompt[0]} has no token {token} in state {state} (position "
                    f"{position}); give a completion that the machine can produce"
                )
            states.append(to)
        return states

    def _support(self, machine: int, state: int) -> _Support:
        key = (machine, state)
        if key not in self._supports:
            arcs = self.machines[machine].arcs(state)
            ranked = sorted(arcs, key=lambda arc: (-arc.prob, arc.token))
            steps = (temper, first_k, top_p, min_p)
            probs = truncate(np.array([arc.prob for arc in ranked]), self.sampling, steps)
            ids = np.array([arc.token for arc in ranked[: len(probs)]], dtype=np.int64)
            edges = [*probs.cumsum()[:-1].tolist(), 1.0]  # a uniform is below 1, however rounded
            to = [arc.to for arc in ranked[: len(probs)]]
            row = TokenDistribution(ids, probs)
            self._supports[key] = _Support(row, edges, ids.tolist(), to)
        return self._supports[key]

    def _rollout(self, request: SampleRequest, state: int, seed: int) -> Ids:
        uniform, ids, machine = random.Random(seed).random, list[int](), request.prompt[0]
        known = self._supports
        for _ in range(request.max_tokens):
            support = known.get((machine, state)) or self._support(machine, state)
            drawn = bisect_right(support.edges, uniform())
            ids.append(support.tokens[drawn])
            if ids[-1] == STOP:
                break
            state = support.to[drawn]
        return tuple(ids)


def _successes(supports: Sequence[_Support], most: int) -> list[Floats]:
    """p(success) of each state by the tokens left: none, one, … `most`, or as many as matter.

    Backward recursion: each vector follows from the one before. Their last entry is `CLOSING`.
    """
    size = len(supports)
    source = np.repeat(np.arange(size), [len(support.tokens) for support in supports])
    probs = np.concatenate([support.row.probs for support in supports])
    right = np.concatenate([support.tokens for support in supports]) == RIGHT
    to = np.concatenate([support.to for support in supports])
    values: list[Floats] = [np.zeros(size + 1)] * 2  # an answer and its stop are two tokens
    while len(values) <= most:
        ahead = np.where(right, 1.0, values[-1][to])
        values.append(np.bincount(source, probs * ahead, size + 1).astype(np.float64))
        if np.array_equal(values[-1], values[-2]):
            break
    return values


class TabularVerifier:
    """PASS for a completion that says "right"."""

    def __call__(self, problem: Problem, text: str) -> Grade:
        answer = next((word for word in text.split() if word in ("right", "wrong")), None)
        verdict = Verdict.PASS if answer == problem.reference else Verdict.FAIL
        return Grade(verdict, answer)
