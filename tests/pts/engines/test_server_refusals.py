"""Servers that cannot be used are refused before a run, with the reason and the remedy."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest

from pts.config import SamplingConfig
from pts.engines.base import SampleRequest
from pts.engines.server.endpoints import RetryPolicy
from pts.engines.server.http import Client
from pts.errors import ConfigError, EngineError
from tests.pts.engines.conftest import MACHINES, Connect
from tests.pts.engines.faulty_server import FaultyServer, machine_id

PLAIN = SamplingConfig(max_new_tokens=24)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "pts.engines.server.endpoints")


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({}, {"model": "tabulra"}, "no model 'tabulra'; did you mean 'tabular'?"),
        ({"overrides": {"tokens": [1, 2, 3]}}, {}, "encodes a test sentence otherwise"),
        ({"logprobs": "processed_logits"}, {}, "--logprobs-mode processed_logprobs"),
        ({"logprobs": "raw_logits"}, {}, "--logprobs-mode processed_logprobs"),
        ({"limit": 20}, {"sampling": PLAIN}, "start vLLM with --max-logprobs -1"),
        ({"limit": 4}, {}, "start vLLM with --max-logprobs 20"),
        ({"sloppy": {"top_k": 1}}, {}, "does not sample what its log-probabilities say"),
        ({"key": "secret"}, {}, "PTS_API_KEY is not set"),
        ({}, {"sampling": SamplingConfig(top_p=0.9, min_p=0.1)}, "set only one of them"),
        ({"faults": {"no_ids": 1.0}}, {}, "holds no token ids (token_ids)"),
        ({"faults": {"names": 1.0}}, {}, "return_tokens_as_token_ids"),
        ({"faults": {"short_list": 1.0}}, {"sampling": PLAIN}, "the list of all tokens holds"),
        ({"faults": {"short_list": 1.0}}, {}, "1 of 20 tokens"),
        ({"faults": {"cut_json": 1.0}}, {}, "is not JSON"),
        ({"faults": {"other_prompt": 1.0}}, {}, "not the prompt that was sent"),
    ],
    ids=lambda value: ", ".join(map(str, value.items())) if isinstance(value, dict) else None,
)
def test_refused(
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    settings: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.delenv("PTS_API_KEY", raising=False)
    monkeypatch.setattr("pts.engines.server.engine.DRAWS", 256)
    with (
        FaultyServer(MACHINES, **options) as server,
        pytest.raises(EngineError, match=re.escape(message)),
    ):
        connect(server.url, **settings)


def test_servers_of_different_models_are_refused(connect: Connect) -> None:
    with (
        FaultyServer(MACHINES, kind="vllm") as one,
        FaultyServer(MACHINES, kind="llamacpp") as two,
        pytest.raises(EngineError, match="all servers must serve the same model"),
    ):
        connect(one.url, two.url)


def test_a_dead_url_is_told_before_the_run(connect: Connect) -> None:
    with FaultyServer(MACHINES) as gone:
        pass
    with (
        FaultyServer(MACHINES) as server,
        pytest.raises(EngineError, match=re.escape(gone.url)),
    ):
        connect(server.url, gone.url, retry=RetryPolicy(1.0, 0.05, 0.005))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("drop", "RemoteProtocolError"),
        ("busy", "HTTP 429"),
        ("much_later", "tomorrow"),
        ("broken", "the engine stumbled"),
        ("wrong_id", "is not in the vocabulary of 69"),
        ("too_long", "tokens, not 1 to 24"),
        ("early", "without a stop token"),
        ("no_stop", "name it in stop_ids"),
    ],
)
def test_a_fault_that_stays_ends_the_run_with_its_reason(
    connect: Connect, fault: str, message: str
) -> None:
    """Unreadable replies after five tries, passing failures after `retry.total`."""
    with FaultyServer(MACHINES) as server:
        engine = connect(server.url, retry=RetryPolicy(5.0, 0.05, 0.005))
        server.faults = {fault: 1.0}
        with pytest.raises(EngineError, match=re.escape(message)):
            list(engine.sample(iter([SampleRequest(0, (machine_id(0),), (), 24, (1, 2, 3))])))


@pytest.mark.parametrize("fault", ["stall", "drip"])
def test_time_outs_are_retried(connect: Connect, fault: str) -> None:
    """Of a reply that comes in drops each is in time; the whole is not."""
    with FaultyServer(MACHINES) as server:
        engine = connect(server.url, retry=RetryPolicy(0.3, 30.0, 0.005))
        server.faults = {fault: 0.4}
        ((_, drawn),) = engine.sample(
            iter([SampleRequest(0, (machine_id(0),), (), 24, (1, 2, 3, 4))])
        )
    assert len(drawn) == 4
    assert server.met[fault] > 0


def test_a_server_with_replies_of_no_use_is_left_for_the_others(connect: Connect) -> None:
    """Its questions go to the other one; before, five such replies in a second ended the run."""
    with FaultyServer(MACHINES) as bad, FaultyServer(MACHINES) as good:
        engine = connect(bad.url, good.url, retry=RetryPolicy(5.0, 30.0, 0.05))
        bad.faults = {"wrong_id": 1.0}
        questions = [(machine_id(k % len(MACHINES)),) for k in range(40)]
        asked = [SampleRequest(k, prompt, (), 24, (k,)) for k, prompt in enumerate(questions)]
        assert len([*engine.sample(iter(asked))]) == 40
    assert bad.met["wrong_id"] > 0


def test_retry_after_is_honoured(connect: Connect) -> None:
    """A URL that asks for a day is left alone; the other one does all the work."""
    with FaultyServer(MACHINES) as busy, FaultyServer(MACHINES) as free:
        engine = connect(busy.url, free.url)
        busy.faults, before = {"much_later": 1.0}, busy.asked
        list(
            engine.sample(
                iter([SampleRequest(k, (machine_id(0),), (), 24, (k,)) for k in range(40)])
            )
        )
        list(
            engine.sample(
                iter([SampleRequest(k, (machine_id(0),), (), 24, (k,)) for k in range(40)])
            )
        )
    assert busy.asked - before == busy.met["much_later"] <= 40, "those in flight at its first no"


def test_the_key_comes_from_the_environment_and_is_never_shown(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTS_API_KEY", "sesame")
    with FaultyServer(MACHINES, key="sesame") as server:
        engine = connect(server.url)
        assert server.seen_keys == {"Bearer sesame"}
        assert "sesame" not in repr(engine)
    with FaultyServer(MACHINES, key="other") as server, pytest.raises(EngineError) as caught:
        connect(server.url)
    assert "was not accepted" in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_all_faults_of_urls_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Client(["localhost:8000", "http://me:secret@host/v1", "http://a/?key=1"])
    assert len(caught.value.problems) == 3
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="no server URL"):
        Client([])
    with pytest.raises(ConfigError, match="occurs twice"):
        Client(["http://a:1/v1", "http://a:1/"])


def test_a_closed_engine_says_so(connect: Connect) -> None:
    with FaultyServer(MACHINES) as server:
        engine = connect(server.url)
        engine.close()
        with pytest.raises(EngineError, match="is closed"):
            engine.score((machine_id(0),), (3,))
