"""The data of a recipe's stages, looked at before anything is trained: no weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from align.context import StageEntry, seed_of
from align.data.formats import Conversation
from align.errors import RecipeError
from align.mixture.encode import Encoder
from align.mixture.losses import SourceCounts
from align.mixture.sources import Example, Mixture
from align.mixture.view import StageView, look
from align.models.load import prepare_base
from align.pipeline.recipe import Recipe
from align.pipeline.source_rows import chat_tokenizer, has_sources, mixture_of
from align.tasks.base import place_of
from align.tasks.registry import build_task

CHATS = "demonstrations"
TEACHING = ("sft", "rejection_sft")
"""Stages that teach a tokenizer the template's tokens."""


class Demonstrations(Mixture):
    """The chats of a task as the one source of a stage."""

    def __init__(self, recipe: Recipe, entry: StageEntry) -> None:
        config: Any = entry.settings
        super().__init__([], config, 0)
        task = build_task(recipe.task)
        seed = seed_of(recipe.seed, entry.share or entry.name, "problems")
        self._chats = task.demonstrations(config.num_examples, seed)
        self._place_of = place_of(task)

    def examples(self) -> Iterator[Example]:
        """The chats, in their order."""
        for number, chat in enumerate(self._chats):
            spoken = sum(message.role == "assistant" for message in chat)
            place = self._place_of(chat) if self._place_of else f"chat {number}"
            yield Example(CHATS, place, Conversation(chat, (True,) * spoken))

    def counts(self) -> dict[str, SourceCounts]:
        """All chats are drawn."""
        return {CHATS: SourceCounts(rows=len(self._chats), drawn=len(self._chats))}


def view_data(recipe: Recipe, stages: Sequence[str], samples: int) -> list[StageView]:
    """Views of the stages that train on chats or on rows of sources, in the recipe's order.

    Args:
        recipe: the whole recipe.
        stages: names of those to look at; none looks at all.
        samples: rows to show of each source.

    Raises:
        RecipeError: no such stage, or faults of the sources.
        StageError: rows that the template or the tokenizer refuses.
    """
    known = [entry for entry in recipe.stages if _has_rows(recipe, entry)]
    unknown = [name for name in stages if name not in {entry.name for entry in known}]
    if unknown or not known:
        names = ", ".join(entry.name for entry in known) or "none"
        raise RecipeError(
            f"--stage: {', '.join(unknown) or recipe.name}: trains on no rows that are there "
            f"before it runs; {names} of this recipe does"
        )
    policy = prepare_base(recipe.model)
    wanted = [entry for entry in known if not stages or entry.name in stages]
    return [_view(recipe, entry, policy, samples) for entry in wanted]


def _has_rows(recipe: Recipe, entry: StageEntry) -> bool:
    return has_sources(entry) or recipe.draws(entry) == "demonstrations"


def _view(recipe: Recipe, entry: StageEntry, policy: Path, samples: int) -> StageView:
    config: Any = entry.settings
    earlier = recipe.stages[: recipe.stages.index(entry)]
    taught = any(other.kind in TEACHING for other in earlier)
    tokenizer = chat_tokenizer(recipe, config, policy, taught)
    rows = mixture_of(recipe, entry) if has_sources(entry) else Demonstrations(recipe, entry)
    encoder = Encoder(rows, tokenizer, config.max_length)
    view = look(encoder, tokenizer, entry.name, config.max_length, samples, recipe.seed)
    # Demonstrations have no limits: what is too long is dropped and counted, whatever its share.
    return view if has_sources(entry) else replace(view, faults=())
