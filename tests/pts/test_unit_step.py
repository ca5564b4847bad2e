"""Search by steps, against models whose p(success) is known exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest

from align.pipeline.recipe import parse_recipe
from pts.algorithm.bisect import search_bisect, split_point
from pts.algorithm.branch import search_branch
from pts.algorithm.paths import ScoredCompletion, split_blocks
from pts.algorithm.question import search_question
from pts.algorithm.siblings import PathAnalysis
from pts.algorithm.tails import HEAD
from pts.config import SamplingConfig, SearchConfig, parse_settings
from pts.engines.base import SampleRequest
from pts.engines.tabular import (
    CLOSING,
    RIGHT,
    STOP,
    WRONG,
    Arc,
    Machine,
    TabularEngine,
    TabularVerifier,
)
from pts.errors import ConfigError
from pts.report.page import report_data
from pts.report.text import question
from pts.runtime.results import read_results
from pts.runtime.run_folder import RunFolder
from pts.runtime.search import reselect, search
from pts.testing import run_search
from pts.testing.shapes import MAIN, cancelling, sparse
from pts.types import (
    CompletionResult,
    Ids,
    LogprobQuery,
    Rollout,
    RolloutQuery,
    StepQuery,
    TokenDistribution,
    Verdict,
)

from .test_bisect import drive as drive_bisect
from .test_branch import drive, planted_path

CONFIG = SearchConfig(unit="step", max_rollouts=1200)


# Blocks


def test_blocks_are_steps_and_the_steps_between_them() -> None:
    # Steps (0,2] (2,3] (3,5] (5,6]: followed with .81, .95, .5 * .9 and .97.
    exit_prob = np.array([0.1, 0.1, 0.05, 0.5, 0.1, 0.03])
    blocks = split_blocks(exit_prob, 0.2, (2, 3, 5, 6))
    assert [(b.start, b.end, b.candidate) for b in blocks] == [
        (0, 3, False),
        (3, 5, True),
        (5, 6, False),
    ]
    assert [b.exit_prob for b in blocks] == pytest.approx([1 - 0.81 * 0.95, 1 - 0.45, 0.03])


def test_a_step_of_likely_tokens_is_a_candidate_by_their_product() -> None:
    exit_prob = np.full(10, 0.05)  # none by itself can move p by .2; 1 - .95^5 = .226
    assert [(b.start, b.end) for b in split_blocks(exit_prob, 0.2, (5, 10)) if b.candidate] == [
        (0, 5),
        (5, 10),
    ]
    assert not [b for b in split_blocks(exit_prob, 0.2) if b.candidate]


@pytest.mark.parametrize("ends", [(1,), (1, 1, 2), (2, 1), (0, 2), (1, 3)])
def test_units_must_fill_the_path(ends: tuple[int, ...]) -> None:
    row = TokenDistribution(np.array([7, 8]), np.array([0.9, 0.1]))
    with pytest.raises(ValueError, match="units must end in order, up to 2"):
        ScoredCompletion((7, 7), Verdict.PASS, (row, row), ends)


# `branch`


def path_of(ends: tuple[int, ...], q: float = 0.5) -> ScoredCompletion:
    row = TokenDistribution(np.array([7, 8]), np.array([q, 1 - q]))
    return ScoredCompletion((7,) * ends[-1], Verdict.PASS, (row,) * ends[-1], ends)


def test_deltas_follow_the_recursion_over_steps() -> None:
    # Siblings fail, the path passes: p = .6^4, .6^2, 1 at the ends of the steps.
    config = SearchConfig(unit="step", max_rollouts=4000, indifference_margin=0.01)
    finding, _ = drive(
        search_branch(path_of((2, 4), 0.6), [], config, np.random.default_rng(0)), lambda at: False
    )
    first, second = finding.result.steps
    assert (first.start, first.end, first.ids) == (0, 2, (7, 7))
    assert (second.start, second.end) == (2, 4)
    assert first.prob == pytest.approx(0.36)
    assert first.delta.mean == pytest.approx(0.36 - 0.1296, abs=0.03)
    assert second.delta.mean == pytest.approx(0.64, abs=0.03)
    assert second.after.method == "exact"
    assert (finding.result.curve_at, finding.result.tokens) == ((0, 2, 4), ())


def test_a_step_is_left_anywhere_within_it() -> None:
    # Left at its first token (prob .5) it passes, at its second (.25) it fails: D = 2/3 and
    # p = .25 + .75 * 2/3 = .75 before it.
    config = SearchConfig(unit="step", max_rollouts=3000, indifference_margin=0.01)
    finding, _ = drive(
        search_branch(path_of((2,)), [], config, np.random.default_rng(0)), lambda at: len(at) == 1
    )
    (step,) = finding.result.steps
    assert step.before.mean == pytest.approx(0.75, abs=0.03)
    assert step.delta.mean == pytest.approx(0.25, abs=0.03)


def test_all_rollouts_of_a_path_are_the_search_s() -> None:
    finding, rounds = drive(
        search_branch(
            path_of((1, 2, 3)),
            [],
            SearchConfig(unit="step", max_rollouts=40, indifference_margin=0.01),
            np.random.default_rng(0),
        ),
        lambda at: len(at) % 2 == 0,
    )
    assert finding.result.stopped == "budget"
    assert sum(query.n for queries in rounds for query in queries) == 40


def random_ends(length: int, rng: np.random.Generator) -> tuple[int, ...]:
    ends = list(np.cumsum(rng.integers(4, 20, length)))
    return (*(int(e) for e in ends if e < length), length)


def planted_steps(shape: Any, seed: int) -> tuple[TabularEngine, ScoredCompletion]:
    rng = np.random.default_rng(seed)
    engine, path = planted_path(shape(rng))
    return engine, ScoredCompletion(
        path.ids, path.verdict, path.rows, random_ends(len(path.ids), rng)
    )


def found_in(engine: TabularEngine, path: ScoredCompletion, seed: int) -> CompletionResult:
    steps = search_branch(path, [], CONFIG, np.random.default_rng(seed))
    finding: PathAnalysis = run_search(steps, engine, engine.problems()[0], TabularVerifier(), seed)
    return finding.result


def changes(engine: TabularEngine, path: ScoredCompletion) -> dict[int, float]:
    """Exact change of p at each step, by its start."""
    p, edges = engine.curve(path.ids), (0, *path.ends)
    return {a: p[b] - p[a] for a, b in pairwise(edges)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [sparse, cancelling])
def test_pivotal_steps_are_found_and_nothing_else(shape: Any, seed: int) -> None:
    engine, path = planted_steps(shape, seed)
    true, result = changes(engine, path), found_in(engine, path, seed)
    assert {step.start for step in result.steps} >= {a for a, d in true.items() if abs(d) >= 0.3}
    for step in result.steps:
        assert step.end in path.ends
        assert abs(true[step.start]) >= 0.15
        assert np.sign(true[step.start]) == np.sign(step.delta.mean)
    assert set(result.curve_at) <= {0, *path.ends}


def test_intervals_of_step_ends_cover_the_truth() -> None:
    """Nominal 95 %; with 12 paths of some 8 blocks each, .87 is 3.5 standard errors below."""
    hits = total = 0
    for seed in range(12):
        engine, path = planted_steps(sparse, 100 + seed)
        p, result = engine.curve(path.ids), found_in(engine, path, seed)
        points = zip(result.curve_at, result.curve, strict=True)
        covered = [e.low - 1e-9 <= p[at] <= e.high + 1e-9 for at, e in points if e.n]
        hits, total = hits + sum(covered), total + len(covered)
    assert total > 80
    assert hits / total >= 0.87


def test_opposite_changes_inside_one_step_cancel() -> None:
    engine, path = planted_path(cancelling(np.random.default_rng(0)))
    p = np.array(engine.curve(path.ids))
    jumps = [int(i) for i in np.flatnonzero(np.abs(np.diff(p)) >= 0.25) if i < 90]
    up, down = jumps[:2]
    assert abs(p[down + 1] - p[up]) < 0.1
    path = ScoredCompletion(path.ids, path.verdict, path.rows, (up, down + 1, len(path.ids)))
    assert up not in {step.start for step in found_in(engine, path, 0).steps if step.decided}


# `bisect`


def test_split_after_the_step_that_reaches_half_the_surprise() -> None:
    # -log2 π: 1, 1, 4, 1, 1 -> total 8. Half is reached within the step (1, 4].
    probs = [0.5, 0.5, 1 / 16, 0.5, 0.5]
    assert split_point(probs, 0, 5, [1, 4]) == 4
    assert split_point(probs, 0, 5, [1, 2]) == 2, "the last step alone holds half"
    assert split_point([1.0] * 9, 0, 9, [1, 2, 3]) == 2, "two of four steps"


def test_bisect_measures_ends_of_steps_only() -> None:
    path = path_of((2, 5, 6, 8))
    config = SearchConfig(unit="step", method="bisect", bisect_rollouts=100)
    levels = [0.4] * 3 + [0.7] * 2 + [1.0] * 4  # p rises by .6 inside the step (2, 5]
    (finding,), asked = drive_bisect(search_bisect([path], config), lambda at: levels[len(at)])
    assert [[len(s.prefix) for s in queries] for queries in asked] == [[0], [5], [2]]
    (step,) = finding.result.steps
    assert (step.start, step.end, step.decided) == (2, 5, True)
    assert step.delta.mean == pytest.approx(0.6)
    assert step.prob == pytest.approx(1 / 8)
    assert finding.result.tokens == ()
    assert finding.screening == 0


# Whole questions, with text

TEXTS = {STOP: "<stop>", RIGHT: " right", WRONG: " wrong", 3: "Add", 4: "Guess", 5: " it."}
TEXTS |= {6: " Then", 7: " Or"}


def answer(p: float) -> list[Arc]:
    return [Arc(RIGHT, p, CLOSING), Arc(WRONG, 1 - p, CLOSING)]


# "Add it." or "Guess it.", then "Then" or "Or" and an answer.
TALK = Machine(
    [
        [Arc(3, 0.5, 1), Arc(4, 0.5, 2)],
        [Arc(5, 1.0, 3)],
        [Arc(5, 1.0, 4)],
        [Arc(6, 0.9, 5), Arc(7, 0.1, 6)],
        [Arc(6, 0.9, 7), Arc(7, 0.1, 8)],
        answer(0.9),
        answer(0.5),
        answer(0.3),
        answer(0.1),
    ]
)
ADDED, GUESSED = 0.9 * 0.9 + 0.1 * 0.5, 0.9 * 0.3 + 0.1 * 0.1  # .86 and .28


class Talking(TabularEngine):
    """Sentences; stops after `patience` queries, as a machine does that is switched off."""

    def __init__(self, patience: float = math.inf) -> None:
        super().__init__([TALK] * 6, SamplingConfig(max_new_tokens=8))
        self.patience = patience

    def token_texts(self, ids: Ids) -> list[str]:
        return [TEXTS.get(i, f"<{i}>") for i in ids]

    def sample(
        self, queries: Iterator[SampleRequest | None]
    ) -> Iterator[tuple[SampleRequest, list[Ids]]]:
        for answered in super().sample(queries):
            self.patience -= 1
            if self.patience < 0:
                raise RuntimeError("switched off")
            yield answered


def talked(output: FilePath | None = None, patience: float = math.inf, **settings: Any) -> Any:
    engine = Talking(patience)
    config = SearchConfig(unit="step", p_min=0.05, p_max=0.95, paths=2, **settings)
    return search(
        engine.problems(), engine, TabularVerifier(), config, output=output, progress=False
    )


@pytest.mark.parametrize("settings", [{}, {"method": "bisect", "bisect_rollouts": 300}])
def test_a_search_reports_sentences(settings: dict[str, Any]) -> None:
    run, reported = talked(**settings), set()
    for result in run.results:
        for path in result.paths:
            whole = ADDED if path.ids[0] == 3 else GUESSED
            true = {0: whole - (ADDED + GUESSED) / 2, 2: path.curve[-1].mean - whole}
            for step in path.steps:
                assert step.ids == path.ids[step.start : step.end]
                assert (step.start, step.end) in {(0, 2), (2, 5)}
                assert step.delta.mean == pytest.approx(true[step.start], abs=0.15)
                reported.add((path.ids[0], step.start, bool(step.delta.mean > 0)))
    assert {(3, 0, True), (4, 0, False), (3, 2, False), (4, 2, True)} <= reported
    pivots = [s.decided for r in run.results for path in r.paths for s in path.steps]
    assert run.summary.pivotal == sum(pivots) > 0
    assert run.pairs == []
    assert not run.summary.proposed
    assert "confirm" not in run.summary.spent


def test_boundaries_are_asked_for_once_rows_are_there() -> None:
    config = SearchConfig(unit="step", filter_rollouts=2)
    steps = search_question("q", (1,), 9, config, 0, None, frozenset({0}))
    next(steps)
    passed, failed = (Rollout((7, v), Verdict("pass" if v else "fail"), False, 2) for v in (1, 0))
    assert steps.send([[failed, passed]]) == [LogprobQuery((7, 0), HEAD)]
    row = TokenDistribution(np.array([7, 8, 0]), np.array([0.5, 0.3, 0.2]))
    assert steps.send([[row, row]]) == [StepQuery((7, 0))]
    queries = steps.send([[1, 2]])
    assert {type(query) for query in queries} == {RolloutQuery}


@pytest.mark.parametrize("patience", [1, 9, 25])
def test_a_search_that_is_cut_off_ends_with_the_same_bytes(
    patience: int, tmp_path: FilePath
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    talked(whole)
    with pytest.raises(RuntimeError, match="switched off"):
        talked(cut, patience)
    run = talked(cut)
    for name in ("results.jsonl", "token_texts.json", "pairs.jsonl"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert list(read_results(cut / "results.jsonl")) == list(run.results)


def test_steps_are_shown(tmp_path: FilePath) -> None:
    talked(tmp_path)
    folder = RunFolder(tmp_path)
    shown = {q["id"]: q for q in report_data(folder)["questions"]}
    with pytest.raises(ConfigError, match="searched steps, which make no pairs"):
        reselect(folder)
    for record in folder.records:
        text = "\n".join(question(folder, record.result.problem_id))
        for k, path in enumerate(record.result.paths):
            drawn = shown[record.result.problem_id]["paths"][k]["steps"]
            assert [(s["start"], s["end"]) for s in drawn] == [(s.start, s.end) for s in path.steps]
            for step in path.steps:
                sentence = folder.text(step.ids)
                assert f"⟦{sentence} {step.delta.mean:+.2f}⟧" in text
                assert f"pivotal {sentence!r} at {step.start} to {step.end - 1}: q" in text
                drawn_there = [
                    n for at in range(step.start, step.end) for *_, n in path.siblings.get(at, ())
                ]
                assert f"/{sum(drawn_there)}" in text


# Settings


def test_at_unit_step_there_is_path_alone() -> None:
    assert SearchConfig(unit="step").criteria == ("path",)
    assert SearchConfig().criteria == ("path", "fork")
    again = SearchConfig.model_validate(SearchConfig(unit="step").model_dump())
    assert again == SearchConfig(unit="step")
    with pytest.raises(ConfigError, match=r"x\.yaml: criteria cannot name 'fork' at unit 'step'"):
        parse_settings(SearchConfig, {"unit": "step", "criteria": ["path", "fork"]}, "x.yaml")


def test_a_recipe_cannot_train_on_steps() -> None:
    recipe = {"name": "x", "model": {"path": "x"}, "task": {"kind": "word_problems"}}
    with pytest.raises(ConfigError, match=r"pts\.search: unit: 'step' makes no pairs"):
        parse_recipe({**recipe, "pts": {"search": {"unit": "step"}}}, "x.yaml")


def test_tokens_are_searched_as_before() -> None:
    instance = sparse(np.random.default_rng(0))
    assert instance.path is not None
    assert set(instance.path[:-2]) == {MAIN}
    _, path = planted_path(instance)
    assert path.ends == tuple(range(1, len(path.ids) + 1))
