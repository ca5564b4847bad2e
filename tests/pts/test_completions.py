"""Searching completions that come with their problems."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pts.config import SearchConfig
from pts.engines.tabular import STOP, TabularEngine, TabularVerifier
from pts.errors import DataError, JournalError
from pts.runtime.completions import Completions
from pts.runtime.search import search
from pts.testing.shapes import sparse, truncated
from pts.types import Problem, Verdict

from .scripted import ScriptedEngine, judge_odd, problems

INSTANCE = sparse(np.random.default_rng(1), 60)
GIVEN_ONLY = SearchConfig(paths=0, p_min=0.01, p_max=0.99)


def planted(form: Any = tuple) -> tuple[TabularEngine, list[Problem]]:
    engine = TabularEngine([INSTANCE.machine], INSTANCE.sampling)
    given = engine.decode(INSTANCE.path) if form is str else form(INSTANCE.path)
    return engine, [dataclasses.replace(engine.problems()[0], completions=(given,))]


def test_a_given_path_is_searched_and_agrees_with_the_truth() -> None:
    engine, asked = planted()
    (result,) = search(asked, engine, TabularVerifier(), GIVEN_ONLY).results
    (path,) = result.paths
    truth = engine.curve(INSTANCE.path)
    change = np.abs(np.diff(truth))
    assert path.ids == INSTANCE.path
    assert (path.verdict is Verdict.PASS) == bool(truth[-1])
    assert {t.position for t in path.tokens} == set(np.flatnonzero(change >= 0.25))
    for at, point in zip(path.curve_at, path.curve, strict=True):
        width = point.high - point.low
        assert point.low - width <= truth[at] <= point.high + width
    confirmed = [pair for pair in path.pairs if pair.pvalue < 0.01]
    assert confirmed
    for pair in confirmed:
        prefix = path.ids[: pair.position]
        assert engine.success((*prefix, pair.chosen)) > engine.success((*prefix, pair.rejected))


def test_own_paths_come_first_and_equal_ones_count_once() -> None:
    engine, asked = planted()
    config = GIVEN_ONLY.model_copy(update={"paths": 2})
    (result,) = search(asked, engine, TabularVerifier(), config).results
    assert len(result.paths) == 3
    assert result.paths[-1].ids == INSTANCE.path
    own = dataclasses.replace(asked[0], completions=(result.paths[0].ids,))
    (again,) = search([own], engine, TabularVerifier(), config).results
    assert [path.ids for path in again.paths] == [path.ids for path in result.paths[:2]]


def test_text_is_encoded_stopped_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    engine, (problem,) = planted(str)
    two = [problem, dataclasses.replace(problem, id="again")]
    caplog.set_level(logging.WARNING)
    runs = search(two, engine, TabularVerifier(), GIVEN_ONLY)
    assert [path.ids for result in runs.results for path in result.paths] == [INSTANCE.path] * 2
    assert len([r for r in caplog.records if "cut into tokens anew" in r.message]) == 1


def test_of_several_stop_tokens_the_likeliest_ends_a_text() -> None:
    class Engine(ScriptedEngine):
        stop_ids = frozenset({0, 2})

        def encode_text(self, text: str) -> tuple[int, ...]:
            return tuple("?a?c".index(letter) for letter in text)

    problem = Problem("q", "a", "odd", completions=("ac", "aa"))
    # After c the chain stops by 0 (.5 against 0), after a by 0 or 2 alike (.3): the smaller.
    read = Completions(Engine(), SearchConfig()).of(problem)
    assert read == ((1, 3, 0), (1, 1, 0))
    Engine.stop_ids = frozenset({2, 3})
    assert Completions(Engine(), SearchConfig()).of(problem)[1] == (1, 1, 2)


def test_impossible_completions_are_counted_and_not_searched() -> None:
    instance = next(i for i in map(_cut_off, range(20)) if i is not None)
    engine, ids = instance
    asked = [dataclasses.replace(engine.problems()[0], completions=(ids,))]
    run = search(asked, engine, TabularVerifier(), GIVEN_ONLY)
    ((path,),) = [result.paths for result in run.results]
    assert min(path.probs) == 0.0
    assert (path.stopped, path.curve, path.pairs) == ("impossible", (), ())
    assert run.summary.paths == {"impossible": 1}


def _cut_off(seed: int) -> tuple[TabularEngine, tuple[int, ...]] | None:
    """A path that leaves by one of the lucky tokens, which top-p 0.9 cuts off."""
    made = truncated(np.random.default_rng(seed), 20)
    engine = TabularEngine([made.machine], made.sampling)
    right = next(t for t in (20, 21) if any(arc.token == t for arc in made.machine.states[0]))
    state, ids = made.machine.states[0], [right]
    to = next(arc.to for arc in state if arc.token == right)
    while to >= 0:
        arc = made.machine.states[to][0]
        ids, to = [*ids, arc.token], arc.to
    if not 0.2 <= engine.success(()) <= 0.8:
        return None
    return engine, (*ids, STOP)


def faulty(*completions: Any) -> Problem:
    return dataclasses.replace(problems(1)[0], completions=completions)


def test_faults_name_problem_and_place_before_anything_is_sampled() -> None:
    engine = ScriptedEngine()
    asked = [
        faulty((1, -1), "text", (1, 1.5), 3),
        Problem("fine", "a", "odd", completions=((1, 0),)),
        Problem("q2", "a", "odd", completions=((1, 1), (0, 1), (1,) * 7, ())),
        Problem("q3", "a", "odd", completions="1, 0"),  # type: ignore[arg-type]
    ]
    with pytest.raises(DataError) as caught:
        search(asked, engine, judge_odd, SearchConfig())
    lines = str(caught.value).splitlines()
    assert len(lines) == 9
    assert lines[0].startswith("completion 0 of problem 'q0': holds -1 at position 1")
    assert "completion 1 of problem 'q0': is text, which ScriptedEngine cannot" in lines[1]
    assert "holds 1.5 at position 1" in lines[2]
    assert "must be token ids or text, found int" in lines[3]
    assert "completion 0 of problem 'q2': ends in 1, no stop token" in lines[4]
    assert "after the stop token at position 0" in lines[5]
    assert "over the limit of 6" in lines[6]
    assert "has no tokens" in lines[7]
    assert lines[8].startswith("problem 'q3': completions must be a tuple")
    assert engine.requests == []


def test_a_stream_tells_faults_when_they_come() -> None:
    with pytest.raises(DataError, match="completion 0 of problem 'q0': ends in 1"):
        search(iter([faulty((1, 1))]), ScriptedEngine(), judge_odd, SearchConfig())


def test_text_that_no_file_can_hold_is_a_fault_before_anything_is_sampled(tmp_path: Path) -> None:
    broken = Problem("q\ud800", "7\udc00", "a\ud800", completions=("\ud800",))
    with pytest.raises(DataError) as caught:
        search([broken], ScriptedEngine(), judge_odd, output=tmp_path / "run")
    told = str(caught.value).splitlines()
    assert [line.split(": its ")[1].split()[0] for line in told] == [
        "id", "prompt", "reference", "completion"
    ]  # fmt: skip
    assert told[0].startswith("problem 'q\\ud800': its id holds half a surrogate pair")
    assert not (tmp_path / "run").exists()


def test_nothing_to_search_is_a_fault() -> None:
    with pytest.raises(DataError, match="'q0': has no completions, and paths = 0"):
        search(problems(1), ScriptedEngine(), judge_odd, SearchConfig(paths=0))


def test_a_run_with_completions_resumes_and_knows_them(tmp_path: Path) -> None:
    engine, asked = planted(str)
    whole = search(asked, engine, TabularVerifier(), GIVEN_ONLY, output=tmp_path / "whole")
    folder = tmp_path / "torn"
    search(asked, engine, TabularVerifier(), GIVEN_ONLY, output=folder)
    (folder / "results.jsonl").write_text("")  # as if killed before the result was there
    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    (folder / "journal.jsonl").write_text("".join(lines[: len(lines) // 2]))
    _, as_ids = planted(list)  # the same completion, its tokens given
    resumed = search(as_ids, engine, TabularVerifier(), GIVEN_ONLY, output=folder)
    assert list(resumed.results) == list(whole.results)
    assert resumed.pairs == whole.pairs


def test_other_completions_are_another_question(tmp_path: Path) -> None:
    engine, asked = planted()
    config = GIVEN_ONLY.model_copy(update={"paths": 1})
    search(asked, engine, TabularVerifier(), config, output=tmp_path)
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(JournalError, match="'tabular-0' has changed"):
        search(engine.problems(), engine, TabularVerifier(), config, output=tmp_path)
