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
import math
import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

import numpy as np

from pts.config import SamplingConfig
from pts.engines.base import Answer, RequestQueue, SampleRequest
from pts.engines.truncation import first_k, min_p, temper, top_p, truncate
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
    probs: list[float]
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
        self._values: dict[tuple[int, int, int], float] = {}
        self._longest = [_longest(machine.states) for machine in self.machines]

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
        return self._after(at, len(at), self._states(prompt, at)[-1], prompt[0])

    def curve(self, completion: Ids, prompt: Ids = (0,)) -> list[float]:
        """The exact p(success) after 0, 1, … all tokens of a completion."""
        states = self._states(prompt, completion)
        return [self._after(completion, n, state, prompt[0]) for n, state in enumerate(states)]

    def _after(self, ids: Ids, n: int, state: int, machine: int) -> float:
        left = self.sampling.max_new_tokens - n
        if state != CLOSING:
            return self._value(machine, state, left)
        stopped = ids[n - 1] == STOP
        said = ids[n - 2] if stopped else ids[n - 1]
        return float(said == RIGHT and (stopped or left > 0))

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
            self._supports[key] = _Support(row, edges, ids.tolist(), probs.tolist(), to)
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

    def _key(self, machine: int, state: int, left: int) -> tuple[int, int, int]:
        """Where no completion from a state is longer, more room changes nothing."""
        return machine, state, int(min(left, self._longest[machine][state]))

    def _value(self, machine: int, state: int, left: int) -> float:
        """Backward recursion over (state, tokens left), with a stack instead of recursive calls."""
        values, stack = self._values, [self._key(machine, state, left)]
        while stack:
            key = stack[-1]
            if key in values:
                stack.pop()
                continue
            _, at, room = key
            if room <= 0:
                values[key] = 0.0
                continue
            support = self._support(machine, at)
            arcs = list(zip(support.tokens, support.probs, support.to, strict=True))
            ahead = [self._key(machine, to, room - 1) for _, _, to in arcs if to != CLOSING]
            missing = [k for k in ahead if k not in values]
            stack += missing
            if not missing:
                values[key] = sum(
                    prob * (token == RIGHT and room > 1)
                    if to == CLOSING
                    else prob * values[self._key(machine, to, room - 1)]
                    for token, prob, to in arcs
                )
        return values[self._key(machine, state, left)]


def _longest(states: Sequence[Sequence[Arc]]) -> dict[int, float]:
    """Tokens of the longest completion from each state, infinite where a loop can be reached."""
    longest = dict.fromkeys(range(len(states)), math.inf) | {CLOSING: 1.0}
    order = TopologicalSorter({i: {arc.to for arc in arcs} for i, arcs in enumerate(states)})
    with suppress(CycleError):  # the sorter still gives what no loop precedes
        order.prepare()
    while order.is_active():
        ready = order.get_ready()
        for i in set(ready) - {CLOSING}:
            longest[i] = 1 + max(longest[arc.to] for arc in states[i])
        order.done(*ready)
    return longest


class TabularVerifier:
    """PASS for a completion that says "right"."""

    def __call__(self, problem: Problem, text: str) -> Grade:
        answer = next((word for word in text.split() if word in ("right", "wrong")), None)
        verdict = Verdict.PASS if answer == problem.reference else Verdict.FAIL
        return Grade(verdict, answer)
