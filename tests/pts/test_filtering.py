"""The filter that stops early: what it loses and saves, by enumeration of all sequences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from pts.algorithm.filtering import MOST_LOST, equal_verdicts, keeps, lost
from pts.config import SearchConfig


@pytest.mark.parametrize(("n", "p_min", "p_max"), [(8, 0.2, 0.8), (10, 0.05, 0.6), (9, 0.3, 0.95)])
def test_lost_questions_are_those_of_every_sequence(n: int, p_min: float, p_max: float) -> None:
    sequences = np.array(list(itertools.product((0, 1), repeat=n)))
    total = sequences.sum(axis=1)
    kept = keeps(total, n, p_min, p_max)
    for first in (3, 5):
        head = sequences[:, :first].sum(axis=1)
        out = ((head == 0) & (p_min > 0)) | ((head == first) & (p_max < 1))
        for p in (0.1, 0.25, 0.5, 0.75):
            chance = p**total * (1 - p) ** (n - total)
            found = lost(np.array([p]), n, first, p_min, p_max)
            assert found[0] == pytest.approx(chance[kept & out].sum())


@pytest.mark.parametrize("n", [6, 8, 12, 16, 24, 32, 64])
def test_at_most_a_twentieth_of_good_questions_is_lost(n: int) -> None:
    config = SearchConfig(filter_rollouts=n)
    first = equal_verdicts(config)
    inside = np.linspace(0.25, 0.75, 2001)
    assert first < n
    assert lost(inside, n, first, config.p_min, config.p_max).max() <= MOST_LOST
    if first > 4:
        assert lost(inside, n, first - 1, config.p_min, config.p_max).max() > MOST_LOST


def test_six_equal_verdicts_of_sixteen_by_hand() -> None:
    assert equal_verdicts(SearchConfig()) == 6
    # True p = 1/4: six failures, then 4 to 12 passes among ten, or six passes and 0 to 6 more.
    ways = [math.comb(10, k) * 0.25**k * 0.75 ** (10 - k) for k in range(11)]
    by_hand = 0.75**6 * sum(ways[4:]) + 0.25**6 * sum(ways[:7])
    assert lost(np.array([0.25]), 16, 6, 0.2, 0.8)[0] == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("n", "p_min", "p_max", "first"), [(16, 0.0, 1.0, 16), (4, 0.2, 0.8, 4), (8, 0.96, 0.99, 4)]
)
def test_nothing_is_stopped_where_nothing_is_set_aside_or_saved(
    n: int, p_min: float, p_max: float, first: int
) -> None:
    assert equal_verdicts(SearchConfig(filter_rollouts=n, p_min=p_min, p_max=p_max)) == first
