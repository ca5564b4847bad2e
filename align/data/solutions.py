"""How a solution is written: strategy by strategy, one calculation a line.

    direct    62-18=44               the result at once, its highest digit first
    careful   62-18:4,4=44           ones, tens (and hundreds), then the result

Both may be mixed within one solution. A solution may also leave lines out: it answers at once
(no line) or jumps to the answer early (some lines). Every solution rendered here ends in the
right answer, so what separates the strategies is how often a model that writes in this manner
gets there. Equations carry no spaces, which saves a fifth of the tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Literal, TypeAlias

from pydantic import Field

from align.data.stories import Step, Story
from pts.config import Settings

Strategy: TypeAlias = Literal["at once", "early jump", "direct", "careful", "mixed"]

ANSWER = r"The answer is (-?\d+)\."
"""What the verifier reads; the last occurrence counts."""

_LINE = re.compile(r"^(\d+)([-+*])(\d+)([:=])(.*)$")


class StrategyMix(Settings):
    """Probabilities of the strategies in written solutions; the answers are right in all."""

    at_once: float = Field(0.1, ge=0, le=1)
    """The solution is the answer alone."""
    jump: float = Field(0.15, ge=0, le=1)
    """At each step after the first, the solution jumps to the answer."""
    careful: float = Field(0.5, ge=0, le=1)
    """A step is written carefully, not directly."""
    sticky: float = Field(0.8, ge=0, le=1)
    """A step is written in the manner of the step before, without a new draw."""


def halves(step: Step, careful: bool) -> tuple[str, str]:
    """One line, cut after the sum: `62-18` and `=44`, or `62-18` and `:4,4=44`."""
    value = str(step.value)
    worked = f":{','.join(reversed(value))}={value}" if careful else f"={value}"
    return f"{step.left}{step.op}{step.right}", worked


def write(story: Story, careful: Sequence[bool]) -> str:
    """The solution whose first `len(careful)` steps are written out, then the answer."""
    lines = ["".join(halves(s, c)) for s, c in zip(story.steps, careful, strict=False)]
    return "\n".join([*lines, f"The answer is {story.answer}."])


def draw_solution(rng: random.Random, story: Story, mix: StrategyMix) -> str:
    """Draw a solution of the story from the mix."""
    if rng.random() < mix.at_once:
        return write(story, ())
    careful: list[bool] = []
    for k in range(len(story.steps)):
        if k and rng.random() < mix.jump:
            break
        keep = bool(careful) and rng.random() < mix.sticky
        careful.append(careful[-1] if keep else rng.random() < mix.careful)
    return write(story, careful)


def strategy_of(text: str, steps: int) -> Strategy:
    """Name the strategy of a sampled solution of a problem with that many steps."""
    marks = [m[4] for m in map(_LINE.match, text.splitlines()) if m]
    if not marks:
        return "at once"
    if len(marks) < steps:
        return "early jump"
    if len(set(marks)) > 1:
        return "mixed"
    return "careful" if marks[0] == ":" else "direct"
