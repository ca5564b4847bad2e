from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.special import chdtrc

from pts.algorithm.paths import (
    Branches,
    BranchPoint,
    ScoredCompletion,
    departure,
    exit_weights,
    pick,
    split_blocks,
)
from pts.types import Rollout, TokenDistribution, Verdict


def row(*pairs: tuple[int, float]) -> TokenDistribution:
    return TokenDistribution(np.array([t for t, _ in pairs]), np.array([p for _, p in pairs]))


def small_path() -> ScoredCompletion:
    """q = .9, .5, .98, .95: one candidate at position 1 for p_gap = .2."""
    rows = (
        row((7, 0.9), (8, 0.06), (9, 0.04)),
        row((7, 0.5), (8, 0.3), (9, 0.2)),
        row((7, 0.98), (8, 0.02)),
        row((7, 0.95), (8, 0.03), (9, 0.02)),
    )
    return ScoredCompletion((7, 7, 7, 7), Verdict.PASS, rows)


def rollout(*ids: int, passed: bool = True) -> Rollout:
    return Rollout(ids, Verdict.PASS if passed else Verdict.FAIL, False, len(ids))


def test_path_reads_probabilities_of_its_tokens() -> None:
    path = small_path()
    assert path.probs == pytest.approx([0.9, 0.5, 0.98, 0.95])
    assert path.exit_prob == pytest.approx([0.1, 0.5, 0.02, 0.05])
    assert path.end == 1.0
    assert path.possible
    assert not ScoredCompletion((3,), Verdict.FAIL, (row((7, 1.0)),)).possible


def test_path_wants_a_row_for_each_token() -> None:
    with pytest.raises(ValueError, match="2 tokens need as many rows, got 1"):
        ScoredCompletion((7, 7), Verdict.PASS, (row((7, 1.0)),))


def test_blocks_isolate_candidates_and_bundle_the_rest() -> None:
    blocks = split_blocks(small_path().exit_prob, 0.2)
    assert [(b.start, b.end, b.candidate) for b in blocks] == [
        (0, 1, False),
        (1, 2, True),
        (2, 4, False),
    ]
    assert [b.exit_prob for b in blocks] == pytest.approx([0.1, 0.5, 1 - 0.98 * 0.95])


def test_a_path_without_candidates_is_one_block() -> None:
    (block,) = split_blocks(np.full(2000, 1e-9), 0.2)
    assert (block.start, block.end, block.candidate) == (0, 2000, False)
    assert block.exit_prob == pytest.approx(2e-6, rel=1e-5)


def test_exit_places_by_hand() -> None:
    # Left at once with .1, else (.9) at the second with .5, else (.45) at the third with .2.
    weights = exit_weights(np.array([0.1, 0.5, 0.2]))
    assert weights == pytest.approx(np.array([0.1, 0.45, 0.09]) / 0.64)


def test_pick_inverts_the_cdf_and_passes_the_rest_of_the_draw_on() -> None:
    weights = np.array([0.0, 0.25, 0.0, 0.75, 0.0])
    assert pick(weights, 0.0) == (1, 0.0)
    assert pick(weights, 0.125) == (1, pytest.approx(0.5))
    assert pick(weights, 0.25) == (3, 0.0)
    cell, inside = pick(weights, 1.0 - 1e-16)
    assert cell == 3
    assert inside < 1.0


def expected_exits() -> dict[BranchPoint, float]:
    """Exact distribution of an exit from the last block of `small_path`."""
    out = 1 - 0.98 * 0.95
    return {
        BranchPoint(2, 8): 0.02 / out,
        BranchPoint(3, 8): 0.98 * 0.05 / out * 0.6,
        BranchPoint(3, 9): 0.98 * 0.05 / out * 0.4,
    }


@pytest.mark.parametrize("index", [0, 5])
def test_each_draw_has_the_exact_conditional_distribution(index: int) -> None:
    path, n = small_path(), 4000
    counts = Counter(
        Branches(path, 0.2, np.random.default_rng(seed)).draw(2, index + 1)[index]
        for seed in range(n)
    )
    expected = expected_exits()
    assert set(counts) == set(expected)
    chi2 = sum((counts[e] - n * p) ** 2 / (n * p) for e, p in expected.items())
    assert chdtrc(len(expected) - 1, chi2) > 1e-3


def test_draws_of_one_block_follow_its_distribution_closely() -> None:
    pool, n = Branches(small_path(), 0.2, np.random.default_rng(0)), 100
    counts = Counter(pool.draw(2, 30) + pool.draw(2, n - 30))
    for exit_, prob in expected_exits().items():  # independent draws: sd up to 5
        assert abs(counts[exit_] - n * prob) <= 3


def test_draws_never_take_the_paths_token_nor_leave_the_support() -> None:
    pool = Branches(small_path(), 0.2, np.random.default_rng(1))
    assert {e.token for k in range(3) for e in pool.draw(k, 200)} == {8, 9}
    assert {e.position for e in pool.draw(1, 50)} == {1}


def test_outcomes_are_counted_by_block_and_by_sibling() -> None:
    pool = Branches(small_path(), 0.2, np.random.default_rng(0))
    pool.record(BranchPoint(3, 8), [rollout(1, 2), rollout(1, passed=False)])
    pool.record(BranchPoint(2, 8), [rollout(1)])
    assert [(t.successes, t.n, t.tokens) for t in pool.tallies] == [(0, 0, 0), (0, 0, 0), (2, 3, 4)]
    table = pool.groups.table(pool.path)
    assert table == {2: ((8, 0.02, 1, 1),), 3: ((8, 0.03, 1, 2),)}


def test_unforced_rollouts_count_where_they_leave_the_path() -> None:
    pool = Branches(small_path(), 0.2, np.random.default_rng(0))
    pool.record_unforced(
        [
            rollout(7, 9, 5, 5, 5),  # leaves at 1; three tokens follow its sibling
            rollout(7, 7, 7, 8, passed=False),  # leaves at 3
            rollout(7, 7, 7, 7),  # the path again: no branch
        ]
    )
    assert [(t.successes, t.n, t.tokens) for t in pool.hints] == [(0, 0, 0), (1, 1, 3), (0, 1, 0)]
    assert pool.groups[1, 9].successes == 1
    assert all(tally.n == 0 for tally in pool.tallies)  # selected rollouts enter no estimate
    pool.record(BranchPoint(1, 8), [rollout(1, 2, passed=False)])
    assert (pool.seen(1).successes, pool.seen(1).n, pool.seen(1).tokens) == (1, 2, 5)


def test_leaves_at() -> None:
    assert departure((1, 2, 3), (1, 5)) == 1
    assert departure((1, 2, 3), (1, 2, 3)) is None
    assert departure((1, 2), (1, 2, 3)) is None


def test_same_seed_same_draws() -> None:
    first, again = (Branches(small_path(), 0.2, np.random.default_rng(4)) for _ in range(2))
    assert [first.draw(k, 20) for k in range(3)] == [again.draw(k, 20) for k in range(3)]
