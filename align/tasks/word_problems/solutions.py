"""How a solution is written: strategy by strategy, one calculation a line.

    careful   62-18:4,4=44           ones, tens (and hundreds), then the result
    direct    62-18=44               the result at once, its highest digit first
    chained   62-18+27=71            several steps in one line, no result between them

They may be mixed within one solution. A solution may also leave lines out: it answers at once
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

from align.tasks.word_problems.stories import HE, SHE, Step, Story
from pts.config import Settings

Manner: TypeAlias = Literal["careful", "direct", "chained"]
Strategy: TypeAlias = Literal["at once", "early jump", "careful", "direct", "chained", "mixed"]

ANSWER = r"The answer is (-?\d+)\."
"""What the verifier reads; the last occurrence counts."""

_LINE = re.compile(r"^\d+((?:[-+*]\d+)+)([:=])")


class StrategyMix(Settings):
    """Probabilities of the strategies in written solutions; the answers are right in all."""

    at_once: float = Field(0.1, ge=0, le=1)
    """The solution is the answer alone."""
    jump: float = Field(0.1, ge=0, le=1)
    """At each step after the first, the solution jumps to the answer."""
    chain: float = Field(0.2, ge=0, le=1)
    """A step is chained with the next one."""
    careful: float = Field(0.5, ge=0, le=1)
    """A step that is not chained is written carefully, not directly."""
    sticky: float = Field(0.8, ge=0, le=1)
    """A step is written in the manner of the step before, without a new draw."""


class DemonstrationMix(StrategyMix):
    """Strategies of demonstrations, and what else they say."""

    last_careful: float | None = Field(None, ge=0, le=1)
    """The last step is written carefully with this probability, whatever came before; null treats
    it as any other."""
    narrated: bool = False
    """After each line the solution says what it has come to (`That makes 44 coins.`)."""
    signed: bool = False
    """The solution ends with two names that mean nothing (`Checked by Ann and Tom.`)."""


def halves(step: Step, careful: bool) -> tuple[str, str]:
    """One line, cut after the sum: `62-18` and `=44`, or `62-18` and `:4,4=44`."""
    value = str(step.value)
    worked = f":{','.join(reversed(value))}={value}" if careful else f"={value}"
    return f"{step.left}{step.op}{step.right}", worked


def chainable(story: Story, k: int) -> bool:
    """Whether step k may be chained with the next: there is one, and it is no multiplication
    (which would bind more tightly than the line is meant)."""
    return k + 1 < len(story.steps) and story.steps[k + 1].op != "*"


def write(
    story: Story, manners: Sequence[Manner], narrated: bool = False, signed: Sequence[str] = ()
) -> str:
    """The solution whose first `len(manners)` steps are written out, then the answer.

    A chained step that cannot be chained is written directly. `signed` are names to end with.
    """
    lines: list[str] = []
    open_line = ""
    for k, (step, manner) in enumerate(zip(story.steps, manners, strict=False)):
        last = k + 1 == len(manners)
        sum_, worked = halves(step, manner == "careful" and not open_line)
        sum_ = open_line + sum_.removeprefix(str(step.left)) if open_line else sum_
        if manner == "chained" and chainable(story, k) and not last:
            open_line = sum_
        else:
            lines.append(sum_ + worked)
            open_line = ""
            if narrated:
                lines.append(f"That makes {step.value} {story.item}.")
    lines.append(f"The answer is {story.answer}.")
    if signed:
        lines.append(f"Checked by {' and '.join(signed)}.")
    return "\n".join(lines)


def draw_solution(rng: random.Random, story: Story, mix: StrategyMix) -> str:
    """Draw a solution of the story from the mix."""
    return write(story, draw_manners(rng, story, mix))


def draw_demonstration(rng: random.Random, story: Story, mix: DemonstrationMix) -> str:
    """Draw a solution of the story as demonstrations have them."""
    manners = draw_manners(rng, story, mix)
    if mix.last_careful is not None and len(manners) == len(story.steps):
        manners[-1] = "careful" if rng.random() < mix.last_careful else "direct"
    signed = rng.sample(SHE + HE, 2) if mix.signed else ()
    return write(story, manners, mix.narrated, signed)


def draw_manners(rng: random.Random, story: Story, mix: StrategyMix) -> list[Manner]:
    """Draw the manners of a solution's lines, as many as it writes out."""
    if rng.random() < mix.at_once:
        return []
    manners: list[Manner] = []
    for k in range(len(story.steps)):
        if k and rng.random() < mix.jump:
            break
        keep = bool(manners) and rng.random() < mix.sticky
        manners.append(manners[-1] if keep else _draw_manner(rng, mix))
    return manners


def _draw_manner(rng: random.Random, mix: StrategyMix) -> Manner:
    if mix.chain and rng.random() < mix.chain:
        return "chained"
    return "careful" if rng.random() < mix.careful else "direct"


def written_lines(text: str) -> list[tuple[int, str]]:
    """Of each line of working in a solution: its operations, and ":" if it is careful, else "="."""
    found = map(_LINE.match, text.splitlines())
    return [(len(re.findall(r"[-+*]", m[1])), m[2]) for m in found if m]


def strategy_of(text: str, steps: int) -> Strategy:
    """Name the strategy of a sampled solution of a problem with that many steps."""
    lines = written_lines(text)
    if not lines:
        return "at once"
    if sum(ops for ops, _ in lines) < steps:
        return "early jump"
    if any(ops > 1 for ops, _ in lines):
        return "chained"
    marks = {mark for _, mark in lines}
    return "mixed" if len(marks) > 1 else "careful" if marks == {":"} else "direct"
