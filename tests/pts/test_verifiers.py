"""Verifiers for mathematics, multiple choice and plain functions."""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from pts.errors import ConfigError, MissingExtra, VerifierError
from pts.types import Grade, Problem, Verdict
from pts.verifiers.base import Verifier
from pts.verifiers.callable import CallableVerifier
from pts.verifiers.choice import ChoiceVerifier
from pts.verifiers.math import verifier as math
from pts.verifiers.math.verifier import MathVerifier

PASS, FAIL, UNSCORED = Verdict.PASS, Verdict.FAIL, Verdict.UNSCORED


def verdict(verifier: Verifier, reference: str, text: str) -> Verdict:
    return verifier(Problem("q1", "", reference), text).verdict


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is C.", PASS),
        ("the answer is (C)", PASS),
        ("**Answer: C**", PASS),
        ("Answer: **C**", PASS),
        (r"so \boxed{C}", PASS),
        (r"so \boxed{\text{C}}", PASS),
        ("Because of this,\nC", PASS),
        ("(C)", PASS),
        ("I pick option C because it fits", PASS),
        ("The answer is B. No, the answer is C.", PASS),
        ("The answer is C. No, the answer is B.", FAIL),
        ("C is a letter", FAIL),
        ("The answer is CO2", FAIL),
        ("the answer is c", FAIL),
        ("The answer is E", FAIL),
        ("The answer is C's friend", FAIL),
        ("", FAIL),
    ],
)
def test_choice(text: str, expected: Verdict) -> None:
    assert verdict(ChoiceVerifier("ABCD"), "C", text) is expected


def test_the_article_is_no_choice() -> None:
    assert verdict(ChoiceVerifier(), "A", "The answer is a matter of taste") is FAIL


def test_choice_references() -> None:
    for reference in ("C", "(C)", " C. "):
        assert verdict(ChoiceVerifier(), reference, "Answer: C") is PASS
    for reference in ("", "E", "CD", "see text"):
        grade = ChoiceVerifier()(Problem("q1", "", reference), "Answer: C")
        assert grade.verdict is UNSCORED
        assert "q1" in grade.reason


@pytest.mark.parametrize("options", ["", "A", "AA", "ab", "A-C", "A1"])
def test_choice_options_are_checked(options: str) -> None:
    with pytest.raises(ConfigError, match="distinct capital letters"):
        ChoiceVerifier(options)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (True, PASS),
        (False, FAIL),
        (np.bool_(True), PASS),
        (Verdict.UNSCORED, UNSCORED),
        (Grade(FAIL, "3", "no"), FAIL),
    ],
)
def test_callable_takes_bools_verdicts_and_judgements(said: object, expected: Verdict) -> None:
    assert verdict(CallableVerifier(lambda problem, text: said), "", "") is expected  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("said", [None, "pass", 0.5])
def test_callable_refuses_other_answers(said: object) -> None:
    with pytest.raises(VerifierError, match="not a bool"):
        verdict(CallableVerifier(lambda problem, text: said), "", "")  # type: ignore[arg-type, return-value]


needs_math = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed"
)


@pytest.fixture(scope="module")
def mathematics() -> MathVerifier:
    return MathVerifier(seconds=20.0)


@needs_math
@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("42", "The answer is 42.", PASS),
        ("1/2", r"Thus \boxed{0.5}", PASS),
        (r"\frac{1}{2}", r"It is $\frac{2}{4}$.", PASS),
        ("x^2+1", r"\boxed{1+x^2}", PASS),
        ("1,234", "1234", PASS),
        (r"$\boxed{3}$", "3", PASS),
        ("42", "The answer is 43.", FAIL),
        ("42", "I do not know.", FAIL),
        ("42", "", FAIL),
        ("", "42", UNSCORED),
    ],
)
def test_math(mathematics: MathVerifier, reference: str, text: str, expected: Verdict) -> None:
    assert verdict(mathematics, reference, text) is expected


@needs_math
def test_math_works_in_a_thread(mathematics: MathVerifier) -> None:
    said: list[Verdict] = []
    ask = threading.Thread(target=lambda: said.append(verdict(mathematics, "7", r"\boxed{7}")))
    ask.start()
    ask.join()
    assert said == [PASS]


@needs_math
def test_a_comparison_without_end_fails_and_the_next_one_works() -> None:
    verifier = MathVerifier(seconds=1.0)
    endless = r"\boxed{9^{9^{9^{9}}}}"
    grade = verifier(Problem("q1", "", "3"), endless)
    assert grade.verdict is FAIL
    assert grade.reason == "comparing took longer than 1 s"
    assert verifier(Problem("q1", "", "3"), endless) == grade
    assert verifier._worker is None, "the CPU time was used up: that is not tried again"
    assert verdict(verifier, "3", "3") is PASS


@needs_math
def test_a_reference_that_takes_too_long_is_no_fault_of_the_completion() -> None:
    verifier = MathVerifier(seconds=0.001)  # the first question imports a parser, for much longer
    grade = verifier(Problem("q1", "", r"\sqrt{2}"), "0.5")
    assert grade.verdict is UNSCORED
    assert grade.reason == r"reference of q1: '\\sqrt{2}' takes longer than 0.001 s to read"


def stop(verifier: MathVerifier) -> int:
    """Suspend the worker, as a busy machine may, and return its process id."""
    pid: int = verifier._worker._process.pid  # type: ignore[union-attr]
    os.kill(pid, signal.SIGSTOP)
    return pid


@needs_math
def test_a_worker_that_is_held_up_for_longer_than_the_limit_changes_no_verdict() -> None:
    verifier = MathVerifier(seconds=1.0)
    assert verdict(verifier, "1", "1") is PASS
    for said in ("2", "3"):  # reading the reference, then only comparing
        pid = stop(verifier)
        going_on = threading.Timer(1.5, os.kill, (pid, signal.SIGCONT))
        going_on.start()
        assert verdict(verifier, "2", said) is (PASS if said == "2" else FAIL)
        going_on.join()
        assert verifier._worker._process.pid == pid  # type: ignore[union-attr]


@needs_math
def test_a_worker_that_does_not_go_on_is_an_error_and_no_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verifier = MathVerifier(seconds=0.4)
    assert verdict(verifier, "1", "1") is PASS
    stop(verifier)
    with monkeypatch.context() as impatient:
        impatient.setattr(math, "PATIENCE", 0.5)
        with pytest.raises(VerifierError, match=r"held up: 4\.5 s passed"):  # 10 x 0.4 + 0.5
            verdict(verifier, "2", "2")
    assert verdict(verifier, "2", "2") is PASS


@needs_math
def test_a_dead_worker_is_an_error_once() -> None:
    verifier = MathVerifier(seconds=20.0)
    assert verdict(verifier, "3", "3") is PASS
    process = verifier._worker._process  # type: ignore[union-attr]
    process.kill()
    process.wait()
    with pytest.raises(VerifierError, match="died"):
        verdict(verifier, "3", "4")
    assert verdict(verifier, "3", "4") is FAIL


@needs_math
def test_the_worker_goes_with_its_verifier() -> None:
    verifier = MathVerifier(seconds=20.0)
    assert verdict(verifier, "3", "3") is PASS
    pid = verifier._worker._process.pid  # type: ignore[union-attr]
    del verifier
    gc.collect()
    assert not Path(f"/proc/{pid}").exists() or os.name != "posix"


def test_without_the_library_the_install_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"three-stage\[math\]"):
        MathVerifier()
