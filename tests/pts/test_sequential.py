"""The test of a pair: exact, valid under every null hypothesis, and worth what it costs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pts.algorithm.sequential import (
    CONFIRMED,
    EARLY_LEVEL,
    FUTILE_STOP,
    GO_ON,
    SequentialTest,
    _walk,
    gap_interval,
    look_sizes,
    operating_characteristics,
    retested,
    sequential_test,
)
from pts.errors import DataError
from pts.stats import constrained_mle

MARGIN = 0.15
NULLS = np.linspace(0, 1 - MARGIN, 61)
"""Of p(rejected), at places that the test's own grid does not hold."""


def test_looks_are_close_while_pairs_are_cheap() -> None:
    assert look_sizes(128) == (8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128)
    assert look_sizes(24) == (8, 12, 16, 20, 24)
    assert look_sizes(4) == (4,)
    assert look_sizes(9) == (8, 9)


def ends_by_hand(test: SequentialTest, p: float, q: float) -> dict[tuple[int, int, int], float]:
    """P of every end, from all sequences of rollouts: [(passed, passed) a look] one by one."""
    reached, ends, before = {(0, 0): 1.0}, dict[tuple[int, int, int], float](), 0
    for look in test.looks:
        for _ in range(look.n - before):
            grown: dict[tuple[int, int], float] = {}
            for (a, b), mass in reached.items():
                for i, j in itertools.product((0, 1), (0, 1)):
                    chance = (p if i else 1 - p) * (q if j else 1 - q)
                    grown[a + i, b + j] = grown.get((a + i, b + j), 0.0) + mass * chance
            reached = grown
        for a, b in list(reached):
            if look.decision[a, b] != GO_ON:
                ends[look.n, a, b] = reached.pop((a, b))
        before = look.n
    assert not reached
    return ends


def test_probabilities_are_those_of_every_sequence_of_rollouts() -> None:
    test = sequential_test(16, MARGIN)
    for p, q in ((0.7, 0.2), (0.5, 0.35)):
        ends = ends_by_hand(test, p, q)
        assert sum(ends.values()) == pytest.approx(1.0)
        power = sum(mass for end, mass in ends.items() if test.pvalue(*end) <= 0.05)
        rollouts = sum(end[0] * mass for end, mass in ends.items())
        found = operating_characteristics(test, [p], [q], 0.05)
        assert [float(x[0]) for x in found] == pytest.approx([power, rollouts])


def test_the_pvalue_is_the_chance_of_the_end_or_one_more_extreme() -> None:
    """8 passed against 0 at the first look: no end is more extreme, p = max of (p (1 - q))^8."""
    worst = max(((q + MARGIN) * (1 - q)) ** 8 for q in np.linspace(0, 0.85, 5001))
    assert sequential_test(128, MARGIN).pvalue(8, 8, 0) == pytest.approx(worst, rel=0.006)
    assert sequential_test(128, MARGIN).pvalue(8, 8, 0) >= worst


@pytest.mark.parametrize(("most", "count"), [(16, 40), (48, 8), (128, 2)])
def test_the_pvalue_is_valid_at_the_edge_of_the_null(most: int, count: int) -> None:
    """P(p-value <= level) <= level, exactly, at some of the levels that a p-value can take."""
    test = sequential_test(most, MARGIN)
    levels = np.unique(np.concatenate([look.pvalues.ravel() for look in test.looks]))
    levels = levels[(levels > 1e-5) & (levels < 0.06)]
    for level in levels[:: len(levels) // count]:
        found, _ = operating_characteristics(test, NULLS + MARGIN, NULLS, float(level))
        assert found.max() <= level, level


def test_the_pvalue_is_valid_inside_the_null_too() -> None:
    test = sequential_test(48, MARGIN)
    gaps, places = np.meshgrid(np.linspace(-0.5, 0.14, 5), np.linspace(0, 1, 11))
    low = places * (1 - np.abs(gaps)) + np.maximum(-gaps, 0)
    for level in (0.001, 0.01, 0.05):
        found, _ = operating_characteristics(test, (low + gaps).ravel(), low.ravel(), level)
        assert found.max() <= level


@pytest.mark.parametrize("margin", [0.0, 0.15, 0.55])
def test_more_passes_of_the_chosen_side_never_count_against_it(margin: float) -> None:
    """The statistic is monotone: what the proof that the edge of the null is worst rests on."""
    for look in sequential_test(64, margin).looks:
        assert np.all(np.diff(look.statistic, axis=0) >= 0)
        assert np.all(np.diff(look.statistic, axis=1) <= 0)
        assert np.all(np.diff(look.decision.astype(int), axis=0) >= 0)
        assert np.all(np.diff(look.decision.astype(int), axis=1) <= 0)


def test_a_confirmation_before_the_last_look_has_a_small_pvalue() -> None:
    test = sequential_test(128, MARGIN)
    for look in test.looks[:-1]:
        confirmed = look.pvalues[look.decision == CONFIRMED]
        assert confirmed.max() <= EARLY_LEVEL * (look.n / 128) ** 0.5
        assert np.all(look.pvalues[look.decision == FUTILE_STOP] == 1.0)
    assert not np.any(test.looks[-1].decision == GO_ON)


def test_power_and_cost_of_the_default() -> None:
    """What the default was chosen for, exactly. With 24 rollouts a side, fixed: .25 and .66."""
    power, rollouts = operating_characteristics(
        sequential_test(128, MARGIN), [0.6, 0.9, 0.85, 0.5], [0.3, 0.5, 0.0, 0.5], 0.05
    )
    assert power[0] >= 0.6
    assert power[1] >= 0.9
    assert rollouts[2] <= 15, "a fatal fork"
    assert rollouts[3] <= 24, "no gap at all"


def test_another_margin_is_tested_with_the_same_looks() -> None:
    test = sequential_test(48, MARGIN)
    wider = retested(test, 0.4)
    for look, other in zip(test.looks, wider.looks, strict=True):
        assert look.decision is other.decision
        assert np.all(other.pvalues >= look.pvalues - 1e-12)
    places = np.linspace(0, 0.6, 41)
    found, _ = operating_characteristics(wider, places + 0.4, places, 0.05)
    assert found.max() <= 0.05
    same = retested(test, MARGIN)
    assert np.array_equal(same.looks[3].pvalues, test.looks[3].pvalues)


def ranked(test: SequentialTest) -> list[list[tuple[int, int, int]]]:
    """The ends from the highest rank to the lowest, those of equal rank together."""
    ranks: dict[tuple[int, float], list[tuple[int, int, int]]] = {}
    for place, look in enumerate(test.looks):
        for a, b in np.ndindex(look.decision.shape):
            decision = look.decision[a, b]
            if decision != GO_ON:
                stage = place if decision == CONFIRMED else 1000 - place
                ranks.setdefault((stage, -look.statistic[a, b]), []).append((look.n, a, b))
    return [ranks[key] for key in sorted(ranks)]


@pytest.mark.parametrize("rank", [0, 3, 12, 40, -8])
def test_an_interval_ends_where_the_end_becomes_rare(rank: int) -> None:
    """By the order written out: half of 0.1 of the mass above the lower bound, and so on."""
    test = sequential_test(12, MARGIN)
    order = ranked(test)
    here = order[rank]
    above = [end for ends in order[: order.index(here)] for end in ends]
    n, a, b = here[0]
    found = gap_interval(test, n, a, b, 0.9)
    assert (found.n, found.method) == (2 * n, "group-sequential")
    for gap, share, wanted in ((found.low, 1, 0.05), (found.mean, 0.5, 0.5), (found.high, 0, 0.95)):
        if -0.999 < gap < 0.999:
            p, q = constrained_mle(a, n, b, n, gap)
            ends = ends_by_hand(test, float(p), float(q))
            mass = sum(ends.get(end, 0.0) for end in above)
            mass += share * sum(ends.get(end, 0.0) for end in here)
            assert mass == pytest.approx(wanted, abs=0.002)


def test_the_interval_agrees_with_the_pvalue() -> None:
    """A one-sided level below the p-value leaves the margin inside, one above leaves it out."""
    test = sequential_test(128, MARGIN)
    for n, a, b in ((8, 8, 0), (16, 12, 0), (128, 80, 45), (128, 77, 39)):
        pvalue = test.pvalue(n, a, b)
        assert gap_interval(test, n, a, b, 1 - 2 * pvalue).low >= MARGIN - 0.001
        assert gap_interval(test, n, a, b, 1 - pvalue / 4).low < MARGIN


@pytest.mark.parametrize(("p", "q"), [(0.85, 0.0), (0.6, 0.3), (0.9, 0.5), (0.5, 0.35)])
def test_the_interval_covers_and_the_estimate_is_its_middle(p: float, q: float) -> None:
    """Exactly, over all ends of a test of 24: nominal 0.9, and medians on both sides of the truth.

    The gap alone does not say both p, hence a point of tolerance.
    """
    test, gap = sequential_test(24, MARGIN), p - q
    covered = below = above = 0.0
    before = [(look, reached) for look, reached in _walk(test, np.array([p]), np.array([q]))]
    for look, reached in before:
        for a, b in np.argwhere((look.decision != GO_ON) & (reached[0] > 1e-6)):
            mass, found = reached[0, a, b], gap_interval(test, look.n, int(a), int(b), 0.9)
            covered += mass * (found.low - 1e-4 <= gap <= found.high + 1e-4)
            below += mass * (found.mean <= gap)
            above += mass * (found.mean >= gap)
    assert covered >= 0.89
    assert below >= 0.4
    assert above >= 0.4


def test_counts_that_end_nothing_are_refused() -> None:
    test = sequential_test(16, MARGIN)
    with pytest.raises(DataError, match=r"5 and 2 passed of 10 rollouts .* .looks at 8, 12, 16"):
        test.pvalue(10, 5, 2)
    with pytest.raises(DataError, match="do not end this test"):
        test.pvalue(8, 5, 2)
