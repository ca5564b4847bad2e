"""The tests behind `check_engine` keep their level, and find what they are for."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pts.config import SamplingConfig
from pts.stats import chi_square
from pts.testing.diagnoses import RIGHT, as_told, diagnoses, equal_to, fitting, shaped
from pts.testing.statistics import (
    SUSPICION,
    distance,
    pit,
    serial,
    tally,
    uniformity,
    without,
)
from pts.types import TokenDistribution


def row(*probs: float) -> TokenDistribution:
    return TokenDistribution(np.arange(len(probs)), np.asarray(probs))


SKEWED = (0.9, 0.05, 0.02, 0.01, 0.01, 0.005, 0.005)


def test_chi_square_by_hand() -> None:
    # (60-50)²/50 twice = 4 with one degree of freedom: the two-sided normal tail at 2.
    assert chi_square(np.array([60, 40]), np.array([0.5, 0.5])) == pytest.approx(0.0455, abs=1e-4)


def test_small_cells_are_pooled() -> None:
    # 100 draws: cells of 4, 3, 2 and 1 expected draws become one of 10.
    probs = np.array([0.5, 0.4, 0.04, 0.03, 0.02, 0.01])
    counts = np.array([50, 40, 0, 0, 0, 10])
    assert chi_square(counts, probs) == 1.0
    assert chi_square(np.array([10, 0]), np.array([0.9, 0.1])) == 1.0  # one cell is left


@pytest.mark.parametrize("probs", [(0.5, 0.5), SKEWED, tuple(np.full(40, 1 / 40))])
def test_level_of_chi_square(probs: tuple[float, ...]) -> None:
    """The rate of suspicion among 20,000 true nulls stays below 1.8 of its nominal level.

    Under a level of 1e-3, 36 or more of 20,000 would have probability 8e-4; with skewed cells the
    chi-square law is an approximation.
    """
    rng = np.random.default_rng(1)
    drawn = rng.multinomial(400, probs, size=20_000)
    below = sum(chi_square(counts, np.asarray(probs)) < SUSPICION for counts in drawn)
    assert below <= 1.8 * SUSPICION * 20_000


def test_pit_of_right_draws_is_uniform_and_independent() -> None:
    rng, rows = np.random.default_rng(2), [row(*SKEWED), row(0.4, 0.3, 0.3), row(0.99, 0.01)]
    suspicious = 0
    for _ in range(300):
        u = []
        for _ in range(20):
            tokens = tuple(int(rng.choice(r.ids, p=r.probs)) for r in rows)
            u.append(pit(rows, tokens, rng))
            assert len(u[-1]) == 2  # the sure row says nothing
        suspicious += (uniformity(np.concatenate(u)) < 0.05) + (serial(u) < 0.05)
    assert suspicious <= 46  # of 600 at 0.05: 30 expected, five standard deviations are 27


def test_serial_sees_equal_numbers() -> None:
    rng = np.random.default_rng(3)
    assert serial([np.full(8, rng.random()) for _ in range(20)]) < 1e-6
    assert serial([rng.random(8) for _ in range(20)]) > 1e-4
    assert serial([]) == 1.0


def test_tally_separates_what_cannot_occur() -> None:
    counts, outside = tally(row(0.7, 0.3, 0.0), [0, 0, 1, 2, 5])
    assert counts.tolist() == [2, 1, 0]
    assert outside == [2, 5]


def test_truncate_first_remove_second() -> None:
    """Removing the likeliest of (.5, .3, .2) cut at top_p .7 leaves one token, not two."""
    sampling = SamplingConfig(top_p=0.7)
    plain = row(0.5, 0.3, 0.2)
    assert without(shaped(plain, sampling), 0).ids.tolist() == [1]
    wrong = shaped(without(plain, 0), sampling)
    assert wrong.ids.tolist() == [1, 2]
    name = equal_to(wrong, diagnoses(plain, sampling))
    assert name is not None
    assert "truncate first, remove second" in name


@pytest.mark.parametrize(
    ("sampling", "mistake", "wrong"),
    [
        ({"temperature": 0.5}, "the temperature is ignored", [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, "top_k keeps one token too many", [4 / 9, 3 / 9, 2 / 9]),
        ({"top_k": 2}, "top_k keeps one token too few", [1.0]),
        ({"top_p": 0.6}, "top_p is ignored", [0.4, 0.3, 0.2, 0.1]),
        ({"top_p": 0.8}, "top_p leaves out the token that reaches it", [4 / 7, 3 / 7]),
        ({"min_p": 0.3}, "min_p is ignored", [0.4, 0.3, 0.2, 0.1]),
        ({"min_p": 0.25}, "min_p is an absolute probability", [4 / 7, 3 / 7]),
    ],
)
def test_mistakes_are_told_apart(
    sampling: dict[str, float], mistake: str, wrong: list[float]
) -> None:
    plain, settings = row(0.4, 0.3, 0.2, 0.1), SamplingConfig.model_validate(sampling)
    known = diagnoses(plain, settings)
    assert equal_to(row(*wrong), known) == mistake
    assert equal_to(shaped(plain, settings), known) == RIGHT
    assert all(distance(a, b) > 0 for a, b in pairwise(known.values()))
    drawn = np.random.default_rng(4).choice(len(wrong), size=2000, p=wrong).tolist()
    assert fitting(drawn, known) == mistake


def test_rounding_at_an_edge_is_forgiven() -> None:
    sampling = SamplingConfig(top_p=0.7)
    assert as_told(row(4 / 7, 3 / 7), row(0.4, 0.3 - 1e-6, 0.2, 0.1 + 1e-6), sampling)
    assert not as_told(row(1.0), row(0.4, 0.3, 0.2, 0.1), sampling)
