"""Problems of the reasoning-gym package as a task (optional extra `smollm2`).

Splits are disjoint by construction: a stable digest of the question's text decides its split, so
a question that the generator repeats under another seed stays on its side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from align.data.chat import Chat
from align.errors import RecipeError
from align.settings import ReasoningGymTask
from align.tasks.base import Split
from pts.errors import MissingExtra, did_you_mean
from pts.types import Message, Problem
from pts.verifiers.registry import make_verifier

SPLITS: tuple[Split, ...] = ("train", "train", "train", "dev", "test")
"""Fifths: three of five questions are train, one dev, one test."""
CHUNK, CHUNKS = 500, 10
"""Questions generated at a time, and how often for one seed."""


class GymTask:
    """Questions of one reasoning-gym data set; the last integer of a completion is its answer."""

    def __init__(self, config: ReasoningGymTask) -> None:
        try:
            import reasoning_gym
        except ImportError:
            raise MissingExtra("reasoning-gym", "smollm2") from None
        known = list(reasoning_gym.factory.DATASETS)
        if config.dataset not in known:
            hint = did_you_mean(config.dataset, known)
            raise RecipeError(f"task.dataset: got {config.dataset!r}{hint}")
        self._config = config
        self._create = partial(reasoning_gym.create_dataset, config.dataset, **config.options)
        try:
            self._create(seed=0, size=1)
        except (TypeError, AssertionError) as error:
            raise RecipeError(f"task.options: {error}") from None
        self.verifier = make_verifier(r"exact:(-?\d+)")

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """Up to `n` distinct questions; fewer where the data set has no more."""
        return [self._problem(entry) for entry in self._entries(split, n, seed)]

    def demonstrations(self, n: int, seed: int) -> list[Chat]:
        """Question and a one-sentence answer."""
        return [
            (*self._messages(entry), Message("assistant", f"The answer is {entry['answer']}."))
            for entry in self._entries("train", n, seed)
        ]

    def few_shot(self, problem: Problem) -> Problem:
        """The question as plain text after three solved ones of the train split."""
        solved = self._entries("train", 3, 0)
        shots = "".join(
            f"Question: {self._text(e)}\nAnswer: The answer is {e['answer']}.\n\n" for e in solved
        )
        question = problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1].content
        return Problem(
            problem.id, f"{shots}Question: {question}\nAnswer:", problem.reference, problem.metadata
        )

    def _problem(self, entry: dict[str, Any]) -> Problem:
        key = hashlib.sha256(entry["question"].encode()).hexdigest()[:16]
        return Problem(
            f"{self._config.dataset}-{key}",
            self._messages(entry),
            str(entry["answer"]),
            {"family": self._config.dataset},
        )

    def _messages(self, entry: dict[str, Any]) -> tuple[Message, ...]:
        return (Message("user", self._text(entry)),)

    def _text(self, entry: dict[str, Any]) -> str:
        return f"{entry['question']} {self._config.instruction}".strip()

    def _entries(self, split: Split, n: int, seed: int) -> list[dict[str, Any]]:
        seen: set[str] = set()
        found: list[dict[str, Any]] = []
        for entry in self._stream(seed):
            question = entry["question"]
            if question not in seen and _split_of(question) == split:
                found.append(entry)
            seen.add(question)
            if len(found) == n:
                break
        return found

    def _stream(self, seed: int) -> Iterator[dict[str, Any]]:
        """Entries of all chunks: small data sets repeat themselves long before that.

        reasoning-gym makes entry i of a data set from its seed plus i, so chunks lie CHUNK apart.
        """
        for chunk in range(CHUNKS):
            yield from self._create(seed=(seed * CHUNKS + chunk) * CHUNK, size=CHUNK)


def _split_of(question: str) -> Split:
    return SPLITS[int(hashlib.sha256(question.encode()).hexdigest(), 16) % len(SPLITS)]
