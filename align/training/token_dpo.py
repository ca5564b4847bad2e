"""Token-level DPO: one position a pair, one forward pass a prompt.

A pair is a prompt (ids, exactly as sampled) and two next tokens. The hidden state after the
prompt's last token decides both, so chosen and rejected need no passes of their own, nothing
is appended, and the head is applied at the wanted positions only. Pairs of a batch whose prompts
lie on one path share the row of the longest. The result equals TRL's DPO loss and gradients on the
same ids; what differs is that here the logits of third tokens have no gradient at all, where the
subtraction of two log-probabilities leaves rounding noise that Adam would blow up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from align.errors import StageError
from align.training import losses
from align.training.backbone import head, padded, plain, states_at
from align.training.batches import StepMean
from align.training.ranks import rank, through, world
from align.training.reference_kl import ReferenceKL
from pts.types import Ids

HEAD_TOLERANCE = 1e-3
"""Largest difference of a logit from the model's own, relative to the largest logit."""
HEAD_TOLERANCE_16 = 3e-2
"""The same where weights are in 16 bits. The two are computed in batches of different shape, and
neighbours in bfloat16 are up to 0.8 % apart: plain models of four layers were seen to differ by
0.7 %. What is to be found changes more: a scale does by all that it differs from 1, a soft cap by
3 % where the largest logit is 0.3 of the cap."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One pair to train on. `reference_margin` is None until the reference has been asked."""

    prompt: Ids
    chosen: int
    rejected: int
    weight: float = 1.0
    reference_margin: float | None = None


def collate(rows: Sequence[TokenRow]) -> dict[str, Tensor]:
    """A batch: padded paths, and for each pair the place of its prompt's last token.

    Returns:
        input_ids: [R, T], one row a path, padded on the right; length: [R].
        row, position, chosen, rejected, weight, reference_margin: [B].
    """
    paths, row_of = shared_paths([row.prompt for row in rows])
    input_ids_RT, length_R = padded(paths)
    asked = [row.reference_margin for row in rows]
    return {
        "input_ids": input_ids_RT,
        "length": length_R,
        "row": torch.tensor(row_of),
        "position": torch.tensor([len(row.prompt) - 1 for row in rows]),
        "chosen": torch.tensor([row.chosen for row in rows]),
        "rejected": torch.tensor([row.rejected for row in rows]),
        "weight": torch.tensor([row.weight for row in rows]),
        "reference_margin": torch.tensor([0.0 if m is None else m for m in asked]),
    }


def shared_paths(prompts: Sequence[Ids]) -> tuple[list[Ids], list[int]]:
    """The prompts that are no prefix of another, and for each prompt the index of its path.

    In sorted order a prompt stands right before those that extend it.
    """
    paths: list[Ids] = []
    row_of = [0] * len(prompts)
    for index in sorted(range(len(prompts)), key=lambda i: prompts[i], reverse=True):
        prompt = prompts[index]
        if not paths or paths[-1][: len(prompt)] != prompt:
            paths.append(prompt)
        row_of[index] = len(paths) - 1
    return paths, row_of


def hidden_states(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The last hidden state after each pair's prompt, shape [B, H]."""
    return states_at(model, *(batch[key] for key in ("input_ids", "length", "row", "position")))


def margins(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """log π(chosen) - log π(rejected), shape [B], and the hidden states behind it, [B, H]."""
    hidden_BH = hidden_states(model, batch)

    def difference(layer: torch.nn.Linear, hidden_BH: Tensor) -> Tensor:
        return losses.token_margin(
            hidden_BH, layer.weight, layer.bias, batch["chosen"], batch["rejected"]
        )

    # Where weights are sharded, the head's are whole during its forward pass alone.
    return through(head(model), difference, hidden_BH), hidden_BH


@torch.no_grad()
def all_margins(model: Any, rows: Sequence[TokenRow], batch_size: int) -> list[float]:
    """Margins of all rows under a model, in their order."""
    model.eval()
    device = next(model.parameters()).device
    found: list[float] = []
    for batch in DataLoader(rows, batch_size=batch_size, collate_fn=collate):  # type: ignore[arg-type]
        moved = {key: value.to(device) for key, value in batch.items()}
        found.extend(margins(model, moved)[0].tolist())
    return found


@torch.no_grad()
def check_head(model: Any, rows: Sequence[TokenRow]) -> None:
    """Compare the compact head with the model's own logits on some rows.

    Raises:
        StageError: they differ, as with models that scale or cap their logits after the head.
    """
    model.eval()
    device = next(model.parameters()).device
    batch = {key: value.to(device) for key, value in collate(rows).items()}
    own_RTV = model(input_ids=batch["input_ids"]).logits
    own_BV = own_RTV[batch["row"], batch["position"]].float()
    compact_BV = head(model)(hidden_states(model, batch)).float()
    gap = float((own_BV - compact_BV).abs().max() / own_BV.abs().max())
    # Of the weights: some models give logits in float32 that they computed in 16 bits.
    tolerance = HEAD_TOLERANCE if head(model).weight.element_size() > 2 else HEAD_TOLERANCE_16
    if not gap <= tolerance:
        raise StageError(
            f"token_dpo: {type(plain(model)).__name__} changes its logits after the head (by up to "
            f"{gap:.2g} of the largest); such models are not supported here"
        )


class TokenDPOTrainer(StepMean, Trainer):
    """DPO on `TokenRow`s with known reference margins; logs the mass of third tokens.

    The passes through body and head are in the trainer's precision, which transformers would give
    to the forward pass of its wrapper alone; losses are in float32.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        rows: Sequence[TokenRow],
        beta: float,
        loss: losses.PairLoss = losses.dpo_loss,
        nll_weight: float = 0.0,
        kl_weight: float = 0.0,
        held: ReferenceKL | None = None,
        **more: Any,
    ) -> None:
        super().__init__(
            model=model, args=args, train_dataset=list(rows), data_collator=collate, **more
        )
        self.beta = beta
        self.loss = loss
        self.nll_weight = nll_weight
        self.kl_weight = kl_weight
        self.held = held
        self.model_accepts_loss_kwargs = False
        self._seen: dict[str, list[Tensor]] = defaultdict(list)
        self._forward = (-1, 0)
        """A step, and its last forward pass, from 0."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Weighted mean of the DPO loss over the step's rows, plus the chosen token's NLL and the
        mean KL along the held answers where these have a weight."""
        return through(model, self._loss, inputs)

    def rows_of(self, batch: dict[str, Tensor]) -> int:
        """Pairs of a micro-batch."""
        return len(batch["row"])

    def _loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        with self.accelerator.autocast():
            margin_B, hidden_BH = margins(model, inputs)
        loss_B = self.loss(margin_B, inputs["reference_margin"], self.beta)
        # Contexts of their own: weights that one casts without a gradient, it casts but once.
        with self.accelerator.autocast(), torch.set_grad_enabled(self.nll_weight > 0):
            logits_BV = head(model)(hidden_BH)
        if self.nll_weight > 0:
            loss_B = loss_B + self.nll_weight * losses.chosen_nll(logits_BV, inputs["chosen"])
        self._watch(margin_B.detach(), logits_BV.detach(), inputs)
        loss = self.of_step(losses.weighted_mean(loss_B, inputs["weight"]), inputs)
        if self.held is None:
            return loss
        with self.accelerator.autocast():
            kl_N = self.held(model, self._next_forward())
        self._seen["kl"].append(kl_N.detach())
        return loss + self.kl_weight * kl_N.mean()

    def _next_forward(self) -> int:
        """Number of this forward pass of the whole training, from 0, in a continued one too; those
        of several processes take turns."""
        step, done = self._forward
        done = done + 1 if step == self.state.global_step else 0
        self._forward = (self.state.global_step, done)
        before = self.state.global_step * self.args.gradient_accumulation_steps + done
        return before * world() + rank()

    def _watch(self, margin_B: Tensor, logits_BV: Tensor, inputs: dict[str, Tensor]) -> None:
        probs_B3 = losses.pair_probs(logits_BV, inputs["chosen"], inputs["rejected"])
        gain_B = margin_B - inputs["reference_margin"]
        for name, value_B in zip(("chosen", "rejected", "others"), probs_B3.T, strict=True):
            self._seen[f"prob_{name}"].append(value_B)
        self._seen["margin"].append(margin_B)
        self._seen["gain"].append(gain_B)
        self._seen["accuracy"].append((gain_B > 0).float())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means since the last log: probabilities, margin, its gain over the reference,
        the share of pairs with a gain, and the KL a held position."""
        if "loss" in logs:
            logs |= {key: float(torch.cat(values).mean()) for key, values in self._seen.items()}
            self._seen.clear()
        super().log(logs, start_time)
