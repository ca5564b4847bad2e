"""The two parts of a causal language model: its body and its head, inside of PEFT's wrapper too.

A loss at few positions needs the body's last hidden states and the head at these positions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from align.errors import StageError
from align.training.batches import length_groups
from pts.types import Ids

FORWARD_TOKENS = 64
"""What a forward pass of its own costs beside its tokens, in tokens."""


def plain(model: Any) -> Any:
    """The causal language model inside PEFT's wrapper, adapters in place."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def head(model: Any) -> torch.nn.Linear:
    """The output embedding.

    Raises:
        StageError: it is not a plain matrix (for instance, it carries an adapter).
    """
    layer = plain(model).get_output_embeddings()
    own = next(kind for kind in type(layer).__mro__ if not issubclass(kind, FSDPModule))
    if own is not torch.nn.Linear:
        raise StageError(
            f"token_dpo: the model's head is a {type(layer).__name__}; only a plain linear head is "
            "supported: take it out of lora.target_modules"
        )
    return cast(torch.nn.Linear, layer)


def states_at(
    model: Any, input_ids_RT: Tensor, length_R: Tensor, row_N: Tensor, position_N: Tensor
) -> Tensor:
    """The body's last hidden states at N positions of R rows, shape [N, H].

    Rows are padded on the right, so no token sees padding and no mask is needed. They go through
    the body in groups of like length: a row that is long on its own would have all padded to it.
    """
    states, wheres = [], []
    for group in length_groups(length_R.tolist(), FORWARD_TOKENS):
        rows_G = torch.tensor(sorted(group), device=row_N.device)
        where_M = torch.isin(row_N, rows_G).nonzero()[:, 0]
        longest = int(length_R[rows_G].max())
        states_GTH = (
            plain(model)
            .base_model(input_ids=input_ids_RT[rows_G, :longest], use_cache=False)
            .last_hidden_state
        )
        own_M = torch.searchsorted(rows_G, row_N[where_M])
        states.append(states_GTH[own_M, position_N[where_M]])
        wheres.append(where_M)
    return torch.cat(states)[torch.cat(wheres).argsort()]


def padded(rows: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Ids, padded on the right, [R, T], and lengths, [R]."""
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    ids = [[*row, *[0] * (longest - len(row))] for row in rows]
    return torch.tensor(ids), torch.tensor(lengths)
