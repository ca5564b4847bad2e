"""Supervised fine-tuning on chats, loss on the assistant's tokens only."""

from __future__ import annotations

from pydantic import Field

from align.context import StageContext, StageResult
from align.settings import TrainingConfig


class SFTConfig(TrainingConfig):
    """Stage 1: supervised fine-tuning on chats, loss on the assistant's tokens only."""

    num_examples: int = Field(4800, ge=1, le=10**9)
    """Chats to train on."""
    max_length: int = Field(1024, ge=8)
    """Longer chats are dropped, counted and shown, never cut."""


def run(context: StageContext) -> StageResult:
    """Train on `num_examples` demonstrations of the task.

    Raises:
        StageError: the validation found faults; all are listed.
    """
    from align.tasks.base import place_of
    from align.training import loop
    from align.training.chat_rows import prepare, validate
    from align.training.trl import train_sft

    config: SFTConfig = context.settings
    done = loop.begin(context, config)
    if done is not None:
        return done
    policy, tokenizer = loop.load_trainable(context.policy, context.recipe.model, config)
    new_tokens = prepare(policy, tokenizer)
    chats = context.task.demonstrations(config.num_examples, context.problem_seed)
    validated = validate(tokenizer, chats, config.max_length, place_of(context.task))
    return train_sft(context, config, policy, tokenizer, validated, new_tokens)
