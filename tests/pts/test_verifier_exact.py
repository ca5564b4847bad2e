"""The final answer is read where it stands last, and compared exactly."""

from __future__ import annotations

import pytest

from pts.errors import ConfigError
from pts.types import Problem, Verdict
from pts.verifiers import exact
from pts.verifiers.exact import ExactVerifier, as_integer
from pts.verifiers.registry import ReferenceCheck, make_verifier

VERIFY = ExactVerifier(r"The answer is (-?\d+)\.")


def problem(reference: str) -> Problem:
    return Problem("p", "What is 6*7?", reference)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("6*7=42\nThe answer is 42.", Verdict.PASS),
        ("The answer is 41. No. The answer is 42.", Verdict.PASS),
        ("The answer is 42. No. The answer is 41.", Verdict.FAIL),
        ("The answer is 042.", Verdict.PASS),
        ("The answer is 4.", Verdict.FAIL),
        ("The answer is 420.", Verdict.FAIL),
        ("The answer is 42", Verdict.FAIL),
        ("The answer is -42.", Verdict.FAIL),
        ("42", Verdict.FAIL),
        ("", Verdict.FAIL),
    ],
)
def test_the_last_anchored_answer_decides(text: str, verdict: Verdict) -> None:
    assert VERIFY(problem("42"), text).verdict is verdict


def test_a_verdict_says_what_was_read() -> None:
    judged = VERIFY(problem("42"), "The answer is 41.")
    assert (judged.answer, judged.reason) == ("41", "expected 42")
    assert VERIFY(problem("42"), "forty-two").answer is None


@pytest.mark.parametrize("reference", ["", "forty-two", "4 2", "4.0", "1,23"])
def test_a_broken_reference_is_unscored_whatever_the_completion(reference: str) -> None:
    for text in ("The answer is 42.", "no answer"):
        judged = VERIFY(problem(reference), text)
        assert judged.verdict is Verdict.UNSCORED
        assert "reference of p" in judged.reason


def test_a_match_that_is_no_answer_fails() -> None:
    loose = ExactVerifier(r"The answer is (.*)\.")
    assert loose(problem("42"), "The answer is unknown.").verdict is Verdict.FAIL


@pytest.mark.parametrize("pattern", ["(", r"The answer is \d+", r"(The) answer is (\d+)"])
def test_a_pattern_without_one_group_is_refused(pattern: str) -> None:
    with pytest.raises(ConfigError, match="answer pattern"):
        ExactVerifier(pattern)


@pytest.mark.parametrize(
    ("text", "canonical"), [(" 7 ", "7"), ("+7", "7"), ("-0", "0"), ("1,234", "1234")]
)
def test_whole_numbers_have_one_spelling(text: str, canonical: str) -> None:
    assert as_integer(text) == canonical


def test_a_pattern_that_backtracks_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "PATTERN_SECONDS", 0.05)
    endless = ExactVerifier(r"^((?:[^X]|[^X])+)X", str.strip)
    assert endless(problem("a"), "a" * 60).verdict is Verdict.FAIL
    judged = ExactVerifier(r"^((?:a|a)+)[bc]$", str.strip)(problem("a"), "a" * 60 + "d")
    assert (judged.verdict, judged.reason) == (
        Verdict.FAIL,
        "the pattern took longer than 0.05 s",
    )


@pytest.mark.parametrize(
    ("pattern", "reference", "can"),
    [
        (r"answer is (-?\d+)\.", "18", True),
        (r"answer is (-?\d+)\.", "18.", False),
        (r"answer is (-?\d+)\.", "27.0", False),
        (r"answer is (-?\d+)\.", "007", True),  # whole numbers in any spelling
        (r"answer is ([\d,]+)", "1234567", True),
        (r"answer is ([\d,]+)", "-3", False),
        (r"\((?P<letter>[A-D])\)", "B", True),
        (r"\((?P<letter>[A-D])\)", "E", False),
        (r"(?i:answer) ([()]+)", "()", True),
        (r"(?:(a)|b)+", "b", False),
    ],
)
def test_references_that_no_answer_can_match_are_told(
    pattern: str, reference: str, can: bool, caplog: pytest.LogCaptureFixture
) -> None:
    check = ReferenceCheck(make_verifier(f"exact:{pattern}"))
    assert check(problem(reference)) is None
    check.warn()
    told = f"cannot spell 1 of 1 references, so that no answer to them is right: p: {reference!r}"
    assert (told in caplog.text) is not can
