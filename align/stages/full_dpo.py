"""Stage 3: DPO on full-length pairs, sampled from the stage before and judged by the verifier."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from align.context import StageContext, StageResult
from align.data.preferences import (
    PreferencePair,
    build_pairs,
    count_outcomes,
    write_preferences,
)
from align.errors import StageError
from align.settings import TrainingConfig
from align.stages.sampling import load_engine, sample_answers

PAIRS = "pairs.jsonl"


class FullDPOConfig(TrainingConfig):
    """Stage 3: DPO on full-length pairs, sampled from the stage before and judged."""

    num_problems: int = Field(400, ge=1, le=10**9)
    """Problems to sample."""
    samples: int = Field(6, ge=2, le=100_000)
    """Completions a question."""
    match: tuple[str, ...] = ()
    """Stages whose generated tokens this one spends too, all together, within 2 %: it asks as many
    questions as that allows, whatever num_problems says."""
    pairs_per_question: int = Field(1, ge=1, le=100_000)
    """Right/wrong pairs at most of one question."""
    max_pairs: int = Field(0, ge=0)
    """Pairs at most in all; 0 keeps all."""
    beta: float = Field(0.3, gt=0)
    """Strength of the pull towards the reference."""
    nll_weight: float = Field(0.0, ge=0)
    """Weight of the negative log-likelihood of the chosen completions, a mean over the batch's
    tokens, against displacement (Pang et al. 2024)."""
    style_weight: float = Field(0.0, ge=0)
    """Weight of the rule-based style and detail scores (1-5) in choosing among right answers."""
    reference: str = "start"
    """`start`: the policy that this stage starts from; else the folder of a model."""
    strict: bool = True
    """Refuse pairs that were sampled from another policy than the reference."""


def run(context: StageContext) -> StageResult:
    """RolloutQuery, pair, train.

    Raises:
        StageError: no question with both right and wrong answers, or a reference other than the
            sampled policy under `strict`.
    """
    from align.training import loop as training
    from align.training.trl import dpo_trainer

    config = context.settings
    done = training.begin(context, config)
    if done is not None:
        return done
    pairs, metrics = collect(context)
    policy, tokenizer = training.load_trainable(context.policy, context.recipe.model, config)
    rows = [(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) for pair in pairs]
    reference = None
    if config.reference != "start":
        reference, _ = training.load_trainable(config.reference, context.recipe.model, config)
    trainer = dpo_trainer(
        context, config, config.beta, config.nll_weight, policy, tokenizer, rows, reference
    )
    loss_tokens = sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
    metrics |= training.fit(trainer, context, loss_tokens)
    return training.finish(context, trainer.model, tokenizer, metrics, [PAIRS])


def collect(context: StageContext) -> tuple[list[PreferencePair], dict[str, Any]]:
    """Pairs (also written to pairs.jsonl) and the counts behind them."""
    config = context.settings
    engine = load_engine(context)
    _check_reference(context, engine.policy_digest)
    sampled, spent = sample_answers(context, engine, config.num_problems, config.samples)
    pairs = build_pairs(
        sampled,
        engine.policy_digest,
        per_question=config.pairs_per_question,
        limit=config.max_pairs,
        style_weight=config.style_weight,
        seed=context.seed("pairs"),
    )
    counts = count_outcomes(sampled)
    if not pairs:
        raise StageError(
            f"full_dpo: none of {counts['questions']} questions has both right and wrong answers "
            f"({counts['questions_all_right']} all right, {counts['questions_all_wrong']} all "
            "wrong); raise full_dpo.samples or change the problems' difficulty"
        )
    write_preferences(context.folder / PAIRS, pairs)
    return pairs, {**counts, **spent, **_describe(pairs)}


def _describe(pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    n = len(pairs)
    return {
        "pairs": n,
        "pairs_rejected_truncated": sum(pair.rejected_truncated for pair in pairs),
        "chosen_tokens_mean": sum(len(pair.chosen_ids) for pair in pairs) / n,
        "rejected_tokens_mean": sum(len(pair.rejected_ids) for pair in pairs) / n,
        "chosen_score_mean": sum(pair.chosen_scores.mean for pair in pairs) / n,
        "rejected_score_mean": sum(pair.rejected_scores.mean for pair in pairs) / n,
    }


def _check_reference(context: StageContext, sampled: str) -> None:
    """The reference should be the policy that the pairs are sampled from."""
    from align.training import loop as training

    config = context.settings
    if config.reference == "start":
        return
    if training.policy_digest(Path(config.reference), context.recipe.model) == sampled:
        return
    message = (
        f"full_dpo.reference: {config.reference} is another policy than {context.policy}, which "
        "the pairs are sampled from; use 'start', or set full_dpo.strict=false"
    )
    if config.strict:
        raise StageError(message)
    warnings.warn(message, stacklevel=2)
