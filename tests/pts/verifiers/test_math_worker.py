"""The process of `MathVerifier`: what it does with what the library raises."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from pts.errors import VerifierError
from pts.types import Problem, Verdict
from pts.verifiers.math import worker
from pts.verifiers.math.verifier import MathVerifier

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed"
)
QUESTION = {"reference": r"\sqrt{2}", "text": r"\boxed{\sqrt{3}}", "seconds": 5.0}


def raise_(error: type[Exception]) -> Any:
    def fails(*_: Any) -> Any:
        raise error("Invalid NaN comparison")

    return fails


def test_what_the_library_raises_is_a_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_parse", raise_(TypeError))
    said = "cannot be compared (TypeError: Invalid NaN comparison)"
    assert worker.reply(QUESTION) == {"error": said}
    assert worker.reply({**QUESTION, "text": None}) == {"fault": said}


def test_without_memory_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_parse", raise_(MemoryError))
    with pytest.raises(MemoryError):
        worker.reply(QUESTION)


def test_an_answer_that_cannot_be_compared_is_unscored_and_the_worker_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verifier = MathVerifier(seconds=20.0)
    problem = Problem("q1", "", r"\infty")
    assert verifier(problem, r"\boxed{\infty}").verdict is Verdict.PASS
    process = verifier._worker
    with monkeypatch.context() as patched:
        patched.setattr(verifier, "_ask", lambda *_: {"error": "cannot be compared (TypeError)"})
        with pytest.raises(VerifierError, match=r"the answer cannot be compared \(TypeError\)"):
            verifier(problem, r"\boxed{1}")
    assert verifier(problem, r"\boxed{1}").verdict is Verdict.FAIL
    assert verifier._worker is process


def test_thinking_is_left_out_once() -> None:
    verifier = MathVerifier(seconds=20.0)
    problem = Problem("q1", "", "7")
    assert verifier(problem, "<think>6?</think>It is 7. <think>").verdict is Verdict.PASS
    assert verifier(problem, "<think>The answer is 7.</think>").verdict is Verdict.PASS
