"""Stage 2b: DPO on the pivotal tokens that the search confirmed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from align.context import StageContext, StageResult
from align.errors import StageError
from align.models import adapters
from align.settings import TrainingConfig
from pts.data.pairs import read_pairs
from pts.engines.digest import model_digest
from pts.files import write_json
from pts.types import TokenPair

if TYPE_CHECKING:
    from align.training.reference_kl import ReferenceKL
    from align.training.token_dpo import TokenRow

START_TOLERANCE = 1e-5
"""Largest |margin - reference margin| before the first step, relative where margins exceed 1."""


class TokenDPOConfig(TrainingConfig):
    """Stage 2b: DPO (Rafailov et al. 2023) at one position a pair."""

    loss: str = "sigmoid"
    """Loss of a pair's margin: `sigmoid` (DPO), `ipo`, `hinge`, or another of
    `align.training.losses.LOSSES`."""
    beta: float = Field(1.0, gt=0)
    """Strength of the pull towards the reference."""
    nll_weight: float = Field(0.0, ge=0)
    """Weight of the negative log-likelihood of the chosen token, against displacement to third
    tokens."""
    kl_weight: float = Field(0.0, ge=0)
    """Weight of KL(reference || policy), a mean over the positions of whole right answers but for
    the pairs' own: what the pairs do not ask for stays as it was, so that they can be trained
    hotter. 0 leaves the term out."""
    kl_batch_size: int = Field(16, ge=1)
    """Right answers in one forward pass of that KL, drawn anew for each."""
    rollouts: str = ""
    """Stage `pts` whose filter's right answers they are; empty: the one that made the pairs."""
    weight_by: Literal["none", "expected_gain"] = "none"
    """`expected_gain` weights pairs by pi(rejected) * gap, normalised to mean 1."""
    max_pairs: int = Field(0, ge=0)
    """Keep the pairs of highest expected gain; 0 keeps all."""
    pairs: str = ""
    """Stage whose pairs are trained on; empty: the last search before this stage."""
    reference: str = "start"
    """`start`: the policy that this stage starts from; else the folder of a
    model, or of an adapter."""
    strict: bool = True
    """Refuse pairs that were measured on another policy than the reference."""


def run(context: StageContext) -> StageResult:
    """Train on `context.pairs`.

    Raises:
        StageError: no pairs, pairs of another policy, or a reference that is not the start.
        pts.errors.DataError: a pair cannot be read.
    """
    from align.training import loop as training
    from align.training import record
    from align.training.launch import launched
    from align.training.token_dpo import check_head

    config = context.settings
    done = record.begin(context, config)
    if done is not None:
        return done
    pairs = select_pairs(_pairs(context), config)
    policy, tokenizer = training.load_trainable(context.policy, context.recipe.model, config)
    _check_policy(context, pairs)
    training.switch_off_dropout(policy)
    rows = _rows(context, policy, pairs)
    check_head(policy, rows[: config.batch_size])
    if config.reference == "start":
        with training.cast(context):
            check_start(policy, rows[: config.batch_size])
    held, counts = _held(context, policy, pairs)
    return launched(train, context, rows, held, counts, loaded=(policy, tokenizer))


def train(
    context: StageContext,
    policy: Any,
    tokenizer: Any,
    rows: Sequence[TokenRow],
    held: ReferenceKL | None,
    counts: dict[str, int],
) -> StageResult:
    """Train on rows whose reference margins are known."""
    from align.training import loop as training
    from align.training.losses import loss_named
    from align.training.token_dpo import TokenDPOTrainer

    config = context.settings
    described = training.adapter(config.lora, policy)
    adapted = training.with_adapter(policy, described, context.seed("token_dpo"))
    training.switch_off_dropout(adapted)  # the adapter's own too
    trainer = TokenDPOTrainer(
        adapted,
        training.arguments(context, config, "token_dpo", policy),
        rows,
        config.beta,
        loss_named(config.loss),
        config.nll_weight,
        config.kl_weight,
        held,
    )
    trained = training.fit(trainer, context, tokenizer, 2 * len(rows))
    if held is not None:
        trained["trained_tokens"] += held.positions(trained["steps"] * config.gradient_accumulation)
    metrics = {"pairs": len(rows), **counts, **trained}
    return training.finish(context, trainer.model, tokenizer, metrics)


def _pairs(context: StageContext) -> list[TokenPair]:
    if context.pairs is None:
        raise StageError("token_dpo: needs the pairs of a search; run the stage 'pts' before it")
    pairs = read_pairs(context.pairs)
    if not pairs:
        raise StageError(
            f"{context.pairs}: holds no pairs; in a new --output search more questions "
            "(pts.num_problems), or problems that the policy solves sometimes but not always; "
            "docs/your-own-recipe.md says how to start from a model that was trained already"
        )
    return pairs


def select_pairs(pairs: Sequence[TokenPair], config: TokenDPOConfig) -> list[TokenPair]:
    """The `max_pairs` pairs of highest expected gain, in the file's order."""
    if not config.max_pairs:
        return list(pairs)
    ranked = sorted(range(len(pairs)), key=lambda i: -pairs[i].expected_gain)
    return [pairs[i] for i in sorted(ranked[: config.max_pairs])]


def weights(pairs: Sequence[TokenPair], config: TokenDPOConfig) -> list[float]:
    """A weight for each pair, mean 1. Pairs with a negative one weigh 0.

    Raises:
        StageError: all would weigh 0.
    """
    from align.training.losses import mean_one

    if config.weight_by == "none":
        return [1.0] * len(pairs)
    gains = [max(0.0, pair.expected_gain) for pair in pairs]
    if not any(gains):
        raise StageError(
            f"token_dpo.weight_by: got 'expected_gain', but none of {len(pairs)} pairs has one "
            "above 0; set it to 'none'"
        )
    return mean_one(gains)


def _check_policy(context: StageContext, pairs: Sequence[TokenPair]) -> None:
    """Pairs say what helps the policy that they were measured on, and no other."""
    config, digest = context.settings, model_digest(_reference_path(context))
    strangers = sum(pair.policy_digest != digest for pair in pairs)
    if not strangers:
        return
    message = (
        f"{context.pairs}: {strangers} of {len(pairs)} pairs were measured on another policy than "
        f"the reference {_reference_path(context)}; search again, or set token_dpo.strict=false"
    )
    if config.strict:
        raise StageError(message)
    warnings.warn(message, stacklevel=2)


def _reference_path(context: StageContext) -> Path:
    reference = context.settings.reference
    if reference == "start":
        return context.policy
    return adapters.whole(Path(reference), context.recipe.model)


def _rows(context: StageContext, policy: Any, pairs: Sequence[TokenPair]) -> list[TokenRow]:
    """Rows with weights and reference margins."""
    from align.training.token_dpo import TokenRow

    config = context.settings
    rows = [
        TokenRow(pair.prompt_ids, pair.chosen, pair.rejected, weight)
        for pair, weight in zip(pairs, weights(pairs, config), strict=True)
    ]
    known = _reference_margins(context, policy, rows)
    return [
        dataclasses.replace(row, reference_margin=margin)
        for row, margin in zip(rows, known, strict=True)
    ]


def _reference_margins(context: StageContext, policy: Any, rows: Sequence[TokenRow]) -> list[float]:
    """Margins under the reference with its own weights, computed once and kept in the folder."""
    from align.training import loop as training
    from align.training.record import read_stored
    from align.training.token_dpo import all_margins

    config = context.settings
    file = context.folder / "reference.json"
    asked = [(row.prompt, row.chosen, row.rejected) for row in rows]
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    if file.is_file():
        stored = read_stored(file)
        if stored.get("pairs") == key:
            margins: list[float] = stored["margins"]
            return margins
    model = _reference(context, policy)
    with training.cast(context):
        found = all_margins(model, rows, config.batch_size)
    write_json(file, {"pairs": key, "margins": found})
    return found


def _reference(context: StageContext, policy: Any) -> Any:
    """The reference's model: the policy before its first step, or another one."""
    from align.training import loop as training

    config = context.settings
    if config.reference == "start":
        return policy
    model, _ = training.load_trainable(_reference_path(context), context.recipe.model, config)
    training.switch_off_dropout(model)
    return model


def _held(
    context: StageContext, policy: Any, pairs: Sequence[TokenPair]
) -> tuple[ReferenceKL | None, dict[str, int]]:
    """The KL term, None without a weight, and what it is measured on.

    Raises:
        StageError: the search has no right answer.
    """
    from align.data.rollouts import right_answers_of
    from align.training import loop as training
    from align.training.reference_kl import ReferenceKL, held_rows

    config = context.settings
    if not config.kl_weight:
        return None, {}
    assert context.rollouts is not None
    answers = right_answers_of(context.rollouts, ["filter"])
    rows = held_rows(answers, {pair.prompt_ids for pair in pairs})
    if not rows:
        raise StageError(
            f"token_dpo.kl_weight: {context.rollouts} holds no right answer of the filter to hold "
            "the policy to; set it to 0"
        )
    reference, seed = _reference(context, policy), context.seed("held answers")
    with training.cast(context):
        held = ReferenceKL(reference, rows, config.kl_batch_size, seed)
    counts = {
        "held_answers": len(rows),
        "held_positions": sum(len(row.positions) for row in rows),
    }
    return held, counts


def check_start(policy: Any, rows: Sequence[TokenRow]) -> None:
    """Before the first step the policy is the reference, so margins must agree.

    Raises:
        StageError: they differ, so the stored margins belong to other weights.
    """
    import torch

    from align.training.token_dpo import all_margins

    found = all_margins(policy, rows, len(rows))
    stored = [row.reference_margin or 0.0 for row in rows]
    half = policy.dtype.itemsize == 2 or torch.is_autocast_enabled(policy.device.type)
    tolerance = 1e-2 if half else START_TOLERANCE
    gaps = [abs(a - b) / max(1.0, abs(b)) for a, b in zip(found, stored, strict=True)]
    if max(gaps) > tolerance:
        raise StageError(
            f"token_dpo: the starting policy's margins differ from the reference's by up to "
            f"{max(gaps):.2g}; delete the stage's folder, or name the reference that is meant"
        )
