"""A verifier that reads a final answer by a pattern and compares it exactly.

    verifier = ExactVerifier(r"The answer is (-?\\d+)\\.")

The last occurrence counts, so a completion may change its mind. A completion without a readable
answer is FAIL. A reference that does not itself have the form of an answer is UNSCORED: the
problem is broken, not the completion. Not covered: tolerance, units, fractions, equivalent
spellings of an answer other than those that `normalise` removes.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pts.errors import ConfigError
from pts.types import Grade, Problem, Verdict


def as_integer(text: str) -> str:
    """Canonical spelling of a whole number: no leading zeros, plus sign or thousands commas.

    Raises `ValueError` for anything else.
    """
    if not re.fullmatch(r"[+-]?(\d+|\d{1,3}(,\d{3})+)", text.strip(), re.ASCII):
        raise ValueError(f"{text!r} is not a whole number")
    return str(int(text.replace(",", "")))


class ExactVerifier:
    """Compares the last match of `pattern` with the problem's reference.

    `pattern` has one group, the answer. `normalise` maps an answer to its canonical spelling and
    raises `ValueError` for what is no answer at all. Raises `ConfigError` for a bad pattern.
    """

    def __init__(self, pattern: str, normalise: Callable[[str], str] = as_integer) -> None:
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"answer pattern {pattern!r} does not compile: {error}") from error
        if self._pattern.groups != 1:
            raise ConfigError(
                f"answer pattern {pattern!r} has {self._pattern.groups} groups; "
                "put exactly one pair of capturing brackets around the answer"
            )
        self._normalise = normalise

    def __call__(self, problem: Problem, text: str) -> Grade:
        try:
            expected = self._normalise(problem.reference)
        except ValueError as error:
            return Grade(Verdict.UNSCORED, None, f"reference of {problem.id}: {error}")
        found = self._pattern.findall(text)
        if not found:
            return Grade(Verdict.FAIL, None, "no final answer")
        try:
            answer = self._normalise(found[-1])
        except ValueError as error:
            return Grade(Verdict.FAIL, found[-1], str(error))
        if answer == expected:
            return Grade(Verdict.PASS, answer)
        return Grade(Verdict.FAIL, answer, f"expected {expected}")
