"""Word problems with demonstrations and a verifier: the task that ships with the project.

    task = WordProblems()
    task.problems("dev", 200, seed=0)

A problem's split is a digest of its content (`align.tasks.word_problems.stories`), so train, dev
and test cannot
share one. Families that are held out (`WordProblems(families=("relay",))`) have a test split only:
demonstrations, search and tuning never see them.

The demonstrations are noisy in strategy and in nothing else: every final answer and every line in
them is right. Some answer at once, some jump to the answer early, some chain several steps in one
line, some steps are written without working. Problems about the `terse` items answer at once or
chain more often than the others. A small model fails at these habits because it cannot calculate
that way, not because it was taught wrong answers. That gives the later stages something to find,
and it is a property of this task, not of post-training data in general.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from align.data.chat import Chat
from align.tasks.base import Split
from align.tasks.word_problems.planted import PlantedConfig, PlantedVerifier
from align.tasks.word_problems.solutions import (
    ANSWER,
    DemonstrationMix,
    Manner,
    draw_demonstration,
    write,
)
from align.tasks.word_problems.stories import (
    FAMILIES,
    HELD_OUT,
    ITEMS,
    Difficulty,
    Family,
    Story,
    draw,
)
from align.tasks.word_problems.textbook import END_OF_TEXT, as_question
from pts.config import Settings
from pts.errors import ConfigError, did_you_mean
from pts.types import Message, Problem
from pts.verifiers.exact import ExactVerifier

_SHOWN: tuple[Manner, Manner] = ("direct", "careful")
_TERSE = ("cards", "keys", "nuts", "rings", "shells")


class WordProblemsConfig(Settings):
    """Which problems, and how the demonstrations are written."""

    families: tuple[Family, ...] = Field(FAMILIES, min_length=1)
    """Families to draw from, all equally often. `swap` and `relay` are held out: with one of them
    there is a test split only."""
    difficulty: Difficulty = "hard"
    """Steps and size of the numbers; the base model was pretrained on the two lowest ones."""
    distractors: float = Field(0.4, ge=0, le=1)
    """Probability of a distractor sentence."""
    terse_items: tuple[str, ...] = _TERSE
    """Things whose problems are answered in the terse manner."""
    terse: DemonstrationMix = DemonstrationMix(at_once=0.4, jump=0.05, chain=0.5)
    """Strategies of the demonstrations about terse items."""
    plain: DemonstrationMix = DemonstrationMix(at_once=0.1, jump=0.05, chain=0.25)
    """Strategies of all other demonstrations."""
    planted: PlantedConfig | None = None
    """By which right answers of one manner pass more often than others; null plants nothing."""


class WordProblems:
    """The `Task` protocol over stories. Keyword arguments are those of `WordProblemsConfig`.

    Raises `ConfigError` for an unknown setting or item, or another split of a held-out family.
    """

    def __init__(self, **settings: Any) -> None:
        faults = [
            f"word problems: unknown setting {name!r}"
            + did_you_mean(name, WordProblemsConfig.model_fields)
            for name in settings
            if name not in WordProblemsConfig.model_fields
        ]
        if faults:
            raise ConfigError(*faults)
        self.config = WordProblemsConfig(**settings)
        _check(self.config)
        planted = self.config.planted
        self.verifier = PlantedVerifier(ANSWER, planted) if planted else ExactVerifier(ANSWER)

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """`n` distinct problems of a split; the same seed gives the same list."""
        return [self._problem(story) for story in self._stories(split, n, seed)]

    def demonstrations(self, n: int, seed: int) -> list[Chat]:
        """`n` chats about distinct problems of the train split."""
        rng = random.Random(f"demonstrations/{seed}")
        return [
            (Message("user", story.text), Message("assistant", self._solution(rng, story)))
            for story in self._stories("train", n, seed)
        ]

    def few_shot(self, problem: Problem) -> Problem:
        """The problem in the form of the pretraining text, after two worked train problems."""
        if isinstance(problem.prompt, str):
            return problem
        shown = "".join(
            f"{as_question(story.text)} {write(story, [manner] * len(story.steps))}{END_OF_TEXT}"
            for manner, story in zip(_SHOWN, _examples(self.config), strict=True)
        )
        text = shown + as_question(problem.prompt[-1].content)
        return Problem(f"{problem.id}/few-shot", text, problem.reference, problem.metadata)

    def _stories(self, split: Split, n: int, seed: int) -> list[Story]:
        families = self.config.families
        held_out = [family for family in families if family in HELD_OUT]
        if held_out and split != "test":
            raise ConfigError(
                f"{held_out[0]!r} is held out: it has a test split only, not {split!r}"
            )
        rng = random.Random(f"problems/{split}/{seed}")
        found: dict[str, Story] = {}
        while len(found) < n:
            story = draw(rng, rng.choice(families), self.config.difficulty, self.config.distractors)
            if story.split == split:
                found.setdefault(story.digest, story)
        return list(found.values())

    def _solution(self, rng: random.Random, story: Story) -> str:
        terse = story.item in self.config.terse_items
        return draw_demonstration(rng, story, self.config.terse if terse else self.config.plain)

    def _problem(self, story: Story) -> Problem:
        metadata = {
            "family": story.family,
            "steps": len(story.steps),
            "distractor": story.aside is not None,
            "terse": story.item in self.config.terse_items,
        }
        prompt = (Message("user", story.text),)
        return Problem(f"{story.family}-{story.digest}", prompt, str(story.answer), metadata)


def _check(config: WordProblemsConfig) -> None:
    faults = [
        f"word problems: unknown item {item!r} in terse_items{did_you_mean(item, ITEMS)}"
        for item in config.terse_items
        if item not in ITEMS
    ]
    if faults:
        raise ConfigError(*faults)


def _examples(config: WordProblemsConfig) -> Iterator[Story]:
    """Two fixed problems of the train split, of two families."""
    rng = random.Random("few-shot")
    for family in ("shop", "compare"):
        while True:
            story = draw(rng, family, config.difficulty, 0.0)
            if story.split == "train":
                yield story
                break
