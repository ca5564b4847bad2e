"""Machines of chosen difficulty, for tests and benchmarks of searches.

Each shape takes a numpy Generator and returns an `Instance`: a machine, a completion planted in
it (None for `wandering`, where any rollout will do) and the sampling settings under which it
was made. p(success) at the prompt lies in [0.25, 0.75].

A planted completion is built backwards from its verdict. Beside every token stand siblings that
lead through a few filler tokens to an answer which is right with a chosen probability; they fix
p(success) one token earlier, and so on. Siblings never return to the completion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial, wraps
from typing import Concatenate, NamedTuple, ParamSpec, TypeAlias

import numpy as np

from pts.config import SamplingConfig
from pts.engines.tabular import CLOSING, RIGHT, STOP, WRONG, Arc, Machine
from pts.stats import Floats
from pts.types import Ids

FILLER, MAIN, SIBLING = 3, 4, 5
LEVELS = 100
"""Success probabilities of siblings are multiples of 1 / LEVELS."""

Offer: TypeAlias = tuple[float, float, float]
"""(probability of the path's token, success of its siblings together, spread between them)."""
OfferPlan: TypeAlias = Callable[[int, float], Offer]
"""The offer at a position of the path, given p(success) after its token."""
P = ParamSpec("P")


@dataclass(frozen=True)
class Instance:
    """A machine, a completion planted in it, and the sampling settings it is meant for."""

    machine: Machine
    path: Ids | None
    sampling: SamplingConfig


class Plan(NamedTuple):
    """A completion to be planted: its tokens, whether it passes, and what stands beside it."""

    length: int
    passes: bool
    offer: OfferPlan


def answer(p: float) -> list[Arc]:
    """Arcs of a state that answers right with probability p."""
    arcs = [Arc(RIGHT, p, CLOSING), Arc(WRONG, 1.0 - p, CLOSING)]
    return [arc for arc in arcs if arc.prob > 0]


def plant(rng: np.random.Generator, plan: Plan, decoys: bool = False) -> tuple[Machine, Ids, float]:
    """A machine around the planned completion and its answer; also its p(success).

    `plan.offer(i, p_after)` is asked from the last token to the first. With `decoys` each state
    also has tokens of small probability outside a nucleus of 0.9 that always succeed.
    """
    length, passes, offer = plan
    p = float(passes)
    states: list[list[Arc]] = [*([] for _ in range(length)), answer(p)]

    @cache
    def tail(level: int, fillers: int) -> int:
        """A state `fillers` tokens before an answer that is right with level / LEVELS."""
        arcs = [Arc(FILLER, 1.0, tail(level, fillers - 1))] if fillers else answer(level / LEVELS)
        states.append(arcs)
        return len(states) - 1

    for i in reversed(range(length)):
        keep, success, spread = offer(i, p)
        shares = (1.0 - keep) * rng.dirichlet(np.full(int(rng.integers(1, 4)), 3.0))
        values = np.clip(success + spread * rng.normal(size=len(shares)), 0, 1)
        if len(shares) == 1:
            values[:] = success
        levels = np.rint(values * LEVELS).astype(int)
        p = keep * p + float(shares @ (levels / LEVELS))
        arcs = [Arc(MAIN, keep, i + 1)] + [
            Arc(SIBLING + k, float(share), tail(int(level), int(rng.integers(2, 25))))
            for k, (share, level) in enumerate(zip(shares, levels, strict=True))
        ]
        states[i] = _normed(arcs)
        if decoys:  # all other arcs shrink to 0.93, seven lucky tokens of 0.01 fill up
            shrunk = [arc._replace(prob=0.93 * arc.prob) for arc in states[i]]
            lucky = tail(LEVELS, 3)
            states[i] = _normed(shrunk + [Arc(20 + k, 0.01, lucky) for k in range(7)])
    ids = (MAIN,) * length + (RIGHT if passes else WRONG, STOP)
    return Machine(states), ids, p


def _normed(arcs: list[Arc]) -> list[Arc]:
    total = sum(arc.prob for arc in arcs)
    return [arc._replace(prob=arc.prob / total) for arc in arcs]


def _mostly_sure(rng: np.random.Generator, length: int, uncertain: int) -> Floats:
    """π of the path's tokens: near 1 but for `uncertain` places, never the last two tokens'."""
    keep = 1.0 - 10.0 ** rng.uniform(-4, -1.7, length)
    places = rng.choice(length, size=uncertain, replace=False)
    keep[places] = rng.uniform(0.3, 0.8, uncertain)
    return keep


def _quiet(rng: np.random.Generator, keep: float, p: float) -> Offer:
    """Siblings that change p by about 0.03."""
    d = p + rng.normal() * 0.03 / max(1.0 - keep, 0.05)
    return keep, float(np.clip(d, 0, 1)), 0.1


def _jump(keep: float, p: float, delta: float, spread: float = 0.02) -> Offer:
    """Siblings such that the path's token changes p by `delta`, as far as 0 <= d <= 1 allows."""
    return keep, float(np.clip(p - delta / (1.0 - keep), 0, 1)), spread


def planted(
    plan: Callable[Concatenate[np.random.Generator, P], Plan], top_p: float = 1.0
) -> Callable[Concatenate[np.random.Generator, P], Instance]:
    """The shape that plans and plants until p(success) at the prompt lies in [0.25, 0.75].

    Below top-p 1 there are decoys.
    """

    @wraps(plan)
    def shape(rng: np.random.Generator, /, *args: P.args, **kwargs: P.kwargs) -> Instance:
        while True:
            made = plan(rng, *args, **kwargs)
            machine, ids, p = plant(rng, made, decoys=top_p < 1)
            if 0.25 <= p <= 0.75:
                sampling = SamplingConfig(top_p=top_p, max_new_tokens=made.length + 40)
                return Instance(machine, ids, sampling)

    return shape


def _planned(
    rng: np.random.Generator, keep: Floats, jumps: Mapping[int, float], low: float = 0.3
) -> Plan:
    """Quiet siblings, except that the token at i changes p by jumps[i] (towards 1/2 if it must)."""

    def offer(i: int, p: float) -> Offer:
        if i not in jumps:
            return _quiet(rng, float(keep[i]), p)
        delta = jumps[i] if 0.0 <= p - jumps[i] <= 1.0 else -jumps[i]
        return _jump(min(float(keep[i]), low), p, delta)

    return Plan(len(keep), _either(rng), offer)


@planted
def sparse(rng: np.random.Generator, length: int = 150) -> Plan:
    """A fifth of the tokens uncertain, one to three of them pivotal by 0.3 to 0.6."""
    keep = _mostly_sure(rng, length, length // 5)
    places = rng.choice(np.flatnonzero(keep < 0.9), size=int(rng.integers(1, 4)), replace=False)
    return _planned(rng, keep, {int(i): _signed(rng, 0.3, 0.6) for i in places})


@planted
def cancelling(rng: np.random.Generator, length: int = 100) -> Plan:
    """Jumps up followed by jumps down of the same size, three to ten tokens later."""
    keep, jumps = _mostly_sure(rng, length, length // 6), dict[int, float]()
    for start in rng.choice(length // 20 - 1, size=2, replace=False) * 20:
        size = _signed(rng, 0.3, 0.45)
        jumps[int(start)] = size
        jumps[int(start + rng.integers(3, 11))] = -size
    jumps[length - 3] = _signed(rng, 0.4, 0.6)
    return _planned(rng, keep, jumps)


@planted
def long(rng: np.random.Generator, length: int = 2000) -> Plan:
    """Thousands of nearly certain tokens, a dozen uncertain ones, up to three pivotal."""
    keep = 1.0 - 10.0 ** rng.uniform(-5, -2.5, length)
    places = rng.choice(length, size=12, replace=False)
    keep[places] = rng.uniform(0.3, 0.8, 12)
    return _planned(rng, keep, {int(i): _signed(rng, 0.3, 0.6) for i in places[:3]})


@planted
def crowd(rng: np.random.Generator, length: int = 100) -> Plan:
    """Many tokens that change p by 0.1 to 0.3, on both sides of the usual threshold of 0.2."""
    keep = _mostly_sure(rng, length, length // 6)
    places = rng.choice(length - 3, size=8, replace=False)
    jumps = {int(i): _signed(rng, 0.1, 0.3) for i in places} | {length - 3: 0.45}
    return _planned(rng, keep, jumps, low=0.4)


@planted
def rare(rng: np.random.Generator, length: int = 120) -> Plan:
    """Decisive tokens that the policy hardly ever takes (π of 0.02 to 0.15)."""
    keep = _mostly_sure(rng, length, length // 6)
    places = rng.choice(length, size=2, replace=False)
    jumps = {int(i): _signed(rng, 0.35, 0.6) for i in places}
    return _planned(rng, keep, jumps, low=float(rng.uniform(0.02, 0.15)))


@planted
def calm(rng: np.random.Generator, length: int = 120) -> Plan:
    """No pivotal token: p drifts to the verdict in steps below 0.12."""
    keep = _mostly_sure(rng, length, length // 3)

    def offer(i: int, p: float) -> Offer:
        if keep[i] > 0.9:
            return _quiet(rng, float(keep[i]), p)
        towards = 0.5 - p
        delta = float(np.clip(-towards, -0.08, 0.08)) if abs(towards) > 0.05 else 0.0
        return _jump(float(keep[i]), p, delta, spread=0.03)

    return Plan(length, _either(rng), offer)


@partial(planted, top_p=0.9)
def truncated(rng: np.random.Generator, length: int = 80) -> Plan:
    """Top-p 0.9 cuts off tokens that would always succeed; pivots lie off the likeliest token."""
    keep = np.where(rng.random(length) < 0.2, rng.uniform(0.2, 0.45, length), 0.97)
    places = rng.choice(length, size=2, replace=False)
    return _planned(rng, keep, {int(i): _signed(rng, 0.3, 0.6) for i in places}, low=0.35)


def wandering(rng: np.random.Generator, length: int = 60, lanes: int = 21) -> Instance:
    """No planted completion: p(success) wanders between lanes, and every rollout has its pivots.

    State (i, lane) keeps its lane by its main token; siblings change it. The last state of lane l
    answers right with probability l / (lanes - 1).
    """
    states: list[list[Arc]] = []
    for i in range(length):
        calm_place = bool(rng.random() < 0.8)
        for lane in range(lanes):
            keep = 1 - 10.0 ** rng.uniform(-4, -1.7) if calm_place else rng.uniform(0.3, 0.8)
            moves = rng.normal(0, 2 if rng.random() < 0.8 else 8, 3)
            to = np.clip(np.rint(lane + moves), 0, lanes - 1).astype(int)
            shares = (1 - keep) * rng.dirichlet([2.0, 2.0, 2.0])
            start = (i + 1) * lanes
            arcs = [Arc(MAIN, float(keep), start + lane)]
            arcs += [Arc(SIBLING + k, float(shares[k]), start + int(to[k])) for k in range(3)]
            states.append(_normed(arcs))
    states += [answer(lane / (lanes - 1)) for lane in range(lanes)]
    states[0] = _normed([Arc(MAIN + k, 1.0, lanes + lanes // 2 - 1 + k) for k in range(3)])
    return Instance(Machine(states), None, SamplingConfig(max_new_tokens=length + 10))


@planted
def leaning(rng: np.random.Generator, length: int = 60) -> Plan:
    """Behind a pivotal token four to eight that p_gap hardly rules out, all leaning to one side.

    Each is left with probability 0.15 to 0.24, and whatever leaves there ends against the verdict:
    together they move p far, and the pivotal token stands out only if none of them is overlooked.
    """
    keep, passes = 1.0 - 10.0 ** rng.uniform(-4, -1.7, length), _either(rng)
    places = rng.choice(np.arange(5, length), size=int(rng.integers(4, 9)), replace=False)
    keep[places] = rng.uniform(0.76, 0.85, len(places))
    pivot = int(rng.integers(5))
    keep[pivot] = rng.uniform(0.5, 0.65)
    ends = {pivot: float(passes)} | dict.fromkeys(places, 1.0 - passes)

    def offer(i: int, p: float) -> Offer:
        quiet = _quiet(rng, float(keep[i]), p)
        return (quiet[0], ends[i], 0.0) if i in ends else quiet

    return Plan(length, passes, offer)


@planted
def reasoning(rng: np.random.Generator, length: int = 230) -> Plan:
    """What answers of an 8B model look like: many choices, hardly any of which matters.

    A fifth of the tokens has π of 0.3 to 0.8. Half of the completions hold one pivotal token, by
    0.25 to 0.4 in half of them and by 0.4 to 0.7 in the others. All other siblings succeed within
    0.05 of the path, and lean to one side by what takes p from the verdict to the prompt.
    """
    keep, passes = 1.0 - 10.0 ** rng.uniform(-4, -1.7, length), _either(rng)
    places = rng.choice(length, size=length // 5, replace=False)
    keep[places] = rng.uniform(0.3, 0.8, len(places))
    pivot = int(rng.choice(places)) if _either(rng) else -1
    size = float(rng.uniform(0.25, 0.4) if _either(rng) else rng.uniform(0.4, 0.7))
    rise, choices = float(passes) - rng.uniform(0.3, 0.7), float((1.0 - keep).sum())
    size *= float(rng.choice([-1, 1])) * (pivot >= 0)
    if abs(rise - size) > 0.03 * choices:  # too much to make good by small steps
        size = -size
    drift = (rise - size) / choices

    def offer(i: int, p: float) -> Offer:
        if i == pivot:  # π of 0.15 to 0.7, less where p leaves it no other way
            room = max(p if size > 0 else 1.0 - p, abs(size))
            least = min(max(abs(size) / room, 0.3), 0.98)
            return _jump(1.0 - rng.uniform(least, max(least, 0.85)), p, size, spread=0.0)
        lean = np.clip(drift + rng.uniform(-0.02, 0.02), -0.045, 0.045)
        return float(keep[i]), float(np.clip(p - lean, 0, 1)), 0.0

    return Plan(length, passes, offer)


def _signed(rng: np.random.Generator, least: float, most: float) -> float:
    return float(rng.choice([-1, 1]) * rng.uniform(least, most))


def _either(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)


SHAPES: Mapping[str, Callable[[np.random.Generator], Instance]] = {
    shape.__name__: shape
    for shape in (
        *(sparse, cancelling, long, crowd, rare),
        *(calm, truncated, wandering, leaning, reasoning),
    )
}
