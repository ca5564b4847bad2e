"""Arms over seeds: paired by item in each seed, and by seed. Expected values are closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from align.evaluation.seeds import compare_arms, mean_over_seeds


def arms(*means: float, n: int = 100) -> list[np.ndarray]:
    """An arm: in each seed the first items are right."""
    return [np.array([1.0] * round(n * m) + [0.0] * (n - round(n * m))) for m in means]


def test_seeds_are_the_unit_where_each_has_problems_of_its_own() -> None:
    got = compare_arms(arms(0.5, 0.5), arms(0.5, 0.9))
    # Differences 0 and 0.4: t = 0.2 / 0.2 with one degree of freedom, p = 1 - 2 atan(1) / pi.
    assert got.over_seeds is not None
    assert got.over_seeds.df == 1
    assert got.over_seeds.pvalue == pytest.approx(1 - 2 * math.atan(1) / math.pi)
    assert got.difference.mean == pytest.approx(0.2)
    # Seed 1: 40 better, none worse, exact p = 2 / 2^40.
    assert [one.pvalue for one in got.per_seed] == [1.0, 2 / 2**40]


def test_items_are_paired_inside_a_seed() -> None:
    before, after = arms(0.04, n=50)[0], arms(0.08, n=50)[0]
    got = compare_arms([before], [after])
    assert got.per_seed[0].difference.mean == pytest.approx(0.04)
    assert (got.per_seed[0].better, got.per_seed[0].worse) == (2, 0)
    assert got.over_seeds is None
    assert got.difference == got.per_seed[0].difference


def test_three_seeds_never_have_more_than_two_degrees_of_freedom() -> None:
    # The seeds agree on every item: only items vary, and still three seeds are three.
    before, after = arms(0.5, 0.5, 0.5, n=1000), arms(0.6, 0.6, 0.6, n=1000)
    for shared in (False, True):
        found = compare_arms(before, after, shared=shared).over_seeds
        assert found is not None
        assert found.df is None or found.df <= 2
        assert found.pvalue > 1e-3


def test_seeds_that_agree_by_chance_are_no_surer_than_their_items() -> None:
    # Both seeds gain 0.1; by its items (variance 0.1 * 0.9 * n / (n - 1), n = 1000) the error of a
    # seed is sqrt(0.09 / 999), and that of two by sqrt(2) less. The seeds' own spread would be 0.
    got = compare_arms(arms(0.5, 0.5, n=1000), arms(0.6, 0.6, n=1000)).over_seeds
    error = math.sqrt(0.09 / 999 / 2)
    assert got is not None
    assert got.difference.mean == pytest.approx(0.1)
    assert got.difference.low == pytest.approx(0.1 - error * math.tan(0.475 * math.pi))
    assert got.pvalue == pytest.approx(1 - 2 * math.atan(0.1 / error) / math.pi)
    # Where the seeds differ by more than their items explain, their spread alone decides.
    apart = compare_arms(arms(0.5, 0.5, n=1000), arms(0.55, 0.65, n=1000)).over_seeds
    assert apart is not None
    assert apart.difference.low == pytest.approx(0.1 - 0.05 * math.tan(0.475 * math.pi))


def test_rates_are_paired_by_their_means() -> None:
    before = [np.array([0.25, 0.5, 0.75]), np.array([0.5, 0.5, 0.5])]
    after = [b + d for b, d in zip(before, (0.125, 0.25), strict=True)]
    got = compare_arms(before, after)
    assert got.difference.mean == pytest.approx(0.1875)
    assert [one.difference.mean for one in got.per_seed] == pytest.approx([0.125, 0.25])


def test_equivalence_is_two_one_sided_tests() -> None:
    # Differences -d, 0, +d: the mean is 0 with error d / sqrt(3); t of 0.95 with 2 df is 2.920.
    before, after = arms(0.5, 0.5, 0.5, n=1000), arms(0.49, 0.5, 0.51, n=1000)
    edge = 2.919986 * 0.01 / math.sqrt(3)
    assert compare_arms(before, after, margin=edge * 1.01).equivalent is True
    assert compare_arms(before, after, margin=edge * 0.99).equivalent is False
    assert compare_arms(before, after).equivalent is None


def test_a_mean_over_seeds_has_students_interval() -> None:
    got = mean_over_seeds(arms(0.4, 0.6))
    # SD sqrt(0.02), error 0.1, t of 0.975 with 1 df = tan(0.475 pi).
    assert (got.mean, got.high - got.mean) == pytest.approx((0.5, 0.1 * math.tan(0.475 * math.pi)))
    assert mean_over_seeds(arms(0.4)).n == 100


def test_other_numbers_of_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="got 2 and 1 seeds"):
        compare_arms(arms(0.4, 0.5), arms(0.4))
