"""`pts.search`: files, resuming, set-aside questions, totals, selecting pairs again."""

from __future__ import annotations

import dataclasses
import functools
import gc
import io
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from pts.algorithm.selection import select_pairs
from pts.config import SamplingConfig, SearchConfig
from pts.data.pairs import read_pairs
from pts.engines.base import Engine
from pts.engines.tabular import TabularEngine, TabularVerifier
from pts.errors import ConfigError, DataError, JournalError
from pts.runtime.described import describe_verifier
from pts.runtime.progress import LOG_SECONDS, ProgressReporter, describe, duration
from pts.runtime.results import read_results
from pts.runtime.run_folder import RunFolder
from pts.runtime.scheduler import Progress, _Question, run
from pts.runtime.search import SearchRun, reselect, search
from pts.testing.shapes import sparse
from pts.types import Grade, Problem, RolloutQuery, Verdict
from pts.verifiers.callable import CallableVerifier
from pts.verifiers.choice import ChoiceVerifier
from pts.verifiers.exact import ExactVerifier

from .scripted import ScriptedEngine, judge_odd, problems
from .slow_search import CONFIG
from .test_runner import sample_once

FILES = {
    "journal.jsonl",
    "results.jsonl",
    "rollouts.jsonl",
    "pairs.jsonl",
    "token_texts.json",
    "summary.json",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SearchRun:
    folder = tmp_path_factory.mktemp("run")
    return search(problems(6), ScriptedEngine(8), judge_odd, CONFIG, output=folder)


def test_a_run_writes_its_files(finished: SearchRun) -> None:
    assert finished.output is not None
    assert {path.name for path in finished.output.iterdir()} == FILES
    assert [r.problem_id for r in finished.results] == [p.id for p in problems(6)]
    assert read_pairs(finished.output / "pairs.jsonl") == finished.pairs != []
    assert list(read_results(finished.output / "results.jsonl")) == list(finished.results)
    summary = json.loads((finished.output / "summary.json").read_text())
    assert summary == dataclasses.asdict(finished.summary)


def test_without_output_the_results_are_the_same(finished: SearchRun) -> None:
    run = search(problems(6), ScriptedEngine(8, width=5), judge_odd, CONFIG, window=3)
    assert list(run.results) == list(finished.results)
    assert run.pairs == finished.pairs
    same = dataclasses.replace(finished.summary, seconds=run.summary.seconds)
    assert run.summary == same
    assert run.output is None


def test_totals_are_those_of_the_results(finished: SearchRun) -> None:
    results, summary = list(finished.results), finished.summary
    assert sum(summary.questions.values()) == 6
    for purpose, tally in summary.spent.items():
        costs = [result.cost[purpose] for result in results if purpose in result.cost]
        assert tally.rollouts == sum(cost.rollouts for cost in costs)
        assert tally.tokens == sum(cost.tokens for cost in costs)
    assert sum(summary.confirmed.values()) == len(finished.pairs)
    assert sum(summary.proposed.values()) >= len(finished.pairs)
    assert 0 < summary.truncated_share < 1


def test_a_finished_run_draws_nothing_and_problems_may_be_added(tmp_path: Path) -> None:
    search(problems(4), ScriptedEngine(8), judge_odd, CONFIG, output=tmp_path)
    engine = ScriptedEngine(8)
    search(problems(4), engine, judge_odd, CONFIG, output=tmp_path)
    assert engine.requests == []
    more = search(problems(6), engine, judge_odd, CONFIG, output=tmp_path)
    assert {request.prompt for request in engine.requests} == {
        engine.encode(p) for p in problems(6)[4:]
    }
    whole = search(problems(6), ScriptedEngine(8), judge_odd, CONFIG)
    assert list(more.results) == list(whole.results)
    assert more.pairs == whole.pairs


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 1}, "seed: the journal has 0, this run 1"),
        ({"config": SearchConfig()}, "config.max_rollouts"),
        ({"engine": ScriptedEngine(9)}, "sampling.max_new_tokens: the journal has 8, this run 9"),
        ({"verifier": ChoiceVerifier("AB")}, "verifier: the journal has 'judge_odd"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    finished: SearchRun, change: dict[str, Any], field: str
) -> None:
    settings: dict[str, Any] = {"engine": ScriptedEngine(8), "verifier": judge_odd}
    settings |= {"config": CONFIG, "seed": 0, "output": finished.output, **change}
    with pytest.raises(JournalError, match=re.escape(field)):
        search(problems(6), **settings)


def test_other_stop_ids_in_the_same_folder_are_refused(finished: SearchRun) -> None:
    engine = ScriptedEngine(8)
    engine.stop_ids = frozenset({0, 3})
    with pytest.raises(JournalError, match=r"stop_ids: the journal has \[0\], this run \[0, 3\]"):
        search(problems(6), engine, judge_odd, CONFIG, output=finished.output)


@pytest.mark.parametrize(
    "change", [{"prompt": "bb"}, {"reference": "even"}, {"metadata": {"level": 2}}]
)
def test_another_question_under_a_finished_one_s_id_is_refused(
    finished: SearchRun, change: dict[str, Any]
) -> None:
    """As when a row is put into a file whose ids are its line numbers."""
    asked = problems(6)
    asked[2] = dataclasses.replace(asked[2], **change)
    with pytest.raises(JournalError, match="question 'q2' has changed since it was searched"):
        search(asked, ScriptedEngine(8), judge_odd, CONFIG, output=finished.output)


def test_what_was_written_of_a_smaller_run_does_not_pass_for_the_larger(tmp_path: Path) -> None:
    """Totals and pairs of four questions are gone as soon as a fifth has its result."""
    search(problems(4), ScriptedEngine(8), judge_odd, CONFIG, output=tmp_path)

    def interrupted() -> Iterator[Problem]:
        yield from problems(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(interrupted(), ScriptedEngine(8), judge_odd, CONFIG, output=tmp_path, window=1)
    folder = RunFolder(tmp_path)
    assert len(folder.records) == 5
    assert (folder.summary, tuple(folder.each_pair)) == (None, ())
    whole = search(problems(6), ScriptedEngine(8), judge_odd, CONFIG, output=tmp_path)
    assert whole.pairs == search(problems(6), ScriptedEngine(8), judge_odd, CONFIG).pairs


def test_some_questions_of_a_finished_run_leave_its_files_alone(tmp_path: Path) -> None:
    search(problems(6), ScriptedEngine(8), judge_odd, CONFIG, output=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    search(problems(6)[3:1:-1], ScriptedEngine(8), judge_odd, CONFIG, output=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_can_be_iterated_only_once_must_not_claim_a_length() -> None:
    class Once:
        def __init__(self) -> None:
            self.left = iter(problems(2))

        def __len__(self) -> int:
            return 2

        def __iter__(self) -> Iterator[Problem]:
            return self.left

    with pytest.raises(DataError, match="2 problems were announced, 0 came"):
        search(Once(), ScriptedEngine(8), judge_odd, CONFIG)
    with pytest.raises(ConfigError, match="window must be at least 1, got 0"):
        search(problems(2), ScriptedEngine(8), judge_odd, CONFIG, window=0)


def test_an_engine_that_says_its_context_refuses_prompts_beforehand() -> None:
    engine = ScriptedEngine(8)
    engine.max_model_len = 2000  # type: ignore[attr-defined]
    asked = [*problems(2), Problem("long", "a" * 1993, "odd"), Problem("fits", "a" * 1992, "odd")]
    with pytest.raises(DataError) as caught:
        search(asked, engine, judge_odd, CONFIG)
    assert "problem 'long': its prompt has 1993 tokens" in str(caught.value)
    assert "fits" not in str(caught.value)
    assert engine.requests == []


def test_a_class_of_engines_is_a_function_that_loads_one() -> None:
    run = search(problems(2), ScriptedEngine, judge_odd, CONFIG)
    assert sum(run.summary.questions.values()) == 2


def test_a_wrapper_that_passes_attributes_on_is_an_engine() -> None:
    class Wrapped:
        def __init__(self) -> None:
            self.inner = ScriptedEngine(8)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    run = search(problems(2), cast(Engine, Wrapped()), judge_odd, CONFIG)
    assert sum(run.summary.questions.values()) == 2


def test_results_without_their_journal_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(JournalError, match="without the journal"):
        search(problems(1), ScriptedEngine(), judge_odd, CONFIG, output=tmp_path)


@pytest.mark.parametrize("journal", ["", "half a li", '{"q":"q0","d":"x"}\n', "not JSON\n"])
def test_results_whose_journal_lost_its_first_line_are_refused(
    finished: SearchRun, tmp_path: Path, journal: str
) -> None:
    """They may be of another policy or seed: nothing says of which."""
    folder = Path(shutil.copytree(finished.output or "", tmp_path / "run"))
    (folder / "journal.jsonl").write_text(journal)
    with pytest.raises(JournalError, match="or without its first line; restore it, or use another"):
        search(problems(6), ScriptedEngine(8), judge_odd, CONFIG, output=folder, seed=7)
    assert (folder / "journal.jsonl").read_text() == journal


@pytest.mark.parametrize("texts", [None, "{]", '{"1": 2}'])
def test_token_texts_that_are_gone_or_damaged_are_written_again(
    finished: SearchRun, tmp_path: Path, texts: str | None
) -> None:
    folder = Path(shutil.copytree(finished.output or "", tmp_path / "run"))
    file, others = folder / "token_texts.json", FILES - {"token_texts.json"}
    whole, before = file.read_bytes(), {name: (folder / name).read_bytes() for name in others}
    file.unlink() if texts is None else file.write_text(texts)
    search(problems(6), ScriptedEngine(8), judge_odd, CONFIG, output=folder)
    assert file.read_bytes() == whole
    assert {name: (folder / name).read_bytes() for name in others} == before


def test_repeated_ids_are_refused_even_when_finished(finished: SearchRun) -> None:
    with pytest.raises(DataError, match="two problems have the id 'q0'"):
        search(
            [*problems(1), *problems(1)],
            ScriptedEngine(8),
            judge_odd,
            CONFIG,
            output=finished.output,
        )


def test_a_question_that_cannot_be_judged_ends_as_unscored() -> None:
    def verifier(problem: Problem, text: str) -> Grade:
        if problem.id == "q1":
            raise OSError("no reference")
        return judge_odd(problem, text)

    done = search(problems(3), ScriptedEngine(8), verifier, CONFIG)
    results = {result.problem_id: result for result in done.results}
    assert results["q1"].status == "unscored"
    assert results["q1"].redrawn > 0
    assert results["q1"].paths == ()
    assert done.summary.questions["unscored"] == 1
    assert done.summary.redrawn == results["q1"].redrawn
    assert results["q0"].status != "unscored"


def test_an_interrupted_run_has_its_token_texts(tmp_path: Path) -> None:
    def stream() -> Any:
        yield from problems(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(stream(), ScriptedEngine(8), judge_odd, CONFIG, output=tmp_path, window=1)
    folder = RunFolder(tmp_path)
    (first, *_) = [record.result for record in folder.records]
    assert "⟨" not in folder.text(first.prompt_ids)
    assert folder.summary is None
    assert folder.pairs == []


def test_a_finished_run_is_put_into_another_order_of_its_problems(tmp_path: Path) -> None:
    search(problems(6), ScriptedEngine(8), judge_odd, CONFIG, output=tmp_path)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    backwards = problems(6)[::-1]
    again = search(backwards, ScriptedEngine(8), judge_odd, CONFIG, output=tmp_path)
    assert (tmp_path / "results.jsonl").read_text().splitlines() == lines[::-1]
    assert [result.problem_id for result in again.results] == [p.id for p in backwards]


def test_the_tabular_engine_is_searched_the_same_in_any_window() -> None:
    machines = [sparse(np.random.default_rng(k), 40).machine for k in range(4)]
    engine = TabularEngine(machines, SamplingConfig(max_new_tokens=64))
    runs = [search(engine.problems(), engine, TabularVerifier(), window=w) for w in (1, 8)]
    assert list(runs[0].results) == list(runs[1].results)
    assert runs[0].summary.questions["searched"] > 0


def test_memory_does_not_grow_with_the_number_of_questions() -> None:
    searches = ((p, sample_once(RolloutQuery((), 2, "search"))) for p in problems(300))
    for count, _ in enumerate(run(searches, ScriptedEngine(width=4), judge_odd, window=8)):
        if count % 100 == 99:
            gc.collect()
            alive = sum(type(thing) is _Question for thing in gc.get_objects())
            assert alive <= 8, "no more than the window"


# Selecting again


def test_selecting_again_with_the_run_s_settings_changes_nothing(finished: SearchRun) -> None:
    assert reselect(RunFolder(finished.output or "")) == finished.pairs


def test_another_error_rate_and_a_larger_gap_select_fewer(finished: SearchRun) -> None:
    folder = RunFolder(finished.output or "")
    keys = {(p.prompt_ids, p.chosen, p.rejected) for p in finished.pairs}
    for changes in ({"fdr": 1e-6}, {"p_gap": 0.6}):
        fewer = reselect(folder, **changes)  # type: ignore[arg-type]
        assert {(p.prompt_ids, p.chosen, p.rejected) for p in fewer} < keys
    strict = CONFIG.model_copy(update={"fdr": 1e-6})
    assert reselect(folder, fdr=1e-6) == select_pairs(finished.results, strict, "scripted")


def test_selecting_again_refuses_what_was_never_measured(finished: SearchRun) -> None:
    folder = RunFolder(finished.output or "")
    with pytest.raises(ConfigError, match=r"p_gap 0.1 is below the run's own 0.2"):
        reselect(folder, p_gap=0.1)
    with pytest.raises(ConfigError, match=r"fdr: got 2; input should be less than 1"):
        reselect(folder, fdr=2)


# Fingerprint and progress


def test_verifiers_are_told_apart_by_class_and_settings() -> None:
    assert describe_verifier(judge_odd).startswith("judge_odd() #")
    assert "options='ABC'" in describe_verifier(ChoiceVerifier("ABC"))
    first, second = ExactVerifier(r"= (\d+)"), ExactVerifier(r"is (\d+)")
    assert describe_verifier(first) != describe_verifier(second)
    assert describe_verifier(first) == describe_verifier(ExactVerifier(r"= (\d+)"))
    assert "0x" not in describe_verifier(first)


LEAST = 2


def make_judge(least: int, counted: list[str]) -> Callable[[Problem, str], bool]:
    calls = 0

    def judge(problem: Problem, text: str) -> bool:
        nonlocal calls
        calls += 1
        counted.append(text)
        return len(text) >= max(least, LEAST)

    return judge


def described(function: Callable[..., Any]) -> str:
    return describe_verifier(CallableVerifier(function))


def test_functions_are_told_apart_by_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert described(lambda problem, text: "right" in text) != described(lambda p, t: "wrong" in t)
    same = [
        lambda problem, text: "right" in text,
        lambda problem, text: (
            # another layout
            "right" in text
        ),
    ]
    assert described(same[0]) == described(same[1])
    counted: list[str] = []
    judge = make_judge(3, counted)
    before = described(judge)
    judge(Problem("q", "", ""), "abc")  # what it counts is no other verifier
    assert described(judge) == before == described(make_judge(3, []))
    assert described(make_judge(4, counted)) != before  # what it was made with is
    assert described(functools.partial(judge_length, 3)) != described(
        functools.partial(judge_length, 4)
    )
    monkeypatch.setitem(globals(), "LEAST", 5)
    assert described(judge) != before  # and so is a constant that it reads
    right, wrong = (described(make_judge_of(words)) for words in (["right"], ["wrong"]))
    assert right == described(make_judge_of(["right"])) != wrong


def make_judge_of(words: list[str]) -> Callable[[Problem, str], bool]:
    return lambda problem, text: any(word in text for word in words)


def judge_length(least: int, problem: Problem, text: str) -> bool:
    return len(text) >= least


def test_classes_of_ones_own_are_told_apart_by_their_code() -> None:
    class Judge:
        def __call__(self, problem: Problem, text: str) -> Grade:
            return Grade(Verdict.PASS)

    before = describe_verifier(Judge())
    assert before == describe_verifier(Judge())

    class Words(Judge):
        def __init__(self, words: Iterable[str]) -> None:
            self.words = words
            self._cache = [*words]

    told = [describe_verifier(Words(words)) for words in ({"a", "b"}, {"b", "a"}, ["a", "c"])]
    assert told[0] == told[1] != told[2]
    many = [describe_verifier(Words([str(k) for k in range(n)])) for n in (100, 101, 20_000)]
    assert len({*many}) == 3
    assert max(map(len, many)) < 300
    inherited = Words(["a"])
    inherited._cache.append("b")
    assert describe_verifier(inherited) == describe_verifier(Words(["a"]))
    Judge.__call__ = lambda self, problem, text: Grade(Verdict.FAIL)  # type: ignore[method-assign]
    assert describe_verifier(Judge()) != before
    assert describe_verifier(Words({"a", "b"})) != told[0]
    assert "#" not in describe_verifier(ExactVerifier(r"= (\d+)"))


def test_a_run_does_not_go_on_with_another_function(tmp_path: Path) -> None:
    def go(function: Callable[[Problem, str], bool]) -> SearchRun:
        verifier = CallableVerifier(function)
        return search(problems(2), ScriptedEngine(8), verifier, CONFIG, output=tmp_path)

    go(lambda problem, text: text.endswith("1"))
    go(lambda problem, text: text.endswith("1"))
    with pytest.raises(
        JournalError, match=r"verifier: the journal has 'CallableVerifier\(function="
    ):
        go(lambda problem, text: text.endswith("0"))


def test_progress_tells_done_rate_and_rest() -> None:
    line = describe(Progress(questions=5, rollouts=1200, replayed=7, tokens=30_000), 20, 60.0)
    assert line.startswith("5/20 questions · 1,200 rollouts · 7 from the journal")
    assert "30,000 tokens (500/s)" in line
    assert line.endswith("3m00s left"), "15 questions at 12 s each"
    assert [duration(s) for s in (5, 185, 7620)] == ["5s", "3m05s", "2h07m"]


def test_progress_is_silent_off_a_terminal_and_logs_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    screen, now = io.StringIO(), [0.0]
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    caplog.set_level(logging.INFO)
    with ProgressReporter(10) as watch:
        for second in range(round(2.5 * LOG_SECONDS)):
            now[0] = float(second)
            watch(Progress(questions=1))
    assert screen.getvalue() == ""
    assert len(caplog.records) == 2


def test_verdicts_are_asked_once_for_each_text() -> None:
    asked: list[str] = []

    def verifier(problem: Problem, text: str) -> Grade:
        asked.append(text)
        return Grade(Verdict.PASS)

    list(
        run(
            [(problems(1)[0], sample_once(RolloutQuery((), 300, "search")))],
            ScriptedEngine(4),
            verifier,
        )
    )
    assert len(asked) == len(set(asked))
