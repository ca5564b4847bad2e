"""The formulae of docs/estimator.md, each against a language model whose p(success) is known."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from pts.algorithm.paths import exit_weights, split_blocks
from pts.algorithm.values import path_values
from pts.config import SamplingConfig
from pts.engines.tabular import CLOSING, RIGHT, STOP, WRONG, Arc, Machine, TabularEngine
from pts.engines.truncation import truncate
from pts.testing.shapes import SHAPES, Instance
from pts.types import Ids

PLANTED = sorted(set(SHAPES) - {"wandering", "long"})


class Truth:
    """Exact q, p and d along a planted completion; d from its definition, sibling by sibling."""

    def __init__(self, instance: Instance) -> None:
        assert instance.path is not None
        self.ids: Ids = instance.path
        self.engine = TabularEngine([instance.machine], instance.sampling)
        rows = self.engine.score((0,), self.ids)
        self.q = np.array([row.prob(t) for row, t in zip(rows, self.ids, strict=True)])
        self.p = np.array(self.engine.curve(self.ids))
        self.d = np.array([self._without(i) for i in range(len(self.ids))])

    def _without(self, i: int) -> float:
        row = self.engine.score((0,), self.ids)[i]
        others = [
            (float(prob), self.engine.success((*self.ids[:i], int(token))))
            for token, prob in zip(row.ids, row.probs, strict=True)
            if token != self.ids[i]
        ]
        mass = sum(prob for prob, _ in others)
        return sum(prob * p for prob, p in others) / mass if mass else 0.0

    def block(self, a: int, b: int) -> tuple[float, float]:
        """s and D of the tokens a <= i < b: exits weighted by where the block is left."""
        stay = float(np.prod(self.q[a:b]))
        reach = np.concatenate([[1.0], np.cumprod(self.q[a : b - 1])])
        weights = reach * (1 - self.q[a:b])
        assert weights.sum() == pytest.approx(1 - stay)
        if stay == 1.0:
            return stay, 0.0
        assert exit_weights(1 - self.q[a:b]) == pytest.approx(weights / (1 - stay), abs=1e-9)
        return stay, float(weights @ self.d[a:b]) / (1 - stay)


def truth(shape: str, seed: int = 0) -> Truth:
    return Truth(SHAPES[shape](np.random.default_rng(seed)))


@pytest.mark.parametrize("shape", PLANTED)
def test_one_token(shape: str) -> None:
    t = truth(shape)
    assert t.q * t.p[1:] + (1 - t.q) * t.d == pytest.approx(t.p[:-1], abs=1e-9)
    delta = np.diff(t.p)
    assert delta == pytest.approx((1 - t.q) * (t.p[1:] - t.d), abs=1e-9)
    assert (np.abs(delta) <= 1 - t.q + 1e-9).all()


@pytest.mark.parametrize("shape", PLANTED)
def test_many_tokens(shape: str) -> None:
    t = truth(shape)
    edges = sorted({0, *np.random.default_rng(1).integers(1, len(t.ids), 9).tolist(), len(t.ids)})
    for a, b in pairwise(edges):
        s, d = t.block(a, b)
        assert t.p[a] == pytest.approx(s * t.p[b] + (1 - s) * d, abs=1e-9)
        assert abs(t.p[b] - t.p[a]) <= 1 - s + 1e-9


@pytest.mark.parametrize("shape", PLANTED)
def test_the_unrolled_chain(shape: str) -> None:
    t = truth(shape)
    blocks = split_blocks(1 - t.q, 0.2)
    reached, total = 1.0, 0.0
    for block in blocks:
        s, d = t.block(block.start, block.end)
        total += reached * (1 - s) * d
        reached *= s
    assert total + reached * t.p[-1] == pytest.approx(t.p[0], abs=1e-9)


@pytest.mark.parametrize("shape", PLANTED)
def test_chain_recovers_p_from_very_many_branches(shape: str) -> None:
    t, n = truth(shape), 10**8
    blocks = split_blocks(1 - t.q, 0.2)
    passed = [round(n * t.block(block.start, block.end)[1]) for block in blocks]
    found = path_values([block.exit_prob for block in blocks], passed, [n] * len(blocks), t.p[-1])
    at = [0, *(block.end for block in blocks)]
    assert [point.mean for point in found.points] == pytest.approx(t.p[at], abs=1e-6)


def test_a_path_that_never_leaves_has_the_verdict_as_its_p() -> None:
    t = truth("sparse")
    last = len(t.ids) - 1  # the stop token is certain
    assert t.q[last] == 1.0
    assert t.p[last] == t.p[last + 1]


def test_variance_of_delta_and_of_plain_rollouts() -> None:
    """Var Δ̂ = (1 - q)² [Var p̂_i + d (1 - d) / n]; two plain samples have far more."""
    rng = np.random.default_rng(0)
    q, after, d, n = 0.6, 0.7, 0.2, 40
    q2, d2 = 0.5, 0.4  # one more block behind it, then the verdict 1: after = .5 + .5 * .4
    assert after == q2 * 1.0 + (1 - q2) * d2
    first, second = rng.binomial(n, d, 20_000) / n, rng.binomial(n, d2, 20_000) / n
    p_after = q2 + (1 - q2) * second
    delta = (1 - q) * (p_after - first)
    formula = (1 - q) ** 2 * ((1 - q2) ** 2 * d2 * (1 - d2) / n + d * (1 - d) / n)
    assert delta.mean() == pytest.approx((1 - q) * (after - d), abs=4 * delta.std() / 141)
    assert delta.var() == pytest.approx(formula, rel=0.05)
    before = q * after + (1 - q) * d
    plain = (after * (1 - after) + before * (1 - before)) / n
    assert plain / formula > 10


def test_a_limit_per_rollout_breaks_the_identity() -> None:
    """docs/estimator.md gives these numbers: .75, .25 and .5."""
    steps = [[Arc(3, 0.5, 0), Arc(RIGHT, 0.5, CLOSING)]]  # right after a geometric number of 3s

    def p(at: Ids, limit: int) -> float:
        return TabularEngine([Machine(steps)], SamplingConfig(max_new_tokens=limit)).success(at)

    total = p((), 3)  # RIGHT STOP or 3 RIGHT STOP
    assert total == pytest.approx(0.75)
    assert p((3,), 3) == pytest.approx(0.5)
    assert total == pytest.approx(0.5 * p((3,), 3) + 0.5 * 1.0)
    per_rollout = p((3,), 4)  # three tokens of its own
    assert per_rollout == pytest.approx(0.75)
    assert total - (0.5 * per_rollout + 0.5 * 1.0) == pytest.approx(-0.125)


def test_truncation_comes_before_the_removal() -> None:
    """docs/estimator.md gives these numbers: d = 0.80, and 0.53 the other way round."""
    right = {4: 0.8, 5: 0.05}
    start = [Arc(3, 0.7, 1), Arc(4, 0.2, 2), Arc(5, 0.1, 3)]
    answers = [
        [Arc(RIGHT, p, CLOSING), Arc(WRONG, 1 - p, CLOSING)] for p in (0.5, right[4], right[5])
    ]
    sampling = SamplingConfig(top_p=0.85, max_new_tokens=9)
    engine = TabularEngine([Machine([start, *answers])], sampling)
    (row,) = engine.score((0,), (3,))
    q, d = row.prob(3), engine.success((4,))
    assert row.ids.tolist() == [3, 4]  # 5 lies outside the nucleus
    assert d == pytest.approx(0.8)
    assert q * engine.success((3,)) + (1 - q) * d == pytest.approx(engine.success(()))
    banned = truncate(np.array([0.2, 0.1]) / 0.3, sampling)  # 3 removed first: 5 gets in
    assert len(banned) == 2
    wrong = float(banned @ [engine.success((4,)), engine.success((5,))])
    assert wrong == pytest.approx(0.8 * 2 / 3)
    assert q * engine.success((3,)) + (1 - q) * wrong != pytest.approx(engine.success(()), abs=0.05)


def test_worth_is_the_gain_of_moving_the_mass() -> None:
    def machine(rejected: float) -> TabularEngine:
        start = [Arc(3, 0.5, 1), Arc(4, 0.5 - rejected, 2), Arc(5, rejected, 3)]
        start = [arc for arc in start if arc.prob > 0]
        answers = [[Arc(RIGHT, p, CLOSING), Arc(WRONG, 1 - p, CLOSING)] for p in (0.6, 0.9, 0.1)]
        return TabularEngine([Machine([start, *answers])], SamplingConfig(max_new_tokens=5))

    moved = machine(0.0).success(()) - machine(0.3).success(())
    assert moved == pytest.approx(0.3 * (0.9 - 0.1))


def test_equal_ends_hide_opposite_changes_from_any_number_of_rollouts() -> None:
    """A segment of two opposite changes: p .5, .9, .5 at its start, middle and end."""
    half = [Arc(RIGHT, 0.5, CLOSING), Arc(WRONG, 0.5, CLOSING)]
    low = [Arc(RIGHT, 0.1, CLOSING), Arc(WRONG, 0.9, CLOSING)]
    sure = [Arc(RIGHT, 1.0, CLOSING)]
    start = [Arc(3, 0.5, 1), Arc(4, 0.5, 3)]
    middle = [Arc(3, 0.2, 2), Arc(4, 0.8, 4)]
    engine = TabularEngine(
        [Machine([start, middle, half, low, sure])], SamplingConfig(max_new_tokens=9)
    )
    assert engine.curve((3, 3)) == pytest.approx([0.5, 0.9, 0.5])
    assert math.isclose(engine.success((3, 3, RIGHT, STOP)), 1.0)
