"""A planted fork: a right answer passes with a chance that depends on how one line is written.

A small model masters two manners of working about equally well or one of them not at all, so a fork
at which a good branch passes .9 of the time and a bad one .55 has to be planted. Here a right
answer passes if a number in [0, 1), which a digest of problem and solution gives, lies below the
pass rate of the manner of its deciding line. The verdict is a function of the text, and nothing in
the text tells it: the two names with which these solutions end (`DemonstrationMix.signed`) are
drawn after the deciding line and make some 400 texts of one solution. So p(success) after the line
is the pass rate times the chance of a right answer, known exactly, and no training can learn the
rest.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import Field

from align.tasks.word_problems.solutions import written_lines
from pts.config import Settings
from pts.types import Grade, Problem, Verdict
from pts.verifiers.exact import ExactVerifier


class PlantedConfig(Settings):
    """The pass rates of right answers by the manner of one line."""

    line: Literal["first", "last"] = "first"
    """The deciding line."""
    careful: float = Field(ge=0, le=1)
    """Pass rate where it is careful."""
    direct: float = Field(ge=0, le=1)
    """Pass rate where it is direct, or where no line is written."""


class PlantedVerifier(ExactVerifier):
    """`ExactVerifier`, whose PASS stands with the pass rate of the solution's manner."""

    def __init__(self, pattern: str, planted: PlantedConfig) -> None:
        super().__init__(pattern)
        self._planted = planted

    def __call__(self, problem: Problem, text: str) -> Grade:
        grade = super().__call__(problem, text)
        if grade.verdict is not Verdict.PASS or lot(problem.id, text) < self._rate(text):
            return grade
        return Grade(Verdict.FAIL, grade.answer, "right, and failed by the planted rule")

    def _rate(self, text: str) -> float:
        lines = written_lines(text)
        mark = lines[0 if self._planted.line == "first" else -1][1] if lines else "="
        return self._planted.careful if mark == ":" else self._planted.direct


def lot(problem_id: str, text: str) -> float:
    """A number in [0, 1) for a problem and a solution, uniform over texts."""
    digest = hashlib.blake2b(f"{problem_id}\n{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
