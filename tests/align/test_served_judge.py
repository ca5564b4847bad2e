"""A real model behind a real server as judge: what a model that cannot judge leaves UNSCORED."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from align.judging.backends import open_backend
from align.judging.journal import CallJournal
from align.judging.judge import PromptedJudge
from align.judging.orders import judge_both
from align.judging.prompt import Case
from align.judging.settings import JudgeConfig
from align.judging.vices import vices
from align.models import smollm2
from align.settings import ModelConfig
from pts.types import Message
from tests.align.model_server import Handler, Server

CASES = [
    Case(
        (Message("user", f"Ann has {a} pens and buys {b} more. How many has she?"),),
        (f"{a}+{b}={a + b}. The answer is {a + b}.", f"The answer is {a - b}."),
    )
    for a, b in ((12, 5), (30, 9), (41, 7))
]
"""The first reply is right, the second wrong."""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = smollm2.folder()
    if not (folder / "config.json").is_file():
        pytest.skip("SmolLM2 is missing: make smollm2")
    monkeypatch.setattr(Handler, "folder", str(folder))
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.slow
def test_a_small_served_model_is_heard_or_unscored(url: str, tmp_path: Path) -> None:
    """SmolLM2-135M: every judgement is scored or UNSCORED with its reason, nothing is guessed."""
    config = JudgeConfig(url=url, model="smollm2", max_tokens=160, attempts=1, timeout=1200)
    backend = open_backend(config, ModelConfig(path="x"))
    with closing(backend), CallJournal(tmp_path / "calls.jsonl") as journal:
        judge = PromptedJudge(backend, journal, config.attempts)
        found = judge_both(judge, CASES)
        figures = {**judge.counts, **vices(CASES, found)}
        again = judge_both(PromptedJudge(backend, journal, config.attempts), CASES)
    assert again == found
    judged = 2 * len(CASES)
    unscored = round(figures["unscored"]["share"] * judged)
    assert figures["calls"] == judged
    assert unscored == sum(figures["unscored_by"].values())
    assert unscored >= sum(not both.scored for both in found)
