"""The cliff arm: every token measured, as published, on a machine whose p(success) is known."""

from __future__ import annotations

import pytest

from align.controls.cliffs import cliff_search, is_cliff
from align.controls.pairs import Passed
from pts.config import SamplingConfig
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
from pts.testing import run_search

GOOD, FAIR, BAD, FILLER = 3, 4, 5, 6

FORK = Machine(
    [
        [Arc(FILLER, 1.0, 1)],
        [Arc(GOOD, 0.3, 2), Arc(FAIR, 0.3, 3), Arc(BAD, 0.4, 4)],
        [Arc(RIGHT, 0.9, CLOSING), Arc(WRONG, 0.1, CLOSING)],
        [Arc(RIGHT, 0.9, CLOSING), Arc(WRONG, 0.1, CLOSING)],
        [Arc(RIGHT, 0.02, CLOSING), Arc(WRONG, 0.98, CLOSING)],
    ]
)
"""p is 0.548 until the second token, then 0.9, 0.9 or 0.02."""


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # 1.645 x sqrt(2 x 0.25 / 64) = 0.1454: a drop from 1/2 must exceed about 0.24.
        ((32, 64), (17, 64), False),
        ((32, 64), (16, 64), True),
        # Without variance the gap itself decides, and it must be exceeded.
        ((10, 10), (9, 10), False),
        ((10, 10), (0, 10), True),
        # A rise is no cliff.
        ((0, 64), (64, 64), False),
    ],
)
def test_threshold(before: tuple[int, int], after: tuple[int, int], expected: bool) -> None:
    assert is_cliff(Passed(*before), Passed(*after)) is expected


def test_each_other_token_that_is_no_cliff_makes_a_pair() -> None:
    engine = TabularEngine([FORK], SamplingConfig(max_new_tokens=8))
    [problem] = engine.problems()
    ends = set()
    for seed in range(12):
        found = run_search(cliff_search(), engine, problem, TabularVerifier(), seed=seed)
        at_fork = [made for made in found.pairs if made.siblings.prefix == (FILLER,)]
        if at_fork:
            # 0.548 to 0.02: the bad branch alone is a cliff there, and both others are none.
            assert {made.siblings.tokens for made in at_fork} == {(GOOD, BAD), (FAIR, BAD)}
            assert all(made.siblings.probs == pytest.approx((0.3, 0.4)) for made in at_fork)
            assert all(made.chosen.n == made.rejected.n == 64 for made in at_fork)
            assert all(made.chosen.share > 0.7 > 0.2 > made.rejected.share for made in at_fork)
        ends.add((bool(at_fork), found.reason))
    # Paths through a good branch that end right have no cliff at all.
    assert {(True, "pair"), (False, "no position")} <= ends


def test_a_wrong_answer_after_a_good_branch_is_a_cliff_of_its_own() -> None:
    sure = Machine([[Arc(RIGHT, 0.7, CLOSING), Arc(WRONG, 0.3, CLOSING)]])
    engine = TabularEngine([sure], SamplingConfig(max_new_tokens=8))
    [problem] = engine.problems()
    results = [
        run_search(cliff_search(), engine, problem, TabularVerifier(), seed=seed)
        for seed in range(12)
    ]
    pairs = [made for result in results for made in result.pairs]
    assert {made.siblings.tokens for made in pairs} == {(RIGHT, WRONG)}
    # The verdict of a finished completion is known: all of its 64 "rollouts" agree.
    assert {(made.chosen, made.rejected) for made in pairs} == {(Passed(64, 64), Passed(0, 64))}
    assert STOP not in {token for made in pairs for token in made.siblings.tokens}
