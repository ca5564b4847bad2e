from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import betainc, comb, ndtr

from pts.algorithm.values import chance, path_values, unit_change
from pts.stats import (
    Z95,
    benjamini_hochberg,
    constrained_mle,
    decide,
    exact,
    jeffreys,
    jeffreys_bounds,
    newcombe,
    score_test,
    wilson_bounds,
)
from pts.types import Estimate


@pytest.mark.parametrize(("s", "n"), [(1, 4), (3, 10), (40, 48)])
def test_jeffreys_bounds_cut_off_equal_tails_of_the_posterior(s: int, n: int) -> None:
    low, high = jeffreys_bounds(s, n)
    tail = (1 - 0.95) / 2
    assert betainc(s + 0.5, n - s + 0.5, low) == pytest.approx(tail, abs=1e-9)
    assert 1 - betainc(s + 0.5, n - s + 0.5, high) == pytest.approx(tail, abs=1e-9)


def test_jeffreys_is_closed_at_the_ends_and_reports_the_raw_proportion() -> None:
    none, every, nothing = jeffreys(0, 8), jeffreys(8, 8), jeffreys(0, 0)
    assert (none.mean, none.low) == (0.0, 0.0)
    assert (every.mean, every.high) == (1.0, 1.0)
    assert (nothing.low, nothing.high) == (0.0, 1.0)
    assert every.low == pytest.approx(1 - none.high)


def test_wilson_solves_its_defining_equation() -> None:
    s, n = 7, 20
    for bound in wilson_bounds(s, n):  # |s/n - p| = z sqrt(p (1 - p) / n)
        assert abs(s / n - bound) == pytest.approx(Z95 * math.sqrt(bound * (1 - bound) / n))


def test_newcombe_reproduces_the_published_example() -> None:
    # Newcombe 1998 (Statistics in Medicine 17:873), table II, example (a), method 10.
    found = newcombe(56, 70, 48, 80)
    assert found.mean == pytest.approx(0.2)
    assert (found.low, found.high) == (
        pytest.approx(0.0524, abs=1e-4),
        pytest.approx(0.3339, abs=1e-4),
    )


def likelihood(s1: int, n1: int, s2: int, n2: int, p1: np.ndarray, margin: float) -> np.ndarray:
    p2 = p1 - margin
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [s1 * np.log(p1), (n1 - s1) * np.log1p(-p1), s2 * np.log(p2)]
        terms.append((n2 - s2) * np.log1p(-p2))
    powers = [s1, n1 - s1, s2, n2 - s2]
    return sum(np.where(k == 0, 0.0, t) for k, t in zip(powers, terms, strict=True))


@pytest.mark.parametrize("margin", [-0.3, 0.05, 0.15, 0.6])
@pytest.mark.parametrize(
    ("s1", "n1", "s2", "n2"),
    [
        (30, 48, 10, 48),
        (5, 10, 5, 10),
        (0, 12, 12, 12),
        (12, 12, 0, 12),
        (7, 9, 3, 40),
        (0, 5, 0, 7),
    ],
)
def test_constrained_estimate_maximises_the_likelihood(
    s1: int, n1: int, s2: int, n2: int, margin: float
) -> None:
    grid = np.linspace(max(0, margin), min(1, 1 + margin), 20001)
    best = grid[np.argmax(likelihood(s1, n1, s2, n2, grid, margin))]
    p1, p2 = constrained_mle(s1, n1, s2, n2, margin)
    assert p1 == pytest.approx(best, abs=1e-4)
    assert p2 == pytest.approx(p1 - margin)


def test_score_test_without_a_margin_is_the_pooled_test() -> None:
    s1, n1, s2, n2 = 20, 30, 12, 40
    pooled = (s1 + s2) / (n1 + n2)
    variance = pooled * (1 - pooled) * (1 / n1 + 1 / n2) * (n1 + n2) / (n1 + n2 - 1)
    z = (s1 / n1 - s2 / n2) / math.sqrt(variance)
    assert score_test(s1, n1, s2, n2, 0.0) == pytest.approx(float(ndtr(-z)))


def test_score_test_without_variance_decides_by_the_sign() -> None:
    assert score_test(5, 5, 5, 5, 0.0) == 1.0
    assert score_test(48, 48, 0, 48, 0.15) < 1e-12


@pytest.mark.parametrize("n", [24, 48])
def test_score_test_holds_its_size(n: int) -> None:
    """Exact rejection probability at the edge of the null, by enumeration of all tables."""
    k, margin = np.arange(n + 1), 0.15
    rejects = np.array([[score_test(a, n, b, n, margin) <= 0.05 for b in k] for a in k])
    for p2 in (0.02, 0.2, 0.4, 0.6, 0.83):
        p1 = p2 + margin
        first = comb(n, k) * p1**k * (1 - p1) ** (n - k)
        second = comb(n, k) * p2**k * (1 - p2) ** (n - k)
        assert first @ rejects @ second <= 0.07


def test_benjamini_hochberg_by_hand() -> None:
    # Thresholds at fdr 0.05 and m = 4: 0.0125, 0.025, 0.0375, 0.05. The third smallest passes its
    # own, so all smaller ones pass with it, although the second (0.03) misses its threshold.
    assert benjamini_hochberg([0.2, 0.001, 0.036, 0.03], 0.05) == [False, True, True, True]
    assert benjamini_hochberg([0.04, 0.9], 0.05) == [False, False]
    assert benjamini_hochberg([], 0.05) == []


def between(low: float, mean: float, high: float) -> Estimate:
    return Estimate(mean, low, high, 10, "test")


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        (between(0.16, 0.30, 0.45), "yes"),
        (between(-0.45, -0.30, -0.16), "yes"),
        (between(0.10, 0.30, 0.45), "open"),
        (between(-0.10, 0.05, 0.24), "no"),
        (between(-0.26, 0.05, 0.24), "open"),
        (between(0.16, 0.19, 0.30), "open"),
        (between(0.16, 0.21, 0.24), "indifferent"),
        (between(-0.24, -0.19, -0.16), "indifferent"),
        (between(0.16, 0.25, 0.25), "yes"),  # 1 - q = .25 bounds it: it may be a must
        (between(-0.25, 0.05, 0.20), "open"),
    ],
)
def test_decisions_tolerate_errors_inside_the_zone_only(delta: Estimate, expected: str) -> None:
    assert decide(delta, p_gap=0.2, indifference_margin=0.05) == expected


def test_chain_by_hand_on_three_tokens() -> None:
    # End passed. q = .5, .8, .9; branches 1 of 4, 2 of 4, none at the last token.
    exit_prob, successes, trials = [0.5, 0.2, 0.1], [1, 2, 0], [4, 4, 0]
    found = path_values(exit_prob, successes, trials, end=1.0)
    d0, d1 = 1 / 4, 2 / 4
    p2 = 1.0  # the unsampled exit changes nothing on average
    p1 = 0.8 * p2 + 0.2 * d1
    p0 = 0.5 * p1 + 0.5 * d0
    assert [point.mean for point in found.points] == pytest.approx([p0, p1, p2, 1.0])
    assert [out.mean for out in found.exits] == pytest.approx([d0, d1, p2])
    # D_2 may be 0, so p_2 may be 0.9; to that worst case come the sampling errors, in quadrature.
    low0, low1 = d0 - wilson_bounds(1, 4)[0], d1 - wilson_bounds(2, 4)[0]
    worst1 = 0.8 * 0.9 + 0.2 * d1
    worst0 = 0.5 * worst1 + 0.5 * d0
    below1, below0 = 0.2 * low1, math.hypot(0.5 * 0.2 * low1, 0.5 * low0)
    lows = [point.low for point in found.points]
    assert lows == pytest.approx([max(0.36, worst0 - below0), max(0.72, worst1 - below1), 0.9, 1.0])
    assert [low for low, _ in found.ranges] == pytest.approx([worst0, worst1, 0.9, 1.0])
    assert found.points[2].high == 1.0
    assert found.points[3] == exact(1.0)
    assert [point.n for point in found.points] == [8, 4, 0, 0]


def test_chain_has_the_standard_error_of_its_weighted_sum() -> None:
    """With many branches half-widths are z √(Σ w² d (1 - d) / n), w as derived from the chain."""
    exit_prob, rates, n = [0.6, 0.3, 0.5], [0.25, 0.75, 0.5], 40_000
    found = path_values(exit_prob, [round(d * n) for d in rates], [n] * 3, end=1.0)
    weights = [0.6, 0.4 * 0.3, 0.4 * 0.7 * 0.5]  # reach block k, then leave it
    error = math.sqrt(sum((w * w * d * (1 - d)) / n for w, d in zip(weights, rates, strict=True)))
    p0 = found.points[0]
    assert p0.mean == pytest.approx(0.6 * 0.25 + 0.12 * 0.75 + 0.14 * 0.5 + 0.14)
    assert (p0.high - p0.low) / 2 == pytest.approx(Z95 * error, rel=1e-3)
    delta = unit_change(found, 0, 0.6)  # .6 (p_1 - D_0), whose parts are independent
    after = math.sqrt((0.3**2 * 0.1875 + 0.35**2 * 0.25) / n)
    expected = 0.6 * math.hypot(after, math.sqrt(0.1875 / n))
    assert (delta.high - delta.low) / 2 == pytest.approx(Z95 * expected, rel=1e-3)


def test_many_small_samples_add_up_without_bias() -> None:
    """Twelve tokens, left for branches that nearly all pass, 8 to 40 rollouts each: 95 % intervals.

    Over 600 trials p was covered in .90 (skew is what Wilson's bounds do not add up exactly) and Δ
    in .97; posterior means, whose pull towards 1/2 has one sign at all blocks, covered p in .72.
    """
    rng, trials = np.random.default_rng(0), 600
    exit_prob, rates, truth = [0.3] * 12, [0.95] * 12, [1.0]
    for out, d in zip(exit_prob, rates, strict=True):
        truth.insert(0, (1 - out) * truth[0] + out * d)
    inside = {"p": 0, "delta": 0}
    for _ in range(trials):
        n = [int(m) for m in rng.integers(8, 41, 12)]
        found = path_values(exit_prob, [int(s) for s in rng.binomial(n, rates)], n, end=1.0)
        delta = unit_change(found, 0, exit_prob[0])
        inside["p"] += found.points[0].low <= truth[0] <= found.points[0].high
        inside["delta"] += delta.low <= truth[1] - truth[0] <= delta.high
    assert inside["p"] / trials >= 0.86
    assert inside["delta"] / trials >= 0.93


def test_what_nobody_sampled_may_all_lie_on_one_side() -> None:
    """Without sampling error the intervals are the exact ranges: reached at D = 0 or D = 1."""
    rng, many = np.random.default_rng(0), 10**9
    for _ in range(200):
        exit_prob = rng.uniform(0.05, 0.6, 6)
        rates = rng.integers(0, 11, 6) / 10
        trials = np.where(rng.random(6) < 0.5, many, 0)
        end = float(rng.integers(2))
        found = path_values(
            list(exit_prob),
            [round(d * n) for d, n in zip(rates, trials, strict=True)],
            list(trials),
            end,
        )
        ranges = []
        for extreme in (0.0, 1.0):
            p = [end]
            for out, d, n in zip(exit_prob[::-1], rates[::-1], trials[::-1], strict=True):
                p.append((1 - out) * p[-1] + out * (d if n else extreme))
            ranges.append(p[::-1])
        for point, low, high in zip(found.points, *ranges, strict=True):
            assert (point.low, point.high) == pytest.approx((low, high), abs=1e-4)
        if trials[0]:
            delta = unit_change(found, 0, exit_prob[0])
            assert delta.low == pytest.approx(exit_prob[0] * (ranges[0][1] - rates[0]), abs=1e-4)
            assert delta.high == pytest.approx(exit_prob[0] * (ranges[1][1] - rates[0]), abs=1e-4)


def test_delta_of_a_token_by_hand() -> None:
    found = path_values([0.5], [1], [4], end=1.0)
    delta, d = unit_change(found, 0, 0.5), 1 / 4
    low, high = wilson_bounds(1, 4)
    assert delta.mean == pytest.approx(0.5 * (1 - d))
    assert (delta.low, delta.high) == pytest.approx((0.5 * (1 - high), 0.5 * (1 - low)))


def test_delta_of_an_unsampled_token_spans_what_is_possible() -> None:
    found = path_values([0.5, 0.4], [0, 2], [0, 8], end=1.0)
    after = found.points[1]
    delta = unit_change(found, 0, 0.5)
    assert delta.mean == 0.0
    assert (delta.low, delta.high) == pytest.approx((-0.5 * (1 - after.low), 0.5 * after.high))


def test_path_probability_alone_bounds_every_point() -> None:
    found = path_values([0.01, 0.02], [0, 0], [0, 0], end=0.0)
    assert found.points[0].high <= 1 - 0.99 * 0.98 + 1e-12
    assert found.points[1].high == pytest.approx(0.02)
    assert found.points[0].low == 0.0


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.5), (-0.5, 0.1), (-0.3, 0.3), (0.15, 0.25)])
def test_chance_is_the_normal_mass_beyond_the_gap(low: float, high: float) -> None:
    middle, sd = (low + high) / 2, (high - low) / (2 * 2.24)
    beyond = ndtr((-0.2 - middle) / sd) + 1 - ndtr((0.2 - middle) / sd)
    found = chance(Estimate(middle, low, high, 9, "chain"), 0.2, 2.24)
    assert found == pytest.approx(beyond, rel=1e-9)


def test_chance_never_gives_a_candidate_up() -> None:
    assert chance(Estimate(0.0, -1e-4, 1e-4, 9, "chain"), 0.2, 2.24) == 1e-12
    assert chance(Estimate(0.0, 0.0, 0.0, 9, "chain"), 0.2, 2.24) == 1e-12
    assert chance(Estimate(0.3, 0.3, 0.3, 9, "chain"), 0.2, 2.24) == 1.0
