from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pts.config import SamplingConfig
from pts.engines.base import Engine, SampleRequest
from pts.engines.tabular import (
    CLOSING,
    RIGHT,
    STOP,
    WRONG,
    Arc,
    Machine,
    TabularEngine,
    TabularVerifier,
)
from pts.engines.truncation import truncate
from pts.errors import ConfigError, EngineError
from pts.testing.shapes import SHAPES, calm, cancelling, long, reasoning, truncated
from pts.types import Ids, Problem, Verdict

# State 0: token 3 (.6) -> state 1, token 4 (.3) -> state 2, token 5 (.1) -> itself.
FORK = Machine(
    [
        [Arc(3, 0.6, 1), Arc(4, 0.3, 2), Arc(5, 0.1, 0)],
        [Arc(RIGHT, 0.9, CLOSING), Arc(WRONG, 0.1, CLOSING)],
        [Arc(RIGHT, 0.2, CLOSING), Arc(WRONG, 0.8, CLOSING)],
    ]
)


def engine(**sampling: float) -> TabularEngine:
    return TabularEngine([FORK], SamplingConfig(**{"max_new_tokens": 50, **sampling}))


def rollouts(found: TabularEngine, at: Ids, n: int) -> list[Ids]:
    limit = found.sampling.max_new_tokens - len(at)
    ((_, ids),) = found.sample(iter([SampleRequest(0, (0,), at, limit, tuple(range(n)))]))
    return ids


def test_it_is_an_engine() -> None:
    found = engine()
    assert isinstance(found, Engine)
    problem = found.problems()[0]
    assert found.encode(problem) == (0,)
    verdict = TabularVerifier()(problem, found.decode((3, RIGHT, STOP))).verdict
    assert verdict is Verdict.PASS
    assert TabularVerifier()(problem, found.decode((3, WRONG, STOP))).verdict is Verdict.FAIL
    assert found.token_texts((3, RIGHT, STOP)) == ["t3", "right", "<stop>"]


def test_success_by_hand() -> None:
    # x = .6 * .9 + .3 * .2 + .1 x, up to 1e-40 for the limit.
    found = engine()
    assert found.success(()) == pytest.approx(0.6 / 0.9)
    assert found.success((3,)) == pytest.approx(0.9)
    assert found.success((5, 4)) == pytest.approx(0.2)
    assert found.success((3, RIGHT)) == found.success((3, RIGHT, STOP)) == 1.0
    assert found.success((3, WRONG, STOP)) == 0.0
    assert found.curve((5, 3, RIGHT, STOP)) == pytest.approx([0.6 / 0.9, 0.6 / 0.9, 0.9, 1.0, 1.0])


def test_length_limit_counts_the_whole_completion() -> None:
    # Three tokens: 3 or 4, an answer, the stop. Token 5 leaves no room for all of them.
    found = engine(max_new_tokens=3)
    assert found.success(()) == pytest.approx(0.6 * 0.9 + 0.3 * 0.2)
    assert found.success((5,)) == 0.0
    assert found.success((3, 3)[:1]) == pytest.approx(0.9)
    assert found.success((5, 3, RIGHT)) == 0.0


def test_truncation_changes_rows_and_success_alike() -> None:
    found = engine(top_p=0.75)  # keeps 3 and 4 at state 0, and the likelier answers
    row = found.score((0,), (3, RIGHT, STOP))[0]
    assert row.ids.tolist() == [3, 4]
    assert row.probs == pytest.approx([0.6 / 0.9, 0.3 / 0.9])
    assert found.success(()) == pytest.approx(0.6 / 0.9 * 1.0)  # after 4 only WRONG is left


def test_truncate_by_hand() -> None:
    probs = np.array([0.4, 0.3, 0.2, 0.1])
    assert truncate(probs, SamplingConfig(temperature=0)) == pytest.approx([1.0])
    assert truncate(probs, SamplingConfig(top_k=2)) == pytest.approx([4 / 7, 3 / 7])
    assert truncate(probs, SamplingConfig(top_p=0.65)) == pytest.approx([4 / 7, 3 / 7])
    assert truncate(probs, SamplingConfig(min_p=0.45)) == pytest.approx([4 / 9, 3 / 9, 2 / 9])
    squares = np.array([16, 9, 4, 1]) / 30
    assert truncate(probs, SamplingConfig(temperature=0.5)) == pytest.approx(squares)


@pytest.mark.parametrize("at", [(), (5,), (4,)])
def test_rollouts_agree_with_success(at: Ids) -> None:
    found, n = engine(max_new_tokens=6), 4000
    passed = [RIGHT in ids and ids[-1] == STOP for ids in rollouts(found, at, n)]
    p = found.success(at)
    assert abs(np.mean(passed) - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_a_rollout_is_a_function_of_its_prefix_and_seed() -> None:
    found = engine()
    assert rollouts(found, (), 20) == rollouts(found, (), 20)
    request = SampleRequest(0, (0,), (), 50, (19,))
    ((_, alone),) = found.sample(iter([None, request]))
    assert alone[0] == rollouts(found, (), 20)[19]


def test_limit_cuts_a_rollout() -> None:
    assert all(len(ids) == 1 for ids in rollouts(engine(max_new_tokens=1), (), 5))


def test_faults_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Machine([[Arc(3, 0.5, 9), Arc(3, 0.4, CLOSING)], [Arc(STOP, 1.0, 0)]])
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    assert "state 0: probabilities must be positive and sum to 1, found 0.9" in text
    assert "token occurs twice" in text
    assert "leads to no state (there are 2)" in text
    assert "token 0 is reserved" in text
    with pytest.raises(EngineError, match="no token 77 in state 1"):
        engine().success((3, 77))
    with pytest.raises(EngineError, match="index of one of 1 machines, found '4'"):
        engine().encode(Problem("x", "4", "right"))


def test_several_machines_share_an_engine() -> None:
    sure = Machine([[Arc(RIGHT, 1.0, CLOSING)]])
    found = TabularEngine([FORK, sure], SamplingConfig(max_new_tokens=9))
    assert [problem.prompt for problem in found.problems()] == ["0", "1"]
    assert found.success((), (1,)) == 1.0
    assert found.success((), (0,)) < 0.7


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_shapes_keep_their_promises(shape: str) -> None:
    instance = SHAPES[shape](np.random.default_rng(0))
    found = TabularEngine([instance.machine], instance.sampling)
    assert 0.2 <= found.success(()) <= 0.8
    if instance.path is not None:
        probs = [
            r.prob(t) for r, t in zip(found.score((0,), instance.path), instance.path, strict=True)
        ]
        assert min(probs) > 0
        assert found.success(instance.path) in (0.0, 1.0)


def changes(instance: object) -> tuple[np.ndarray, np.ndarray]:
    found = TabularEngine([instance.machine], instance.sampling)
    path = instance.path
    p = np.array(found.curve(path))
    rows = found.score((0,), path)
    return np.diff(p), np.array([float(r.ids[0] == t) for r, t in zip(rows, path, strict=True)])


def test_reasoning_has_few_pivots_among_many_choices() -> None:
    """What its docstring says: 40 completions tell a half from a quarter."""
    sizes = []
    for seed in range(40):
        instance = reasoning(np.random.default_rng(seed))
        found, path = TabularEngine([instance.machine], instance.sampling), instance.path
        assert path is not None
        planned = len(path) - 2  # the answer and the stop token follow
        curve = np.array(found.curve(path))
        q = np.array([r.prob(t) for r, t in zip(found.score((0,), path), path, strict=True)])
        change, x = np.diff(curve)[:planned], 1 - q[:planned]
        assert (planned, int((x >= 0.2).sum())) == (230, 46)
        pivots = np.flatnonzero(np.abs(change) >= 0.2)
        assert len(pivots) <= 1
        sizes += np.abs(change[pivots]).tolist()
        siblings = change / x  # p after the path's token less p after its siblings
        assert np.abs(np.delete(siblings, pivots)).max() <= 0.05 + 1e-6
    assert 10 <= len(sizes) <= 30
    assert 0.24 <= min(sizes) <= max(sizes) <= 0.71
    assert 0.25 <= np.mean(np.array(sizes) < 0.4) <= 0.75


def test_calm_has_no_pivotal_token() -> None:
    for seed in range(5):
        delta, _ = changes(calm(np.random.default_rng(seed)))
        assert np.abs(delta).max() < 0.15


def test_cancelling_has_opposite_changes_close_together() -> None:
    delta, _ = changes(cancelling(np.random.default_rng(0)))
    places = np.flatnonzero(np.abs(delta) >= 0.25)
    near = [(a, b) for a, b in pairwise(places) if b - a <= 10]
    assert any(delta[a] * delta[b] < 0 for a, b in near)


def test_truncated_puts_its_pivots_off_the_likeliest_token() -> None:
    instance = truncated(np.random.default_rng(0))
    delta, greedy = changes(instance)
    assert (greedy[np.abs(delta) >= 0.3] == 0).any()
    free = TabularEngine([instance.machine], SamplingConfig(max_new_tokens=120))
    cut = TabularEngine([instance.machine], instance.sampling)
    assert free.success(()) != pytest.approx(cut.success(()), abs=0.05)


def test_long_has_thousands_of_tokens() -> None:
    instance = long(np.random.default_rng(0))
    assert instance.path is not None
    assert len(instance.path) == 2002
