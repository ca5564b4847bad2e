"""Searches on servers that drop, delay, reorder and corrupt: nothing is lost, nothing repeated."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pts.config import SamplingConfig, SearchConfig
from pts.engines.base import Engine, SampleRequest
from pts.engines.server.limits import START
from pts.engines.tabular import TabularEngine, TabularVerifier
from pts.errors import EngineError, UnscorableError
from pts.report.text import question
from pts.runtime.run_folder import RunFolder
from pts.runtime.search import SearchRun, search
from pts.testing import assert_engine_conforms
from pts.types import Ids
from tests.pts.engine_mutants import MACHINES as DENSE
from tests.pts.engines.conftest import MACHINES, SAMPLING, Connect
from tests.pts.engines.faulty_server import FaultyServer, machine_id, problems

CONFIG = SearchConfig(
    filter_rollouts=8, max_rollouts=60, confirm_rollouts=16, fdr=0.5, p_min=0.05, p_max=0.95
)
SOME = {
    **dict.fromkeys(("drop", "half", "late", "busy", "broken"), 0.04),
    **dict.fromkeys(("cut_json", "no_ids", "wrong_id", "too_long", "other_prompt"), 0.01),
    "early": 0.01,
}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "pts.engines.server.endpoints")


def searched(engine: Engine, output: Path | None = None) -> SearchRun:
    asked = problems(MACHINES)
    return search(asked, engine, TabularVerifier(), CONFIG, output=output, progress=False)


@pytest.fixture(scope="module")
def undisturbed() -> SearchRun:
    """The same search in this process, by the seeds and prompts that a server gets."""

    class Local(TabularEngine):
        def encode(self, problem: Any) -> Ids:
            return (machine_id(int(problem.prompt.removeprefix("m"))),)

        def score(self, prompt: Ids, completion: Ids) -> Any:
            return super().score((prompt[0] - machine_id(0),), completion)

        def sample(self, requests: Iterator[SampleRequest | None]) -> Any:
            for request in requests:
                if request is not None:
                    prompt, seeds = (
                        (request.prompt[0] - machine_id(0),),
                        [s >> 1 for s in request.seeds],
                    )
                    asked = replace(request, prompt=prompt, seeds=tuple(seeds))
                    ((_, drawn),) = super().sample(iter([asked]))
                    yield request, drawn

    return searched(Local(MACHINES, SAMPLING))


def assert_equal_runs(run: SearchRun, other: SearchRun) -> None:
    """Probabilities passed through logarithms, everything else is the same."""
    assert len(run.records) == len(other.records) == len(MACHINES)
    for result, known in zip(run.results, other.results, strict=True):
        assert result.cost == known.cost
        assert (result.solved, result.status) == (known.solved, known.status)
        for path, twin in zip(result.paths, known.paths, strict=True):
            assert path.ids == twin.ids
            assert path.probs == pytest.approx(twin.probs)
            assert [p.mean for p in path.curve] == pytest.approx([p.mean for p in twin.curve])
            sides = [[(p.position, p.confirm_chosen, p.confirm_rejected) for p in one.pairs]
                     for one in (path, twin)]  # fmt: skip
            assert sides[0] == sides[1]
    assert [(p.prompt_ids, p.chosen) for p in run.pairs] == [
        (p.prompt_ids, p.chosen) for p in other.pairs
    ]
    assert run.pairs != []


def test_a_search_survives_every_fault_unchanged(connect: Connect, undisturbed: SearchRun) -> None:
    with FaultyServer(MACHINES) as server:
        engine = connect(server.url)
        server.faults = SOME
        run = searched(engine)
    assert set(SOME) == set(server.met), "every fault was met"
    assert_equal_runs(run, undisturbed)


@pytest.mark.parametrize("fault", ["drop", "half", "busy", "broken", "cut_json", "early"])
def test_each_fault_alone_is_survived(connect: Connect, fault: str) -> None:
    request = SampleRequest(7, (machine_id(0),), (), 24, tuple(range(100, 160)))
    with FaultyServer(MACHINES) as server:
        engine = connect(server.url)
        ((_, clean),) = engine.sample(iter([request]))
        server.faults = {fault: 0.2}
        ((_, drawn),) = engine.sample(iter([request]))
    assert server.met[fault] > 0
    assert drawn == clean


def test_a_run_that_breaks_off_continues_on_another_server(
    connect: Connect, undisturbed: SearchRun, tmp_path: Path
) -> None:
    """The first server dies for good in the middle; nothing on file is drawn again."""
    with FaultyServer(MACHINES) as server:
        engine = connect(server.url, retry=replace_total(0.05))
        server.dies_after = server.asked + 300
        with pytest.raises(EngineError, match="check that the server runs"):
            searched(engine, tmp_path)
    with FaultyServer(MACHINES) as server:
        engine = connect(server.url)
        before = server.asked
        run = searched(engine, tmp_path)
        rollouts = sum(tally.rollouts for tally in run.summary.spent.values())
    assert server.asked - before < rollouts, "the journal answered some requests"
    assert_equal_runs(run, undisturbed)


def replace_total(seconds: float) -> Any:
    from tests.pts.engines.conftest import QUICK

    return replace(QUICK, total=seconds)


def test_several_servers_share_a_search_and_one_may_die(
    connect: Connect, undisturbed: SearchRun
) -> None:
    with FaultyServer(MACHINES) as one, FaultyServer(MACHINES) as two, FaultyServer(MACHINES) as x:
        engine = connect(one.url, two.url, x.url)
        before = [server.asked for server in (one, two)]
        x.dies_after = x.asked + 20
        run = searched(engine)
        shares = [server.asked - n for server, n in zip((one, two), before, strict=True)]
    assert min(shares) > sum(shares) / 4
    assert_equal_runs(run, undisturbed)


def test_each_question_stays_with_one_server_while_that_keeps_up(connect: Connect) -> None:
    """Four questions on two servers, 24 rollouts of each and the rows of a path."""
    requests = [
        SampleRequest(k, (machine_id(k % 4),), (), 24, tuple(range(4 * k, 4 * k + 4)))
        for k in range(24)
    ]
    with FaultyServer(MACHINES) as one, FaultyServer(MACHINES) as two:
        engine = connect(one.url, two.url)
        one.questions.clear(), two.questions.clear()
        for request in requests:
            ((_, drawn),) = engine.sample(iter([request]))
        engine.score(requests[-1].prompt, drawn[0])
        seen = [{q for q in server.questions if q > 60} for server in (one, two)]
    assert [len(questions) for questions in seen] == [2, 2]
    assert not seen[0] & seen[1]


@pytest.mark.parametrize("page", ["vllm:num_requests_waiting", "llamacpp:requests_deferred"])
def test_a_server_whose_own_queue_grows_is_given_less(
    connect: Connect, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pts.engines.server.http.AGAIN", 0.01)
    request = SampleRequest(0, (machine_id(0),), (), 24, tuple(range(600)))
    with FaultyServer(MACHINES, metrics=f"{page} 500\n") as server:
        engine = connect(server.url)
        server.faults, server.delay = {"late": 1.0}, 0.02
        list(engine.sample(iter([request])))
        (endpoint,) = engine._client.endpoints
    assert endpoint.rule is not None
    assert endpoint.rule.limit <= START // 2


def test_a_server_that_refuses_is_given_less(connect: Connect) -> None:
    request = SampleRequest(0, (machine_id(0),), (), 24, tuple(range(200)))
    with FaultyServer(MACHINES) as server:
        engine = connect(server.url)
        (endpoint,) = engine._client.endpoints
        assert endpoint.rule is not None
        before = endpoint.rule.limit
        server.faults = {"busy": 0.3}
        assert len(list(engine.sample(iter([request])))) == 1
    assert endpoint.rule.limit < before


def test_many_requests_are_in_flight_and_answers_come_in_any_order(connect: Connect) -> None:
    """No reply comes before all 1,200 are asked for."""
    requests = [
        SampleRequest(k, (machine_id(k % 4),), (), 24, (2 * k, 2 * k + 1)) for k in range(600)
    ]
    with FaultyServer(MACHINES) as server:
        engine = connect(server.url, in_flight=2000)
        server.faults, server.gate = {"gate": 1.0}, 1200
        answers = list(engine.sample(iter(requests)))
    assert server.most_open == 1200
    keys = [request.key for request, _ in answers]
    assert sorted(keys) == list(range(600))
    assert keys != sorted(keys)
    local = TabularEngine(MACHINES, SAMPLING)
    for request, drawn in answers:
        seeds = tuple(seed >> 1 for seed in request.seeds)
        asked = replace(request, prompt=(request.key % 4,), seeds=seeds)
        assert drawn == next(local.sample(iter([asked])))[1]


def test_no_more_than_in_flight_are_asked_at_a_time(connect: Connect) -> None:
    requests = [SampleRequest(k, (machine_id(0),), (), 24, (k,)) for k in range(60)]
    with FaultyServer(MACHINES) as server:
        engine = connect(server.url, in_flight=5)
        server.faults = {"late": 1.0}
        assert len(list(engine.sample(iter(requests)))) == 60
    assert 1 < server.most_open <= 5


def test_llama_cpp_is_asked_for_no_more_than_its_slots(connect: Connect) -> None:
    requests = [SampleRequest(k, (machine_id(0),), (), 24, (k,)) for k in range(60)]
    options: dict[str, Any] = {"kind": "llamacpp"}
    with FaultyServer(MACHINES, **options) as one, FaultyServer(MACHINES, **options) as two:
        engine = connect(one.url, two.url)
        one.faults = two.faults = {"late": 1.0}
        assert len(list(engine.sample(iter(requests)))) == 60
    assert 1 < one.most_open + two.most_open <= 12


def test_without_seeds_every_rollout_is_still_delivered_once(connect: Connect) -> None:
    requests = [
        SampleRequest(k, (machine_id(k % 4),), (), 24, tuple(range(k % 5))) for k in range(80)
    ]
    with FaultyServer(MACHINES, seeds=False) as server:
        engine = connect(server.url)
        server.faults = SOME
        answers = list(engine.sample(iter(requests)))
    assert not engine.reproducible
    assert sorted(request.key for request, _ in answers) == list(range(80))
    assert all(len(drawn) == len(request.seeds) for request, drawn in answers)


def test_an_abandoned_sample_leaves_nothing_behind(connect: Connect) -> None:
    request = SampleRequest(1, (machine_id(0),), (), 24, tuple(range(50)))
    with FaultyServer(MACHINES) as server:
        engine = connect(server.url)
        answers = engine.sample(iter([replace(request, seeds=(5,)), request]))
        next(answers)
        answers.close()  # type: ignore[attr-defined]
        ((again, drawn),) = engine.sample(iter([replace(request, key=2)]))
    assert again.key == 2
    assert len(drawn) == 50


def test_scores_are_the_rows_of_the_model(connect: Connect) -> None:
    path = next(
        TabularEngine(MACHINES, SAMPLING).sample(iter([SampleRequest(0, (1,), (), 24, (3,))]))
    )[1][0]
    for sampling in (SAMPLING, SamplingConfig(temperature=0.7, min_p=0.02), SamplingConfig()):
        expected = TabularEngine(MACHINES, sampling).score((1,), path)
        for options in ({"logprobs": "processed_logprobs"}, {"logprobs": "raw_logprobs"}):
            with FaultyServer(MACHINES, **options) as server:  # type: ignore[arg-type]
                engine = connect(server.url, sampling=sampling)
                server.faults = {"drop": 0.1, "cut_json": 0.02}
                rows = engine.score((machine_id(1),), path)
            assert [r.ids.tolist() for r in rows] == [r.ids.tolist() for r in expected]
            for row, known in zip(rows, expected, strict=True):
                np.testing.assert_allclose(row.probs, known.probs, rtol=1e-9)


def of_the_model(pairs: list[tuple[Ids, Ids]]) -> list[float]:
    """Log-likelihoods by the machines' own rows at temperature 1; contexts begin with a machine."""
    engine, found = TabularEngine(MACHINES, SamplingConfig()), []
    for prompt, completion in pairs:
        at = prompt[1:] + completion
        rows = engine.score((prompt[0] - machine_id(0),), at)[len(prompt) - 1 :]
        found.append(sum(math.log(r.prob(t)) for r, t in zip(rows, completion, strict=True)))
    return found


def paths() -> list[tuple[Ids, Ids]]:
    """Pairs cut out of one sampled path of each machine."""
    engine, pairs = TabularEngine(MACHINES, SamplingConfig(max_new_tokens=24)), []
    for index in range(len(MACHINES)):
        ((_, (ids,)),) = engine.sample(iter([SampleRequest(0, (index,), (), 24, (5,))]))
        pairs += [((machine_id(index), *ids[:cut]), ids[cut : cut + 3]) for cut in (0, 2)]
    return pairs


@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
def test_log_likelihoods_are_the_model_s_own_whatever_is_sampled(
    connect: Connect, kind: str
) -> None:
    pairs = paths()
    with FaultyServer(MACHINES, kind=kind) as server:
        for sampling in (SAMPLING, SamplingConfig(temperature=0)):
            found = connect(server.url, sampling=sampling).loglikelihoods(pairs)
            np.testing.assert_allclose(found, of_the_model(pairs), rtol=1e-9)


def test_prompts_lose_their_beginning_where_they_do_not_fit(connect: Connect) -> None:
    with FaultyServer(MACHINES) as server:
        engine = connect(server.url)
        engine.max_model_len = 8
        assert engine._scored((tuple(range(9)), (20, 21, 22))) == ((5, 6, 7, 8, 20, 21, 22), 4)
        with pytest.raises(EngineError, match="a completion of 7 tokens exceeds the server's"):
            engine.loglikelihoods([((1,), tuple(range(7)))])


def test_a_server_without_prompt_logprobs_is_told(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = FaultyServer.complete

    def without(self: FaultyServer, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return complete(self, {k: v for k, v in asked.items() if k != "prompt_logprobs"})

    monkeypatch.setattr(FaultyServer, "complete", without)
    with FaultyServer(MACHINES) as server, pytest.raises(EngineError, match="no prompt_logprobs"):
        connect(server.url).loglikelihoods(paths())


def test_a_list_that_is_missing_now_and_then_is_asked_for_again(connect: Connect) -> None:
    """llama.cpp lists nothing where the token that it draws is a part of a character."""
    local = TabularEngine(MACHINES, SAMPLING)
    ((_, (path,)),) = local.sample(iter([SampleRequest(0, (1,), (), 24, (3,))]))
    expected = local.score((1,), path)
    with FaultyServer(MACHINES, kind="llamacpp", unlisted={machine_id(1): 0.6}) as server:
        rows = connect(server.url).score((machine_id(1),), path)
    for row, known in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row.probs, known.probs, rtol=1e-9)


def test_a_list_that_no_draw_brings_is_had_by_a_forced_one(connect: Connect) -> None:
    """From the model's own probabilities, cut here as the policy says."""
    local = TabularEngine(MACHINES, SAMPLING)
    ((_, (path,)),) = local.sample(iter([SampleRequest(0, (1,), (), 24, (3,))]))
    with FaultyServer(MACHINES, kind="llamacpp", unlisted={machine_id(1): 1.0}) as server:
        rows = connect(server.url).score((machine_id(1),), path[:3])
    for row, known in zip(rows, local.score((1,), path[:3]), strict=True):
        np.testing.assert_allclose(row.probs, known.probs, rtol=1e-9)


def test_a_list_that_is_always_missing_sets_its_question_aside(
    connect: Connect, tmp_path: Path
) -> None:
    never: dict[str, Any] = {"unlisted": {machine_id(1): 1.0}, "forcible": False}
    with FaultyServer(MACHINES, kind="llamacpp", **never) as server:
        engine = connect(server.url)
        with pytest.raises(
            UnscorableError, match=r"given up after 20 tries .* part of a character"
        ):
            engine.score((machine_id(1),), (3,))
        run = searched(engine, tmp_path)
    status = {result.problem_id: result.status for result in run.results}
    assert status.pop("tabular-1") == "unscorable"
    assert "unscorable" not in status.values()
    assert run.summary.questions["unscorable"] == 1
    shown = "\n".join(question(RunFolder(tmp_path), "tabular-1"))
    assert "set aside: http" in shown
    assert "completion_probabilities is missing from the reply" in shown


@pytest.mark.parametrize(
    "options",
    [{"logprobs": "processed_logprobs"}, {"logprobs": "raw_logprobs"}, {"kind": "llamacpp"}],
    ids=lambda options: next(iter(options.values())),
)
def test_the_engine_conforms(connect: Connect, options: dict[str, Any]) -> None:
    with FaultyServer(DENSE, **options) as server:
        assert_engine_conforms(
            lambda sampling: connect(server.url, sampling=sampling),
            problems(DENSE),
            samplings={"truncated": SamplingConfig(temperature=0.8, top_p=0.9, max_new_tokens=64)},
            rollouts=60,
            whole=2,
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
def test_the_engine_conforms_under_all_settings(connect: Connect, kind: str) -> None:
    with FaultyServer(DENSE, kind=kind) as server:
        assert_engine_conforms(
            lambda sampling: connect(server.url, sampling=sampling), problems(DENSE)
        )


def test_texts_and_prompts_go_through_the_tokenizer(connect: Connect) -> None:
    with FaultyServer(MACHINES) as server:
        engine = connect(server.url)
    assert engine.encode(problems(MACHINES)[2]) == (machine_id(2),)
    assert engine.encode_text("t3 right") == (3, 1)
    assert engine.decode((3, 1, 0)) == "t3 right"
    assert engine.token_texts((3, 1, 0)) == ["t3", "right", "<stop>"]


def test_what_outgrows_the_context_is_told_with_the_flag(connect: Connect) -> None:
    with FaultyServer(MACHINES) as server:
        engine = connect(server.url)
        with pytest.raises(EngineError, match=re.escape("context of 4096")):
            next(engine.sample(iter([SampleRequest(3, (machine_id(0),), (), 4096, (1,))])))
        with pytest.raises(EngineError, match="--max-model-len"):
            engine.score((machine_id(0),), (3,) * 4096)


def test_a_queue_that_is_empty_for_ever_is_a_deadlock(connect: Connect) -> None:
    with FaultyServer(MACHINES) as server:
        engine = connect(server.url)
        with pytest.raises(EngineError, match="deadlock"):
            next(engine.sample(iter([None])))
