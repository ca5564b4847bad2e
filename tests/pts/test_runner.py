"""The runner: order, limits, seeds, redraws, the window, the engine's contract."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pts.engines.base import SampleRequest
from pts.errors import DataError, EngineError, UnscorableError, VerifierError, told
from pts.runtime.journal import Journal
from pts.runtime.scheduler import Finished, Progress, SearchRoutine, SkippedQuestion, run
from pts.types import (
    Grade,
    Ids,
    LogprobQuery,
    Problem,
    Rollout,
    RolloutQuery,
    TokenDistribution,
    Verdict,
)

from .scripted import NEXT, STOP, ScriptedEngine, judge_odd, problems

Rollouts = list[Rollout]


def sample_once(request: RolloutQuery) -> SearchRoutine[Rollouts]:
    (rollouts,) = yield [request]
    return rollouts  # type: ignore[return-value]


def two_rounds() -> SearchRoutine[list[Any]]:
    """Two requests of different length, then one at a place that the first round chose."""
    first, second = yield [RolloutQuery((), 5, "filter"), RolloutQuery((1,), 3, "search")]
    (third,) = yield [RolloutQuery(first[0].ids[:1], 4, "confirm")]
    return [first, second, third]


def results(finished: Iterable[Finished[Any]]) -> dict[str, Any]:
    return {done.problem.id: done.result for done in finished}


def one(request: RolloutQuery, engine: ScriptedEngine, verifier: Any = judge_odd) -> Rollouts:
    (done,) = run([(problems(1)[0], sample_once(request))], engine, verifier)
    return done.result


def test_an_engine_s_error_names_the_question() -> None:
    class Short(ScriptedEngine):
        def sample(
            self, requests: Iterator[SampleRequest | None]
        ) -> Iterator[tuple[SampleRequest, list[Ids]]]:
            for request in requests:
                if request is not None:
                    raise EngineError(f"request {request.key}: too long")
            yield from ()

    with pytest.raises(EngineError, match="request 0: too long") as caught:
        one(RolloutQuery((), 2, "filter"), Short())
    assert caught.value.__notes__ == ["in the search of question 'q0'"]


def test_yields_are_answered_whole_and_in_order() -> None:
    first, second, third = results(run([(problems(1)[0], two_rounds())], *scene()))["q0"]
    assert [len(first), len(second), len(third)] == [5, 3, 4]


def scene(width: int = 1) -> tuple[ScriptedEngine, Any]:
    return ScriptedEngine(width=width), judge_odd


def test_results_do_not_depend_on_order_batching_or_window() -> None:
    def everything(width: int, window: int, reverse: bool) -> dict[str, Any]:
        asked = problems(9)[::-1] if reverse else problems(9)
        return results(run(((p, two_rounds()) for p in asked), *scene(width), window=window))

    alone = everything(1, 1, False)
    assert everything(7, 9, False) == alone
    assert everything(3, 4, True) == alone
    assert len(alone) == 9


def test_the_run_seed_the_question_the_place_and_the_purpose_change_the_noise() -> None:
    def rollouts(n: int = 40, **kw: Any) -> list[Ids]:
        steps = sample_once(RolloutQuery(kw.pop("at", ()), n, kw.pop("purpose", "search")))
        (done,) = run([(problems(9)[kw.pop("which", 0)], steps)], *scene(), **kw)
        return [(*rollout.ids, rollout.length) for rollout in done.result]

    plain = rollouts()
    assert plain == rollouts()
    assert plain[:10] == rollouts(n=10), "a larger n extends the same rollouts"
    for change in ({"seed": 1}, {"which": 1}, {"at": (1,)}, {"purpose": "confirm"}):
        assert rollouts(**change) != plain, change


def test_a_repeated_request_continues_the_index() -> None:
    def repeated() -> SearchRoutine[list[Rollouts]]:
        a, b = yield [RolloutQuery((), 3, "search"), RolloutQuery((), 3, "search")]
        (c,) = yield [RolloutQuery((), 3, "search")]
        return [a, b, c]  # type: ignore[list-item]

    (done,) = run([(problems(1)[0], repeated())], *scene(width=2))
    assert list(itertools.chain(*done.result)) == one(
        RolloutQuery((), 9, "search"), ScriptedEngine()
    )


def test_the_limit_is_on_the_whole_completion() -> None:
    engine = ScriptedEngine(max_new_tokens=6)
    one(RolloutQuery((1, 2), 2, "search"), engine)
    assert [request.max_tokens for request in engine.requests] == [4]


def test_a_completion_that_fills_the_limit_without_stopping_fails_unasked() -> None:
    asked = []

    def verifier(problem: Problem, text: str) -> Grade:
        asked.append(text)
        return Grade(Verdict.PASS)

    rollouts = one(RolloutQuery((), 60, "filter"), ScriptedEngine(max_new_tokens=2), verifier)
    cut = [rollout for rollout in rollouts if rollout.ids[-1] != STOP]
    assert cut
    assert all(o.truncated and o.verdict is Verdict.FAIL and o.length == 2 for o in cut)
    stopped = [rollout for rollout in rollouts if rollout.ids[-1] == STOP]
    assert stopped
    assert all(not o.truncated and o.verdict is Verdict.PASS for o in stopped)
    assert all(len(text) == 1 for text in asked), "a letter and the stop, never two letters"


@pytest.mark.parametrize(
    ("at", "verdict", "truncated"),
    [
        ((1, STOP), Verdict.PASS, False),
        ((2, STOP), Verdict.FAIL, False),
        ((1, 1, 1, 1, 1, 1), Verdict.FAIL, True),
        ((1, 1, 1, 1, 1, STOP), Verdict.PASS, False),
    ],
)
def test_finished_prefixes_are_judged_without_sampling(
    at: Ids, verdict: Verdict, truncated: bool
) -> None:
    engine = ScriptedEngine(max_new_tokens=6)
    (done,) = run([(problems(1)[0], sample_once(RolloutQuery(at, 3, "search")))], engine, judge_odd)
    assert done.result == [Rollout((), verdict, truncated, 0)] * 3
    assert done.spent == {}
    assert engine.requests == []


def test_only_filter_outcomes_keep_all_their_tokens() -> None:
    filtered = one(RolloutQuery((), 30, "filter"), ScriptedEngine())
    searched = one(RolloutQuery((), 30, "search"), ScriptedEngine())
    assert all(len(rollout.ids) == rollout.length for rollout in filtered)
    assert all(len(rollout.ids) == 1 for rollout in searched)
    assert max(rollout.length for rollout in searched) > 1


def test_scores_are_answered_in_their_slot() -> None:
    def steps() -> SearchRoutine[list[Any]]:
        answers = yield [
            RolloutQuery((), 2, "search"),
            LogprobQuery((1, 2)),
            RolloutQuery((1,), 1, "search"),
        ]
        return answers

    (done,) = run([(problems(1)[0], steps())], *scene())
    assert [len(answer) for answer in done.result] == [2, 2, 1]
    assert done.result[1][1].prob(2) == NEXT[1][2]


def test_spent_counts_rollouts_tokens_passes_and_cuts() -> None:
    (done,) = run([(problems(1)[0], sample_once(RolloutQuery((), 50, "filter")))], *scene())
    tally = done.spent["filter"]
    assert tally.rollouts == 50
    assert tally.tokens == sum(rollout.length for rollout in done.result)
    assert tally.passed == sum(rollout.success for rollout in done.result)
    assert tally.truncated == sum(rollout.truncated for rollout in done.result) > 0
    assert tally.unscored == 0


class Flaky:
    """Cannot judge its first `failures` completions."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.left, self.error = failures, error

    def __call__(self, problem: Problem, text: str) -> Grade:
        if self.left > 0:
            self.left -= 1
            if self.error is not None:
                raise self.error
            return Grade(Verdict.UNSCORED, reason="no worker")
        return judge_odd(problem, text)


def test_unscored_rollouts_are_drawn_again_and_counted() -> None:
    engine = ScriptedEngine(max_new_tokens=30)
    steps = sample_once(RolloutQuery((), 200, "search"))
    (done,) = run([(problems(1)[0], steps)], engine, Flaky(2, OSError("disk")))
    assert [len(request.seeds) for request in engine.requests] == [200, 2]
    assert not set(engine.requests[0].seeds) & set(engine.requests[1].seeds)
    assert done.spent["search"].unscored == 2
    assert done.spent["search"].rollouts == 202
    assert len(done.result) == 200
    assert Verdict.UNSCORED not in Counter(rollout.verdict for rollout in done.result)


@pytest.mark.parametrize(("failures", "aside"), [(2, False), (3, True), (10**6, True)])
def test_a_question_with_too_many_unscored_rollouts_is_set_aside(
    failures: int, aside: bool
) -> None:
    """100 rollouts and 2 redraws make a share below .02, 3 redraws one above."""
    closed = []

    def steps() -> SearchRoutine[str]:
        try:
            yield [RolloutQuery((), 100, "filter")]
            yield [RolloutQuery((), 1, "search")]
        except GeneratorExit:
            closed.append(True)
            raise
        return "searched"

    def on_set_aside(about: SkippedQuestion) -> str:
        assert about.reason == "no worker"
        assert about.spent["filter"].unscored >= 3
        return "aside"

    engine = ScriptedEngine(max_new_tokens=30)
    searches = [(problems(1)[0], steps())]
    (done,) = run(searches, engine, Flaky(failures), on_skip=on_set_aside)
    assert done.result == ("aside" if aside else "searched")
    assert bool(closed) == aside


def test_without_a_callback_a_hopeless_question_is_an_error_that_names_it() -> None:
    with pytest.raises(VerifierError, match=r"(?s)'q0'.*OSError: disk"):
        one(
            RolloutQuery((), 3, "filter"),
            ScriptedEngine(max_new_tokens=30),
            Flaky(10**6, OSError("disk")),
        )


def test_a_finished_prefix_that_cannot_be_judged_sets_the_question_aside() -> None:
    with pytest.raises(VerifierError, match="no worker"):
        one(RolloutQuery((1, STOP), 3, "filter"), ScriptedEngine(), Flaky(10**6))


def test_a_verifier_must_return_a_judgement() -> None:
    with pytest.raises(VerifierError, match=r"True.*CallableVerifier"):
        one(RolloutQuery((), 30, "filter"), ScriptedEngine(), lambda problem, text: True)


def test_the_stream_is_read_lazily_and_the_window_is_kept_full() -> None:
    started: list[str] = []
    most = 0

    def stream() -> Iterator[tuple[Problem, SearchRoutine[Rollouts]]]:
        for problem in problems(20):
            started.append(problem.id)
            yield problem, sample_once(RolloutQuery((), 2, "search"))

    for count, _ in enumerate(run(stream(), *scene(width=3), window=4)):
        most = max(most, len(started) - count)
    assert len(started) == 20
    assert most == 4


def test_generators_are_closed_when_the_consumer_stops() -> None:
    closed = []

    def steps(name: str) -> SearchRoutine[None]:
        try:
            while name != "q0":
                yield [RolloutQuery((), 1, "search")]
            yield [RolloutQuery((), 1, "search")]
        finally:
            closed.append(name)

    live = run(((p, steps(p.id)) for p in problems(3)), *scene())
    next(live)
    live.close()
    assert sorted(closed) == ["q0", "q1", "q2"]


def test_errors_of_a_generator_name_the_question() -> None:
    def steps() -> SearchRoutine[None]:
        yield [RolloutQuery((), 1, "search")]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        list(run([(problems(1)[0], steps())], *scene()))
    assert "'q0'" in caught.value.__notes__[0]


def test_repeated_ids_are_refused() -> None:
    same = [problems(1)[0], problems(1)[0]]
    with pytest.raises(DataError, match="two problems have the id 'q0'"):
        list(run(((p, sample_once(RolloutQuery((), 1, "search"))) for p in same), *scene()))


class Broken(ScriptedEngine):
    """Delivers `answer` instead of rollouts."""

    def __init__(self, answer: list[Ids]) -> None:
        super().__init__(max_new_tokens=3)
        self.answer = answer

    def sample(
        self, requests: Iterator[SampleRequest | None]
    ) -> Iterator[tuple[SampleRequest, list[Ids]]]:
        yield next(requests), self.answer  # type: ignore[misc]


@pytest.mark.parametrize(
    "answer",
    [[], [()], [(1,)], [(1, 1, 1, 1)], [(1, STOP, 1)], [(1, STOP), (1, STOP)]],
    ids=["none", "empty", "unfinished", "too long", "past the stop", "too many"],
)
def test_an_engine_that_breaks_its_contract_is_an_error(answer: list[Ids]) -> None:
    with pytest.raises(EngineError, match=r"Broken\.sample gave"):
        one(RolloutQuery((), 1, "search"), Broken(answer))


def test_an_engine_that_forgets_requests_is_an_error() -> None:
    with pytest.raises(EngineError, match="ended while"):
        list(
            run(
                [(problems(1)[0], two_rounds())],
                Broken([(1, STOP)] * 5),
                judge_odd,
            )
        )


def test_progress_is_reported() -> None:
    seen: list[Progress] = []
    engine = ScriptedEngine()
    searches = [(p, sample_once(RolloutQuery((), 5, "search"))) for p in problems(4)]
    list(run(searches, engine, judge_odd, on_progress=seen.append))
    assert (seen[-1].questions, seen[-1].rollouts, seen[-1].replayed) == (4, 20, 0)


def test_a_journal_answers_everything_the_second_time(tmp_path: Path) -> None:
    def once(engine: ScriptedEngine) -> list[Finished[Any]]:
        with Journal(tmp_path / "journal.jsonl", {}) as journal:
            searches = ((p, two_rounds()) for p in problems(5))
            done = list(run(searches, engine, judge_odd, journal=journal))
        return sorted(done, key=lambda finished: finished.problem.id)

    first, again = ScriptedEngine(), ScriptedEngine()
    assert once(first) == once(again)
    assert len(first.requests) == 15
    assert again.requests == []


def test_redraws_are_journalled_with_their_cost(tmp_path: Path) -> None:
    def once(verifier: Any) -> Finished[Any]:
        with Journal(tmp_path / "journal.jsonl", {}) as journal:
            steps = sample_once(RolloutQuery((), 200, "search"))
            (done,) = run([(problems(1)[0], steps)], ScriptedEngine(20), verifier, journal=journal)
        return done

    assert once(Flaky(2)) == once(Flaky(0))


def test_a_changed_reference_is_noticed_on_resume(tmp_path: Path) -> None:
    from pts.errors import JournalError

    for reference, bad in (("odd", False), ("odd", False), ("even", True)):
        with Journal(tmp_path / "journal.jsonl", {}) as journal:
            searches = [(Problem("q0", "a", reference), sample_once(RolloutQuery((), 1, "search")))]
            live = run(searches, ScriptedEngine(), judge_odd, journal=journal)
            if bad:
                with pytest.raises(JournalError, match="'q0' has changed"):
                    list(live)
            else:
                list(live)


def test_what_is_printed_of_an_error_ends_with_its_notes() -> None:
    error = EngineError("request 3: too long\nshorten it")
    error.add_note("in the search of question 'q0'")
    assert told(error).splitlines() == [
        "2 errors:", "  request 3: too long", "  shorten it", "  in the search of question 'q0'",
    ]  # fmt: skip


class PartlyUnscorable(ScriptedEngine):
    """Cannot tell what follows a prompt of an odd number of letters."""

    def score(self, prompt: Ids, completion: Ids) -> list[TokenDistribution]:
        if len(prompt) % 2:
            raise UnscorableError("no list of tokens")
        return super().score(prompt, completion)


def test_a_prefix_that_cannot_be_scored_sets_its_question_aside() -> None:
    """Rollouts of the same yield are under way then; those after it are not asked for."""

    def steps() -> SearchRoutine[str]:
        [[first]] = yield [RolloutQuery((), 1, "filter")]
        assert isinstance(first, Rollout)
        yield [
            RolloutQuery((), 2, "search"),
            LogprobQuery(first.ids),
            RolloutQuery((), 5, "confirm"),
        ]
        return "searched"

    told: list[SkippedQuestion] = []

    def on_set_aside(about: SkippedQuestion) -> str:
        told.append(about)
        return "aside"

    engine = PartlyUnscorable(max_new_tokens=30, width=3)
    asked = problems(4)
    done = list(run([(p, steps()) for p in asked], engine, judge_odd, on_skip=on_set_aside))
    assert {d.problem.id: d.result for d in done} == {
        "q0": "aside", "q1": "searched", "q2": "aside", "q3": "searched",
    }  # fmt: skip
    assert {about.reason for about in told} == {"no list of tokens"}
    assert all(about.unscorable for about in told)
    spent = {d.problem.id: {p: cost.rollouts for p, cost in d.spent.items()} for d in done}
    assert spent["q0"] == {"filter": 1, "search": 2}
    assert spent["q1"] == {"filter": 1, "search": 2, "confirm": 5}


def test_a_prefix_that_cannot_be_scored_is_an_error_without_a_callback() -> None:
    with pytest.raises(UnscorableError, match="no list of tokens") as caught:
        one(LogprobQuery((1, 2)), PartlyUnscorable(max_new_tokens=30))  # type: ignore[arg-type]
    assert caught.value.__notes__ == ["in the search of question 'q0'"]
