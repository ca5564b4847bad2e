"""The two parts of a causal language model: its body and its head, inside of PEFT's wrapper too.

A loss at few positions needs the body's last hidden states and the head at these positions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from align.errors import StageError
from pts.types import Ids


def plain(model: Any) -> Any:
    """The causal language model inside PEFT's wrapper, adapters in place."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def head(model: Any) -> torch.nn.Linear:
    """The output embedding.

    Raises:
        StageError: it is not a plain matrix (for instance, it carries an adapter).
    """
    layer = plain(model).get_output_embeddings()
    if type(layer) is not torch.nn.Linear:
        raise StageError(
            f"token_dpo: the model's head is a {type(layer).__name__}; only a plain linear head is "
            "supported: take it out of lora.target_modules"
        )
    return layer


def last_states(model: Any, input_ids_RT: Tensor, attention_mask_RT: Tensor) -> Tensor:
    """The body's last hidden states, shape [R, T, H]."""
    states_RTH: Tensor = (
        plain(model)
        .base_model(input_ids=input_ids_RT, attention_mask=attention_mask_RT, use_cache=False)
        .last_hidden_state
    )
    return states_RTH


def padded(rows: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, both [R, T], padded on the right."""
    length = max(map(len, rows))
    ids_RT = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    lengths_R1 = torch.tensor([[len(row)] for row in rows])
    return ids_RT, (torch.arange(length) < lengths_R1).long()
