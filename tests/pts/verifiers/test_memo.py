"""What is remembered of judged texts: the result, not the text."""

from __future__ import annotations

import importlib.util
import tracemalloc
from typing import Any

import pytest

from pts.types import Grade, Problem, Verdict
from pts.verifiers import memo
from pts.verifiers.base import Verifier
from pts.verifiers.code.verifier import CodeVerifier
from pts.verifiers.math.verifier import MathVerifier
from pts.verifiers.memo import Memo
from tests.pts.verifiers.code_isolation import available, make

PASS = Verdict.PASS


def test_equal_texts_are_judged_once() -> None:
    asked: list[tuple[str, ...]] = []
    known = Memo[int]()

    def recall(*texts: str) -> int:
        def judge() -> int:
            asked.append(texts)
            return len(asked)

        return known.recall(texts, judge)

    assert [recall("a", "b"), recall("ab", ""), recall("a", "b"), recall("\ud800")] == [1, 2, 1, 3]
    assert len(asked) == 3


def test_what_raises_is_asked_anew() -> None:
    known = Memo[int]()
    with pytest.raises(ZeroDivisionError):
        known.recall(("a",), lambda: 1 // 0)
    assert known.recall(("a",), lambda: 1) == 1


def test_the_results_that_are_unused_for_longest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memo, "MOST_RESULTS", 2)
    known = Memo[str]()
    for text in ("a", "b", "a", "c"):
        known.recall((text,), text.lower)
    said = {text: known.recall((text,), lambda: "anew") for text in ("a", "c", "b")}
    assert said == {"a": "a", "c": "c", "b": "anew"}


def held_bytes(verifier: Verifier, problem: Problem, count: int) -> int:
    """Memory that a verifier holds on to after so many texts of 100 kB."""
    tracemalloc.start()
    try:
        for number in range(count):
            text = f"x = {number}\n" + "# We think about it.\n" * 5000
            assert verifier(problem, text).verdict is PASS
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_long_completions_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("math_verify") is None:
        pytest.skip("math-verify is not installed")

    def compare(self: Any, reference: str, text: str) -> Grade:
        return Grade(PASS)

    monkeypatch.setattr(MathVerifier, "_ask_comparison", compare)
    assert held_bytes(MathVerifier(), Problem("q1", "", "5"), 100) < 1 << 20


def test_long_programs_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CodeVerifier, "_run", lambda self, code, tests: (PASS, ""))
    verifier = make(available())
    tests = '{"inputs": [""], "outputs": [""]}'
    assert held_bytes(verifier, Problem("q1", "", tests), 100) < 1 << 20
    verifier.close()
