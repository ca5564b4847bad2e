"""Expected values are closed forms, published worked examples or exhaustive enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from align.evaluation import statistics as st
from pts.stats import wilson_bounds


def test_wilson_at_the_extremes_has_its_closed_form() -> None:
    # With no success the limits are 0 and z^2 / (n + z^2); with n successes the mirror image.
    z2 = st.z_of(0.95) ** 2
    none, full = st.wilson(0, 10), st.wilson(10, 10)
    assert (none.low, none.high) == (0, pytest.approx(z2 / (10 + z2)))
    assert (full.low, full.high) == (pytest.approx(10 / (10 + z2)), 1)


def test_wilson_limits_solve_the_score_equation() -> None:
    got = st.wilson(37, 120)
    for limit in (got.low, got.high):
        z = (37 / 120 - limit) / math.sqrt(limit * (1 - limit) / 120)
        assert abs(z) == pytest.approx(st.z_of(0.95))


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        st.wilson(successes, n)


def test_mean_interval_of_two_values_uses_the_cauchy_quantile() -> None:
    # Student with 1 degree of freedom is Cauchy: its 97.5 % quantile is tan(0.475 pi). The standard
    # error of the mean of 0 and 1 is 1/2.
    got = st.mean_interval([0.0, 1.0])
    assert got.mean == 0.5
    assert got.high - got.mean == pytest.approx(math.tan(0.475 * math.pi) / 2)


def test_rates_of_single_verdicts_have_wilsons_interval_of_one_item_less() -> None:
    # The variance of a mean of n verdicts is p(1 - p) / (n - 1): the effective size is n - 1.
    got = st.rate_interval([1.0] * 30 + [0.0] * 31)
    expected = wilson_bounds(60 * (30 / 61), 60, st.z_of(0.95))
    assert (got.low, got.high) == pytest.approx(expected)


def test_a_rate_interval_never_collapses_and_never_leaves_the_unit_interval() -> None:
    assert st.rate_interval([1.0] * 10).low == st.wilson(10, 10).low
    assert st.rate_interval([0.5] * 10).high - 0.5 > 0.2
    rare = st.rate_interval([0.125] + [0.0] * 99)
    assert 0 < rare.low < 0.00125 < rare.high


def test_a_rate_interval_covers_the_truth_near_the_edge() -> None:
    # 100 items of 4 samples, each right with probability .02: of 2,000 repetitions 95 % should
    # cover; Student's interval covers fewer, since small counts are skewed.
    rng = np.random.default_rng(2)
    draws = rng.binomial(4, 0.02, size=(2000, 100)) / 4
    covered = np.mean([e.low <= 0.02 <= e.high for e in map(st.rate_interval, draws)])
    assert covered == pytest.approx(0.95, abs=0.02)


def test_intervals_refuse_what_they_cannot_say() -> None:
    with pytest.raises(ValueError, match="at least 2 items"):
        st.mean_interval([1.0])
    with pytest.raises(ValueError, match=r"lie in 0\.\.1, got 0\.5 to 2"):
        st.rate_interval([0.5, 2.0])


def test_samples_of_one_problem_are_not_counted_as_problems() -> None:
    # 50 problems, each always solved or never: 8 samples add nothing to 1 sample.
    verdicts = np.tile([0.0, 1.0], 25)
    clustered = st.rate_interval(np.repeat(verdicts[:, None], 8, axis=1).mean(axis=1))
    naive = st.wilson(200, 400)
    single = st.wilson(25, 50)
    assert clustered.high - clustered.low > 2.5 * (naive.high - naive.low)
    assert clustered.high == pytest.approx(single.high, abs=0.01)


def test_ratio_of_equal_sizes_is_the_plain_mean() -> None:
    totals = np.array([2.0, 4.0, 9.0, 1.0])
    ratio, mean = st.ratio_interval(totals, np.full(4, 2.0)), st.mean_interval(totals / 2)
    assert (ratio.mean, ratio.low, ratio.high) == pytest.approx((mean.mean, mean.low, mean.high))


def test_ratio_weighs_by_size_and_is_exact_when_every_item_has_the_same_rate() -> None:
    got = st.ratio_interval([1.0, 9.0], [10.0, 90.0])
    assert (got.mean, got.low, got.high) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="sum to 0"):
        st.ratio_interval([0.0], [0.0])


def test_pass_at_k_equals_enumeration_over_all_subsets() -> None:
    for n, k in ((6, 1), (6, 3), (8, 8)):
        for passed in range(n + 1):
            draws = list(itertools.combinations([1] * passed + [0] * (n - passed), k))
            expected = sum(any(draw) for draw in draws) / len(draws)
            assert st.pass_at_k([n], [passed], k)[0] == pytest.approx(expected)


def test_pass_at_k_refuses_too_few_samples() -> None:
    with pytest.raises(ValueError, match="pass@4 needs at least 4"):
        st.pass_at_k([3], [1], 4)


def _verdicts(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[int], list[int]]:
    a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return a, b


def test_mcnemar_counts_only_changed_items() -> None:
    # 1 against 7 changes: 2 * (C(8,0) + C(8,1)) / 2^8 = 18/256.
    got = st.paired_binary(*_verdicts(1, 1, 7, 12))
    assert (got.better, got.worse) == (7, 1)
    assert got.pvalue == pytest.approx(18 / 256)
    assert st.paired_binary(*_verdicts(90, 1, 7, 500)).pvalue == pytest.approx(18 / 256)


def test_newcombe_interval_of_a_published_example() -> None:
    # Airway reactivity before and after stem-cell transplantation (Fagerland, Lydersen and Laake
    # 2014, Statistics in Medicine): difference 0.286, 0.026 to 0.507.
    got = st.paired_binary(*_verdicts(1, 1, 7, 12)).difference
    assert (got.mean, got.low, got.high) == pytest.approx((6 / 21, 0.026, 0.507), abs=6e-4)


def test_equal_verdicts_are_no_evidence() -> None:
    got = st.paired_binary([1, 1, 0], [1, 1, 0])
    assert (got.pvalue, got.difference.mean) == (1.0, 0.0)
    assert got.difference.low < 0 < got.difference.high
    assert st.paired_mean([0.5, 0.25], [0.5, 0.25]).pvalue == 1.0


def test_paired_binary_refuses_rates() -> None:
    with pytest.raises(ValueError, match="paired_mean"):
        st.paired_binary([0.5], [1.0])


def test_paired_t_with_two_items_has_the_arctan_form() -> None:
    # Differences 0.1 and 0.3: t = 0.2 / 0.1 = 2; with 1 degree of freedom p = 1 - 2 atan(2) / pi.
    got = st.paired_mean([0.0, 0.0], [0.1, 0.3])
    assert got.pvalue == pytest.approx(1 - 2 * math.atan(2) / math.pi)


@pytest.mark.parametrize(("before", "after", "gap"), [(1.0, 1.0, 0.0), (0.5, 1.0, 0.5)])
def test_equal_differences_in_all_items_are_not_certain(
    before: float, after: float, gap: float
) -> None:
    # Up to z^2 / (n + z^2) of further items may differ otherwise, by 1 at most in either direction.
    z2 = st.z_of(0.95) ** 2
    share = z2 / (10 + z2)
    got = st.paired_mean([before] * 10, [after] * 10).difference
    assert got.mean == gap
    assert got.low == pytest.approx(gap - share * (1 + gap))
    assert got.high == pytest.approx(gap + share * (1 - gap))


def test_interval_and_test_of_a_paired_mean_agree() -> None:
    rng = np.random.default_rng(0)
    for shift in np.linspace(0, 0.2, 21):
        before = rng.random(30)
        got = st.paired_mean(before, before + rng.normal(shift, 0.3, 30))
        excludes_zero = got.difference.low > 0 or got.difference.high < 0
        assert excludes_zero == (got.pvalue < 0.05)


def test_paired_t_holds_its_level_on_heterogeneous_items() -> None:
    # No change on average although every single problem changes: 5 % of the tests may reject.
    # With 2,000 repetitions the binomial standard error of that share is 0.5 points.
    rng = np.random.default_rng(1)
    change = np.tile([-0.3, 0.1, 0.1, 0.1], 100)
    draws = rng.choice(change, size=(2000, 200))
    rejected = np.mean([st.paired_mean(np.zeros(200), row).pvalue < 0.05 for row in draws])
    assert rejected == pytest.approx(0.05, abs=0.02)


def test_constant_improvement_gets_the_sign_flip_value() -> None:
    assert st.paired_mean([0.0] * 5, [0.5] * 5).pvalue == 2 / 2**5


def test_holm_by_hand() -> None:
    # Sorted .01, .02, .03 -> 3*.01, 2*.02, 1*.03 -> .03, .04, and never below the one before: .04.
    assert st.holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert st.holm([0.9, 0.8]) == [1.0, 1.0]
    assert st.holm([]) == []


def test_one_seed_is_the_plain_paired_test() -> None:
    before, after = [0.1, 0.4, 0.2], [0.5, 0.3, 0.6]
    got = st.combine_seeds([before], [after])
    assert got.by_item == st.paired_mean(before, after)
    assert got.by_item_and_seed is None
    assert got.per_seed == (pytest.approx(0.7 / 3),)


def test_seeds_that_differ_widen_the_interval_only_for_new_seeds() -> None:
    # Two seeds, 100 items, every item of seed s changes by s: 0 and 0.4. By item the change is a
    # constant 0.2; for new seeds the error is that of two values, t = 0.2 / 0.2 with 1 df.
    after = np.array([np.full(100, 0.0), np.full(100, 0.4)])
    got = st.combine_seeds(np.zeros((2, 100)), after)
    assert got.per_seed == (0.0, pytest.approx(0.4))
    assert got.by_item.pvalue < 1e-9
    assert got.by_item_and_seed is not None
    assert got.by_item_and_seed.pvalue == pytest.approx(1 - 2 * math.atan(1) / math.pi)


def test_crossed_error_without_seed_effect_is_the_item_error() -> None:
    # Both seeds show the same item differences: MS_seed = MS_residual = 0. The error is that of
    # the items, and two seeds leave one degree of freedom however many the items.
    changes = np.array([0.0, 0.1, 0.4, 0.3])
    got = st.combine_seeds(np.zeros((2, 4)), np.array([changes, changes]))
    assert got.by_item_and_seed is not None
    assert (got.by_item.df, got.by_item_and_seed.df) == (3, 1)
    t = changes.mean() / (changes.std(ddof=1) / 2)
    assert got.by_item_and_seed.pvalue == pytest.approx(1 - 2 * math.atan(t) / math.pi)


def test_the_same_change_everywhere_is_as_sure_as_its_seeds() -> None:
    got = st.combine_seeds(np.zeros((3, 100)), np.full((3, 100), 0.25))
    assert got.by_item_and_seed is not None
    assert got.by_item_and_seed.pvalue == 2.0**-2  # three signs, all alike


def test_combine_seeds_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match="one shape"):
        st.combine_seeds(np.zeros((2, 3)), np.zeros((3, 2)))


def test_items_must_match() -> None:
    with pytest.raises(ValueError, match="do not match: 2 and 3"):
        st.paired_mean([0, 1], [0, 1, 1])
