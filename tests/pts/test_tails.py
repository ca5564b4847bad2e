"""Rows kept as heads: the same draws, the same results, a bounded memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import pytest

from pts.algorithm.paths import Branches, BranchPoint, ScoredCompletion, TailDraw, draw_sibling
from pts.algorithm.question import search_question
from pts.algorithm.tails import HEAD, listed, resolved
from pts.config import SearchConfig
from pts.engines.base import score_rows
from pts.engines.tabular import TabularEngine, TabularVerifier
from pts.errors import EngineError
from pts.testing import run_search
from pts.testing.shapes import wandering
from pts.types import Ids, LogprobQuery, QuestionResult, TokenDistribution, Verdict

PHI_4 = 100_352
"""Rows of phi-4's embedding."""


def zipf(size: int, seed: int) -> TokenDistribution:
    """A row with a heavy tail, over shuffled token ids."""
    weights = 1.0 / np.arange(1, size + 1)
    ids = np.random.default_rng(seed).permutation(size)
    return TokenDistribution(ids, weights / weights.sum())


class Rows:
    """An engine of which only the scoring is asked for: rows one by one."""

    def __init__(self, size: int) -> None:
        self.size = size

    def score(self, prompt: Ids, completion: Ids) -> list[TokenDistribution]:
        return list(self.iter_score(prompt, completion))

    def iter_score(self, prompt: Ids, completion: Ids) -> Iterator[TokenDistribution]:
        for position in range(len(completion)):
            yield zipf(self.size, position)


def answered(engine: Any, routine: Generator[Any, Any, Any]) -> Any:
    """Drive a routine that asks for rows alone."""
    answers = None
    while True:
        try:
            queries = next(routine) if answers is None else routine.send(answers)
        except StopIteration as stop:
            return stop.value
        answers = [score_rows(engine, (0,), query) for query in queries]


@pytest.mark.parametrize("own_rank", [0, 5, 300])
def test_a_head_and_the_whole_row_give_the_same_draw(own_rank: int) -> None:
    whole = zipf(2000, 1)
    own = int(whole.ids[own_rank])
    head = whole.head(64, [own])
    assert head.probs.sum() + head.tail == pytest.approx(1.0, abs=1e-12)
    assert head.prob(own) == whole.prob(own)
    assert len(head.ids) == 64 + (own_rank >= 64)
    tails = 0
    for u in np.random.default_rng(2).random(3000):
        drawn = draw_sibling(head, own, 7, u)
        if isinstance(drawn, TailDraw):
            tails += 1
            drawn = draw_sibling(whole, own, drawn.position, drawn.u)
        assert drawn == draw_sibling(whole, own, 7, u)
    # The tail of 2,000 tokens beyond the first 64, the path's own taken out on both sides.
    expected = (head.tail) / (1 - whole.prob(own))
    assert tails / 3000 == pytest.approx(
        expected, abs=4 * (expected * (1 - expected) / 3000) ** 0.5
    )


def test_a_short_row_is_its_own_head() -> None:
    row = zipf(50, 0)
    assert row.head(50) is row
    assert row.tail == 0.0


def test_draws_from_a_tail_are_made_from_the_row_scored_again() -> None:
    engine, ids = Rows(5000), tuple(int(zipf(5000, k).ids[k]) for k in range(6))
    whole = score_rows(engine, (0,), LogprobQuery(ids))
    heads = score_rows(engine, (0,), LogprobQuery(ids, head=16))
    full, cut = (ScoredCompletion(ids, Verdict.PASS, tuple(rows)) for rows in (whole, heads))
    np.testing.assert_allclose(cut.probs, full.probs, rtol=1e-12)
    np.testing.assert_allclose(cut.exit_prob, full.exit_prob, rtol=1e-12)
    expected = Branches(full, 0.1, np.random.default_rng(0)).draw(1, 60)
    draws = Branches(cut, 0.1, np.random.default_rng(0)).draw(1, 60)
    assert any(isinstance(draw, TailDraw) for draw in draws)
    found = answered(engine, resolved(cut, draws))
    assert found == expected
    # What was drawn from a tail is listed afterwards, with its probability.
    siblings = [(d.position, d.token) for d in found if isinstance(d, BranchPoint)]
    known = answered(engine, listed(cut, siblings))
    for position, token in siblings:
        assert known.rows[position].prob(token) == full.rows[position].prob(token) > 0
        assert known.rows[position].probs.sum() + known.rows[position].tail == pytest.approx(1.0)


def test_only_the_rows_asked_for_come_back() -> None:
    engine, ids = Rows(40), (1, 2, 3, 4)
    rows = score_rows(engine, (0,), LogprobQuery(ids, at=(1, 3)))
    assert [row.ids.tolist() for row in rows] == [zipf(40, k).ids.tolist() for k in (1, 3)]
    with pytest.raises(EngineError, match="gave 2 rows for a completion of 3 tokens"):
        score_rows(TooFew(40), (0,), LogprobQuery((1, 2, 3)))


class TooFew(Rows):
    def iter_score(self, prompt: Ids, completion: Ids) -> Iterator[TokenDistribution]:
        return super().iter_score(prompt, completion[:-1])


@pytest.mark.parametrize("method", ["branch", "bisect"])
@pytest.mark.parametrize("seed", [1, 3, 4])  # 2 has a tie, which the last bit of a sum decides
def test_a_search_that_keeps_two_tokens_a_row_finds_what_one_with_all_finds(
    method: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = wandering(np.random.default_rng(seed))
    engine = TabularEngine([instance.machine], instance.sampling)
    # At most two tokens of a row are likely enough for a pair, so the heads hold them all.
    config = SearchConfig(method=method, p_min=0.0, p_max=1.0, paths=2, min_sibling_prob=0.34)
    (problem,) = engine.problems()

    def search() -> QuestionResult:
        limit = instance.sampling.max_new_tokens
        steps = search_question(problem.id, engine.encode(problem), limit, config, 0)
        return run_search(steps, engine, problem, TabularVerifier())

    def told(result: QuestionResult) -> list[Any]:
        return [
            (
                path.ids,
                path.stopped,
                [(t.position, t.delta.n) for t in path.tokens],
                [(pair.position, pair.chosen, pair.rejected) for pair in path.pairs],
                [(at, [row[0] for row in rows]) for at, rows in path.siblings.items()],
            )
            for path in result.paths
        ]

    expected = search()
    for module in ("question", "tails"):
        monkeypatch.setattr(f"pts.algorithm.{module}.HEAD", 2)
    found = search()
    assert found.cost == expected.cost
    assert told(found) == told(expected)
    for path, other in zip(found.paths, expected.paths, strict=True):
        probs = [q for rows in path.siblings.values() for _, q, _, _ in rows]
        whole = [q for rows in other.siblings.values() for _, q, _, _ in rows]
        assert probs == pytest.approx(whole, rel=1e-12)
        assert min(probs) > 0


def test_a_long_path_over_a_large_vocabulary_takes_little_memory() -> None:
    """500 tokens, 100,352 rows: at most 30 MB, where whole rows take 0.8 GB."""
    engine, length = Rows(PHI_4), 500
    ids = tuple(int(zipf(PHI_4, k).ids[0]) for k in range(length))
    tracemalloc.start()
    try:
        rows = score_rows(engine, (0,), LogprobQuery(ids, HEAD))
        path = ScoredCompletion(ids, Verdict.PASS, tuple(rows))
        pool = Branches(path, 0.2, np.random.default_rng(0))
        kept, _ = tracemalloc.get_traced_memory()
        draws = answered(engine, resolved(path, pool.draw(0, 8)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(draws) == 8
    assert kept < 10e6
    assert peak < 30e6
