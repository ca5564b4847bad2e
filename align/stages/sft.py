"""Supervised fine-tuning on chats, loss on the assistant's tokens only."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Literal

from pydantic import Field

from align.context import SourceRows, StageContext, StageResult
from align.settings import ChatTrainingConfig, MixtureConfig


class SFTConfig(MixtureConfig, ChatTrainingConfig):
    """Stage 1: supervised fine-tuning on chats, loss on the assistant's tokens only."""

    num_examples: int = Field(4800, ge=1, le=10**9)
    """Chats of the task to train on; with `sources`, num_rows tells."""
    max_length: int = Field(1024, ge=8)
    """Longer chats are dropped, counted and shown; never cut, unless `too_long` of sources says
    so."""
    train_on: Literal["all", "last"] = "all"
    """Of the rows of sources: train on all of the assistant's turns, or on the last alone."""

    of_sources: ClassVar[tuple[str, ...]] = (*MixtureConfig.of_sources, "train_on")
    instead: ClassVar[tuple[str, ...]] = ("num_examples",)


def run(context: StageContext) -> StageResult:
    """Train on the rows of the sources, or on `num_examples` demonstrations of the task.

    Raises:
        StageError: the validation found faults; all are listed.
    """
    from align.training.launch import launched
    from align.training.record import begin

    return begin(context, context.settings) or launched(train, context)


def train(context: StageContext, policy: Any, tokenizer: Any) -> StageResult:
    """Teach the policy the chat format, and train."""
    from align.tasks.base import place_of
    from align.training.chat_rows import prepare, validate
    from align.training.trl import mapped, train_sft

    config: SFTConfig = context.settings
    new_tokens = prepare(policy, tokenizer)
    if context.rows is not None:
        metrics = mixture_metrics(context.rows)
        return train_sft(
            context, config, policy, tokenizer, mapped(context.rows.file), metrics, new_tokens
        )
    chats = context.task.demonstrations(config.num_examples, context.problem_seed)
    validated = validate(tokenizer, chats, config.max_length, place_of(context.task))
    metrics = {**_chats_there(context), **validated.metrics}
    return train_sft(context, config, policy, tokenizer, validated.rows, metrics, new_tokens)


def _chats_there(context: StageContext) -> dict[str, int]:
    """Chats that the task's file holds; nothing where a task makes as many as are asked for. Where
    the default of `num_examples` leaves some out, nobody has asked for that: it is said."""
    from align.tasks.base import place_of
    from align.tasks.shortfalls import ALL
    from align.training.ranks import rank

    if place_of(context.task) is None:
        return {}
    config = context.settings
    there = len(context.task.demonstrations(ALL, context.problem_seed))
    told = "num_examples" in config.model_fields_set
    if there > config.num_examples and not told and rank() == 0:
        warnings.warn(
            f"{context.entry.name}: {there:,} chats, num_examples takes {config.num_examples:,} of "
            f"them; set it to {there} to train on all",
            stacklevel=2,
        )
    return {"chats": there}


def mixture_metrics(rows: SourceRows) -> dict[str, Any]:
    """What the manifest says of the rows of sources: totals under the names that demonstrations
    have, and all counts by source."""
    return {
        "rows": rows.total("kept"),
        "rows_too_long": rows.total("too_long"),
        "assistant_tokens": rows.total("trained_tokens"),
        "sources": {name: dict(counts) for name, counts in rows.counts.items()},
    }
