"""What a recipe's data must provide: problems with answers, demonstrations, a verifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from pts.types import Problem
from pts.verifiers.base import Verifier

if TYPE_CHECKING:
    from align.data.chat import Chat

Split: TypeAlias = Literal["train", "dev", "test"]
"""Disjoint by construction: hyper-parameters are tuned on `dev`, published numbers use `test`."""


def place_of(task: Task) -> Callable[[Chat], str] | None:
    """What tells where a task's chats come from, for messages; None for chats that are made up."""
    return getattr(task, "place_of", None)


class Task(Protocol):
    """A source of problems for all stages."""

    @property
    def verifier(self) -> Verifier:
        """Judges completions of these problems."""
        ...

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """`n` distinct problems of a split, as chat prompts; the same seed gives the same list."""
        ...

    def demonstrations(self, n: int, seed: int) -> list[Chat]:
        """`n` chats for SFT, from the train split."""
        ...

    def few_shot(self, problem: Problem) -> Problem:
        """The problem as a plain-text few-shot prompt, for a base model without a chat format."""
        ...
