"""KL to the reference along whole answers: what holds a policy where its own loss is silent.

    rows = held_rows(answers, pivotal={pair.prompt_ids for pair in pairs})
    held = ReferenceKL(reference, rows, batch_size=8, seed=seed)
    loss = dpo + kl_weight * held(policy, number=step).mean()

Token-level DPO asks for a few positions, and weights that all positions share carry its steps to
the others. Of the reference the last hidden states at the held positions are kept: H numbers a
position where the distribution has V, and one product with the reference's head restores it
exactly. So training needs no second model and no further pass through its body; the memory is that
of positions x H numbers (309 answers of 40 tokens: 6 MB at H = 128, 250 MB at H = 5120) and of one
head.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that the torch documentation uses
from torch import Tensor

from align.data.chat import ChatIds
from align.training.backbone import head, padded, states_at
from align.training.losses import kl_divergence
from pts.types import Ids


@dataclass(frozen=True, slots=True)
class HeldRow:
    """An answer after its prompt, and the positions whose next-token distribution is held."""

    ids: Ids
    positions: tuple[int, ...]


def held_rows(answers: Sequence[ChatIds], pivotal: Collection[Ids]) -> list[HeldRow]:
    """All positions before an answer's tokens, but for those whose prefix is a pair's prompt.

    Answers of which nothing is left are left out.
    """
    rows = []
    for answer in answers:
        places = [t for t, flag in enumerate(answer.mask) if flag and answer.ids[:t] not in pivotal]
        if places:
            rows.append(HeldRow(answer.ids[: places[-1]], tuple(t - 1 for t in places)))
    return rows


def drawn(rows: int, size: int, seed: int, number: int) -> list[int]:
    """Draw `number` of an endless series: `size` row numbers, every row once before one comes
    twice. A function of its arguments alone, so a run that is continued draws the same."""
    found: list[int] = []
    for place in range(number * size, (number + 1) * size):
        epoch, at = divmod(place, rows)
        if not found or at == 0:
            order = random.Random(f"{seed}|{epoch}").sample(range(rows), rows)
        found.append(order[at])
    return found


def _states(model: Any, rows: Sequence[HeldRow]) -> Tensor:
    """Last hidden states at the held positions, row after row, shape [N, H]."""
    device = next(model.parameters()).device
    ids_RT, length_R = padded([row.ids for row in rows])
    where = [(r, position) for r, row in enumerate(rows) for position in row.positions]
    row_N, position_N = torch.tensor(where).T
    moved = (tensor.to(device) for tensor in (ids_RT, length_R, row_N, position_N))
    return states_at(model, *moved)


class ReferenceKL:
    """KL(reference || policy) at the held positions of a few answers, drawn anew in each call."""

    @torch.no_grad()
    def __init__(self, reference: Any, rows: Sequence[HeldRow], batch_size: int, seed: int) -> None:
        """Keep what is needed of the reference, which may be trained afterwards.

        Args:
            reference: a causal language model.
            rows: at least one.
            batch_size: rows of a call.
            seed: decides which.
        """
        reference.eval()
        layer = head(reference)
        self._weight_VH = layer.weight.detach().cpu().clone()
        self._bias_V = None if layer.bias is None else layer.bias.detach().cpu().clone()
        self._rows = rows
        self._size = batch_size
        self._seed = seed
        self._states: list[Tensor] = []
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            states_NH = _states(reference, some).cpu()
            self._states += torch.split(states_NH, [len(row.positions) for row in some])

    def positions(self, draws: int) -> int:
        """Positions held in the first so many draws, each as often as it was drawn."""
        picked = (drawn(len(self._rows), self._size, self._seed, n) for n in range(draws))
        return sum(len(self._rows[k].positions) for rows in picked for k in rows)

    def __call__(self, policy: Any, number: int) -> Tensor:
        """KL of each held position of draw `number`, in nats, shape [N]."""
        picked = drawn(len(self._rows), self._size, self._seed, number)
        hidden_NH = _states(policy, [self._rows[k] for k in picked])
        if self._weight_VH.device != hidden_NH.device:
            self._weight_VH = self._weight_VH.to(hidden_NH.device)
            self._bias_V = None if self._bias_V is None else self._bias_V.to(hidden_NH.device)
        kept_NH = torch.cat([self._states[k] for k in picked]).to(hidden_NH.device)
        reference_NV = F.linear(kept_NH, self._weight_VH, self._bias_V)
        return kl_divergence(reference_NV, head(policy)(hidden_NH))
