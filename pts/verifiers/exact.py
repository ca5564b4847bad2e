"""A verifier that reads a final answer by a pattern and compares it exactly.

    verifier = ExactVerifier(r"The answer is (-?\\d+)\\.")

The last occurrence counts, so a completion may change its mind. A completion without a readable
answer is FAIL, and so is one on which the pattern backtracks for longer than two seconds of CPU
time. A reference that does not itself have the form of an answer is UNSCORED: the problem is
broken, not the completion. Not covered: tolerance, units, fractions, equivalent spellings of an
answer other than those that `normalise` removes.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pts.errors import ConfigError
from pts.types import Grade, Problem, Verdict

PATTERN_SECONDS = 2.0
"""CPU time that the pattern may take on one completion."""


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
        import regex  # here, for `pts --help` does without; unlike `re` it can be given a limit

        try:
            self._search = regex.compile(pattern)
        except regex.error as error:
            raise ConfigError(f"answer pattern {pattern!r} does not compile: {error}") from error
        self._answer = _group(pattern)
        self._normalise = normalise

    def can_match(self, reference: str) -> bool:
        """Whether the pattern's group can spell a reference, as far as that can be told.

        A reference "18." never equals what a group of digits finds.
        """
        if self._answer is None:
            return True
        try:
            spellings = {reference.strip(), self._normalise(reference)}
        except ValueError:
            return True  # such a reference is UNSCORED
        if re.fullmatch(r"-?\d+", canonical := self._normalise(reference)):
            spellings |= {f"{int(canonical):,}", f"+{canonical}"}
        return any(self._answer.fullmatch(spelling) for spelling in spellings)

    def __call__(self, problem: Problem, text: str) -> Grade:
        try:
            expected = self._normalise(problem.reference)
        except ValueError as error:
            return Grade(Verdict.UNSCORED, None, f"reference of {problem.id}: {error}")
        try:
            found = self._search.findall(text, timeout=PATTERN_SECONDS)
        except TimeoutError:
            reason = f"the pattern took longer than {PATTERN_SECONDS:g} s"
            return Grade(Verdict.FAIL, None, reason)
        if not found:
            return Grade(Verdict.FAIL, None, "no final answer")
        try:
            answer = self._normalise(found[-1])
        except ValueError as error:
            return Grade(Verdict.FAIL, found[-1], str(error))
        if answer == expected:
            return Grade(Verdict.PASS, answer)
        return Grade(Verdict.FAIL, answer, f"expected {expected}")


def _group(pattern: str) -> re.Pattern[str] | None:
    """The pattern inside the one pair of capturing brackets; None where it does not stand alone."""
    bare = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", lambda match: "x" * len(match[0]), pattern)
    opening = re.search(r"\((?!\?)|\(\?P<\w+>", bare)
    assert opening is not None
    depth, end = 1, opening.end()
    while depth:
        depth += {"(": 1, ")": -1}.get(bare[end], 0)
        end += 1
    try:
        return re.compile(pattern[opening.end() : end - 1])
    except re.error:
        return None
