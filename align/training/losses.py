"""Losses of direct preference optimisation as pure functions of tensors.

    margin_B = token_margin(hidden_BH, head.weight, head.bias, chosen_B, rejected_B)
    loss = weighted_mean(dpo_loss(margin_B, reference_margin_B, beta), weight_B)

Shape suffixes: B pairs, N positions, H hidden size, V vocabulary. Everything is computed in
float32, whatever the type of the inputs. The log-probabilities of full-length completions are not
made here: TRL's trainer sums them itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812 - the name that the torch documentation uses
from torch import Tensor

from pts.errors import ConfigError, did_you_mean


def token_margin(
    hidden_BH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    chosen_B: Tensor,
    rejected_B: Tensor,
) -> Tensor:
    """log π(chosen) - log π(rejected) of two next tokens in one context, shape [B].

    Both share the softmax's denominator, so this is the difference of their logits, and no gradient
    reaches the logits of third tokens. Computed in float32 from the difference of two rows of the
    head: bfloat16 logits near 20 are 0.125 apart, too coarse to be subtracted.
    """
    ids_2B = torch.stack([chosen_B, rejected_B])
    chosen_BH, rejected_BH = weight_VH[ids_2B].float()
    margin_B: Tensor = (hidden_BH.float() * (chosen_BH - rejected_BH)).sum(-1)
    if bias_V is not None:
        margin_B = margin_B - bias_V[ids_2B].float().diff(dim=0)[0]
    return margin_B


def dpo_loss(margin_B: Tensor, reference_margin_B: Tensor, beta: float) -> Tensor:
    """-log σ(β (margin - reference margin)) of each pair, shape [B].

    A margin is log π(chosen) - log π(rejected) of one policy; written with margins this is
    equation 7 of Rafailov et al. 2023. It holds for single tokens and for whole completions.
    """
    return -F.logsigmoid(beta * (margin_B.float() - reference_margin_B.float()))


def ipo_loss(margin_B: Tensor, reference_margin_B: Tensor, beta: float) -> Tensor:
    """(margin - reference margin - 1 / 2β)² of each pair, shape [B] (Azar et al. 2023, equation
    17).

    Where the DPO loss goes on rewarding a growing margin, this one is smallest at 1 / 2β.
    """
    return (margin_B.float() - reference_margin_B.float() - 1 / (2 * beta)) ** 2


def hinge_loss(margin_B: Tensor, reference_margin_B: Tensor, beta: float) -> Tensor:
    """max(0, 1 - β (margin - reference margin)) of each pair, shape [B] (SLiC, Zhao et al.
    2023)."""
    return F.relu(1 - beta * (margin_B.float() - reference_margin_B.float()))


PairLoss: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]
"""(margins [B], reference margins [B], β) -> losses [B]."""

LOSSES: dict[str, PairLoss] = {"sigmoid": dpo_loss, "ipo": ipo_loss, "hinge": hinge_loss}
"""Losses that need the margin and β alone, by the names that TRL gives them. Those that need the
two log-probabilities apart (`nca_pair`, `apo_zero`) have no place here; those with a parameter of
their own (`robust`, `exo_pair`) are registered as functions that fix it
(docs/adding-your-own.md)."""


def loss_named(name: str) -> PairLoss:
    """The loss of that name. Raises ConfigError, with the nearest name, if there is none."""
    if name not in LOSSES:
        hint = did_you_mean(name, LOSSES) or f"; known: {', '.join(LOSSES)}"
        raise ConfigError(f"no loss {name!r}{hint}")
    return LOSSES[name]


def chosen_nll(logits_BV: Tensor, chosen_B: Tensor) -> Tensor:
    """-log π(chosen) of each pair, shape [B]: a guard against displacement.

    The DPO loss is silent about third tokens; this term pulls mass back from them.
    """
    return F.cross_entropy(logits_BV.float(), chosen_B, reduction="none")


def kl_divergence(reference_logits_NV: Tensor, logits_NV: Tensor) -> Tensor:
    """KL(reference || policy) = sum over v of π_ref(v) (log π_ref(v) - log π(v)), at each of N
    positions, shape [N].

    In this direction a policy pays for what it takes from the reference's likely tokens.
    """
    log_reference_NV = reference_logits_NV.float().log_softmax(-1)
    gap_NV = log_reference_NV - logits_NV.float().log_softmax(-1)
    return (log_reference_NV.exp() * gap_NV).sum(-1)


def pair_probs(logits_BV: Tensor, chosen_B: Tensor, rejected_B: Tensor) -> Tensor:
    """π(chosen), π(rejected) and the mass of all other tokens at temperature 1, shape [B, 3]."""
    probs_BV = logits_BV.float().softmax(-1)
    chosen_B1, rejected_B1 = chosen_B[:, None], rejected_B[:, None]
    pair_B2 = torch.cat([probs_BV.gather(1, chosen_B1), probs_BV.gather(1, rejected_B1)], dim=1)
    return torch.cat([pair_B2, 1 - pair_B2.sum(1, keepdim=True)], dim=1)


def weighted_mean(loss_B: Tensor, weight_B: Tensor) -> Tensor:
    """Mean of weight * loss, a scalar.

    The divisor is B, not the sum of the weights: weights have mean 1 over the data set, so a
    batch of valuable pairs counts for more than a batch of poor ones.
    """
    return (loss_B * weight_B).mean()


def mean_one(weights: list[float]) -> list[float]:
    """Weights scaled to mean 1. A list of zeros has no scale: ValueError."""
    total = sum(weights)
    if total <= 0:
        raise ValueError(f"weights must have a positive sum, got {total}")
    return [weight * len(weights) / total for weight in weights]
