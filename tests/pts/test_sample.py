"""`pts.sample`: n judged completions a problem, in order, resumable, UNSCORED told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pts.config import SamplingConfig
from pts.engines.tabular import TabularEngine, TabularVerifier
from pts.errors import ConfigError, JournalError, PromptError
from pts.runtime.sample import read_samples, sample
from pts.testing.shapes import sparse
from pts.types import Grade, Problem, Verdict


class Counting(TabularEngine):
    """Counts what it samples."""

    drawn = 0

    def sample(self, requests: Any) -> Any:
        for request, completions in super().sample(requests):
            self.drawn += len(completions)
            yield request, completions


@pytest.fixture
def engine() -> Counting:
    machines = [sparse(np.random.default_rng(i), length=20).machine for i in range(3)]
    return Counting(machines, SamplingConfig(max_new_tokens=60))


def draw(engine: TabularEngine, n: int, output: Path | None = None, **options: Any) -> list[Any]:
    options = {"verifier": TabularVerifier(), "progress": False, **options}
    return sample(engine.problems(), engine, n=n, output=output, **options)


def test_completions_are_whole_judged_and_in_the_problems_order(engine: Counting) -> None:
    found = draw(engine, 5)
    assert [s.problem_id for s in found] == ["tabular-0", "tabular-1", "tabular-2"]
    for i, samples in enumerate(found):
        assert len(samples.rollouts) == 5
        assert samples.prompt_ids == (i,)
        for rollout in samples.rollouts:
            assert len(rollout.ids) == rollout.length
            said = engine.decode(rollout.ids)
            assert rollout.success == ("right" in said.split())
        assert samples.passed == sum(r.success for r in samples.rollouts)


def test_more_completions_go_on_where_fewer_ended(engine: Counting, tmp_path: Path) -> None:
    few = draw(engine, 2, tmp_path)
    assert engine.drawn == 6
    many = draw(engine, 5, tmp_path)
    assert engine.drawn == 15
    assert [m.rollouts[:2] for m in many] == [f.rollouts for f in few]
    assert many == draw(engine, 5)
    assert list(read_samples(tmp_path / "samples.jsonl")) == many


def test_an_interrupted_run_draws_only_the_rest(engine: Counting, tmp_path: Path) -> None:
    def stop(problem: Problem, text: str) -> Grade:
        if problem.id == "tabular-2":
            raise KeyboardInterrupt
        return TabularVerifier()(problem, text)

    undisturbed = draw(engine, 4)
    with pytest.raises(KeyboardInterrupt):
        draw(engine, 4, tmp_path, verifier=stop, window=1)
    before = engine.drawn
    journal = tmp_path / "journal.jsonl"
    told = '"verifier":"test_an_interrupted_run_draws_only_the_rest.<locals>.stop() #'
    before_it, _, after = journal.read_text().partition(told)
    journal.write_text(f'{before_it}"verifier":"TabularVerifier()"{after.partition(chr(34))[2]}')
    assert draw(engine, 4, tmp_path) == undisturbed
    assert engine.drawn == before + 4


def test_problems_that_cannot_be_judged_say_why(engine: Counting) -> None:
    def broken(problem: Problem, text: str) -> Grade:
        if problem.id == "tabular-1":
            return Grade(Verdict.UNSCORED, reason="no such reference")
        return TabularVerifier()(problem, text)

    found = draw(engine, 3, verifier=broken)
    assert [len(s.rollouts) for s in found] == [3, 0, 3]
    assert [s.reason for s in found] == ["", "no such reference", ""]


def test_a_prompt_without_room_for_an_answer_is_not_sampled(engine: Counting) -> None:
    engine.max_model_len = 60  # a prompt of one token and 60 new ones are 61
    found = draw(engine, 3)
    assert engine.drawn == 0
    assert [s.rollouts for s in found] == [(), (), ()]
    assert found[0].reason == (
        "its prompt has 1 tokens, which with max_new_tokens = 60 exceed the engine's 60"
    )
    engine.max_model_len = 61
    assert [len(s.rollouts) for s in draw(engine, 3)] == [3, 3, 3]


def test_a_prompt_that_is_refused_leaves_the_others(
    engine: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = engine.encode

    def refusing(problem: Problem) -> tuple[int, ...]:
        if problem.id == "tabular-1":
            raise PromptError("problem 'tabular-1': the user's text holds the special token <s>")
        return encode(problem)

    monkeypatch.setattr(engine, "encode", refusing)
    found = draw(engine, 3)
    assert [len(s.rollouts) for s in found] == [3, 0, 3]
    assert found[1].reason.endswith("holds the special token <s>")


def test_another_run_s_folder_is_refused(engine: Counting, tmp_path: Path) -> None:
    draw(engine, 1, tmp_path)
    with pytest.raises(JournalError, match="seed"):
        draw(engine, 1, tmp_path, seed=1)


def test_n_is_at_least_one(engine: Counting) -> None:
    with pytest.raises(ConfigError, match="n must be at least 1, got 0"):
        draw(engine, 0)


def test_seeds_are_those_of_no_search(engine: Counting) -> None:
    """The purpose is a part of the seed: what is sampled here never replays a filter's rollouts."""
    from pts.files import prefix_digest
    from pts.runtime.rollouts import rollout_seed

    place = prefix_digest(())
    seeds = {
        rollout_seed(0, "q", place, p, 0, 0) for p in ("filter", "search", "confirm", "sample")
    }
    assert len(seeds) == 4
