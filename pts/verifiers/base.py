"""The seam between a completion and its verdict."""

from __future__ import annotations

from typing import Protocol

from pts.types import Grade, Problem


class Verifier(Protocol):
    """Judges the text of one completion. It must be deterministic.

    The prompt is never part of `text`. A completion without a readable answer is FAIL; UNSCORED
    is kept for a verifier that could not run (its reference is broken, its worker died).
    """

    def __call__(self, problem: Problem, text: str) -> Grade: ...
