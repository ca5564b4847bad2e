"""Verifiers for mathematics, multiple choice and plain functions."""

from __future__ import annotations

import gc
import importlib.util
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from pts.errors import ConfigError, MissingExtra, VerifierError
from pts.types import Judgement, Problem, Verdict
from pts.verifiers.base import Verifier
from pts.verifiers.callable import CallableVerifier
from pts.verifiers.choice import ChoiceVerifier
from pts.verifiers.math import MathVerifier

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
        judgement = ChoiceVerifier()(Problem("q1", "", reference), "Answer: C")
        assert judgement.verdict is UNSCORED
        assert "q1" in judgement.reason


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
        (Judgement(FAIL, "3", "no"), FAIL),
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
    verifier = MathVerifier(seconds=2.0)
    judgement = verifier(Problem("q1", "", "3"), r"\boxed{9^{9^{9^{9}}}}")
    assert judgement.verdict is FAIL
    assert verdict(verifier, "3", "3") is PASS


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
