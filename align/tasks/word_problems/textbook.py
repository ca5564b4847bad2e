"""The pretraining text of phi-nano: worked problems, arithmetic drills and facts.

    Question: Tom has 62 apples. He sells 18. How many apples does Tom have?
    Answer: 62-18:4,4=44
    The answer is 44.

Documents are drawn one after the other from a seed; nothing is stored. Word problems come from
the train split only, in the plain question-and-answer form (no chat markers). The family `swap` is
among them: it is new to SFT and to preference data, not to the base model. All answers are right;
what varies is the strategy (see `align.tasks.word_problems.solutions`).
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from pydantic import Field

from align.tasks.word_problems.facts import Fact, facts
from align.tasks.word_problems.solutions import StrategyMix, draw_solution, halves
from align.tasks.word_problems.stories import (
    FAMILIES,
    LEVELS,
    Difficulty,
    Family,
    Op,
    Step,
    Story,
    draw,
)
from pts.config import Settings

END_OF_TEXT = "<|endoftext|>"
"""Stands after every document."""


class TextbookConfig(Settings):
    """What the pretraining text is made of. The shares count documents."""

    problems: float = Field(0.6, ge=0)
    """Share of word problems."""
    drills: float = Field(0.3, ge=0)
    """Share of arithmetic drills: a few unrelated calculations a document."""
    facts: float = Field(0.1, ge=0)
    """Share of questions about the made-up world."""
    held_out: float = Field(0.1, ge=0, le=1)
    """Share of the family `swap`, which later stages never see, among the word problems."""
    easy: float = Field(0.5, ge=0, le=1)
    """Share of easy word problems; the others have the recipe's difficulty."""
    difficulty: Difficulty = "medium"
    """Difficulty of the word problems and of the drills."""
    distractors: float = Field(0.4, ge=0, le=1)
    """Probability of a distractor sentence in a word problem."""
    drill_lines: int = Field(4, ge=1)
    """Calculations at most in one drill."""
    drill_left: int = Field(999, ge=9)
    """Largest left number in a drill."""
    drill_right: int = Field(99, ge=9)
    """Largest right number in a drill."""
    drill_copied: float = Field(0.7, ge=0, le=1)
    """Probability that a drill lists its sums first, so that they must be copied to be worked."""
    rare: float = Field(0.08, ge=0, le=1)
    """Share of the `rare` facts among the questions about the made-up world."""
    drill_careful: float = Field(0.65, ge=0, le=1)
    """Probability that a calculation of a drill is written carefully."""

    def drills_alone(self, progress: float) -> TextbookConfig:
        """The drills that come before everything else: tables of one digit by one digit, larger
        numbers by one digit, all numbers, and at last sums that are copied first. `progress` is
        in [0, 1).
        """
        stage = bisect.bisect((0.12, 0.24, 0.6), progress)
        changes = {
            "problems": 0.0,
            "facts": 0.0,
            "drills": 1.0,
            "drill_left": 9 if stage == 0 else 999,
            "drill_right": 9 if stage <= 1 else 99,
            "drill_copied": 0.0 if stage <= 2 else 0.9,
        }
        return self.model_copy(update=changes)


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a document. What can be worked out from the text before it is to be `learnt`;
    what was drawn at random (a question, the numbers of a drill) is not."""

    text: str
    learnt: bool


Document: TypeAlias = tuple[Part, ...]


def as_question(question: str) -> str:
    """The question-and-answer form of the pretraining text, open where the answer begins."""
    return f"Question: {question}\nAnswer:"


def _answered(question: str, answer: str) -> Document:
    return Part(as_question(question), False), Part(f" {answer}", True)


def documents(config: TextbookConfig, mix: StrategyMix, seed: int | str) -> Iterator[Document]:
    """Draw documents without end, the worked answers from `mix`; a seed gives one sequence."""
    rng = random.Random(seed)
    world = facts()
    common = [f for f in world if f.tier == "common"]
    rare = [f for f in world if f.tier == "rare"]
    kinds, weights = "pdf", (config.problems, config.drills, config.facts)
    while True:
        kind = rng.choices(kinds, weights)[0]
        if kind == "p":
            yield _problem(rng, config, mix)
        elif kind == "d":
            yield _drill(rng, config)
        else:
            yield _fact(rng.choice(rare if rng.random() < config.rare else common))


def train_story(rng: random.Random, config: TextbookConfig) -> Story:
    """Draw a story of the train split."""
    family: Family = "swap" if rng.random() < config.held_out else rng.choice(FAMILIES)
    difficulty: Difficulty = "easy" if rng.random() < config.easy else config.difficulty
    while True:
        story = draw(rng, family, difficulty, config.distractors)
        if story.split == "train":
            return story


def _problem(rng: random.Random, config: TextbookConfig, mix: StrategyMix) -> Document:
    story = train_story(rng, config)
    return _answered(story.text, draw_solution(rng, story, mix))


def _drill(rng: random.Random, config: TextbookConfig) -> Document:
    """Sums and their working; in a copied drill the sums stand in a row before they are worked.

    Copying a number of several digits out of a text is half of solving a word problem, and the
    half that is learnt last.
    """
    copied = rng.random() < config.drill_copied
    n = rng.randint(1, config.drill_lines)
    lines = [halves(_exercise(rng, config), rng.random() < config.drill_careful) for _ in range(n)]
    row = [Part(", ".join(sum_ for sum_, _ in lines) + "\n", False)] if copied else []
    parts = ((Part(sum_, copied), Part(f"{worked}\n", True)) for sum_, worked in lines)
    return (*row, *itertools.chain.from_iterable(parts))


def _exercise(rng: random.Random, config: TextbookConfig) -> Step:
    """A calculation within the ceiling; numbers of one, two and three digits are equally likely."""
    ceiling = LEVELS[config.difficulty].ceiling
    ops: tuple[Op, ...] = ("+", "-", "*")
    (op,) = rng.choices(ops, (2, 2, 1))
    left_top = min(rng.choice((9, 99, ceiling)), config.drill_left)
    if op == "*":
        right = rng.randint(2, 9)
        return Step(rng.randint(2, min(left_top, 99, ceiling // right)), op, right)
    right = rng.randint(2, min(rng.choice((9, 99, 99)), config.drill_right))
    left = rng.randint(2, left_top)
    if op == "+":
        return Step(min(left, ceiling - right), op, right)
    return Step(min(left + right, ceiling), op, right)


def _fact(fact: Fact) -> Document:
    return _answered(fact.question, f"{fact.answer}.")
