"""Packing: the rows of a forward pass end to end in a few sequences, instead of one padded each.

A sequence is as long as the longest row of the pass at most, so it holds no more than a padded row
would, and the rows of a step, and with them the loss, stay what they are. Positions begin anew with
each row, and no attention mask is given: from that transformers builds a mask in which a row sees
itself alone (`masking_utils.find_packed_sequence_indices`), and flash attention takes the rows
apart if they lie in one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from align.errors import StageError

IGNORED = -100
"""Label of tokens without a loss (PyTorch's convention)."""
_LEAK = 1e-4
"""Largest change of a row's logits by another row, relative to the largest logit."""
_TRIED = 64
"""Tokens of the row that is tried."""


def bins(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Row numbers by sequence: best-fit decreasing, each to where it leaves the least room.

    Args:
        lengths: tokens of every row.
        room: tokens of a sequence; a longer row has one of its own.
    """
    found: list[list[int]] = []
    left: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        fitting = [k for k in range(len(found)) if left[k] >= lengths[row]]
        if fitting:
            chosen = min(fitting, key=left.__getitem__)
            found[chosen].append(row)
            left[chosen] -= lengths[row]
        else:
            found.append([row])
            left.append(room - lengths[row])
    return found


class PackedCollator:
    """Makes a batch of rows of `input_ids` and `labels`.

    Args:
        pad_id: fills the sequences that are shorter than others.
        whole: one sequence of all rows, as flash attention wants them.
    """

    def __init__(self, pad_id: int, whole: bool = False) -> None:
        self.pad_id = pad_id
        self.whole = whole

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns `input_ids`, `labels` and `position_ids`, [R, T]: R sequences of T tokens.

        A row's first token has no label, since no token of its row stands before it.
        """
        lengths = [len(row["input_ids"]) for row in rows]
        packed = bins(lengths, sum(lengths) if self.whole else max(lengths))
        longest = max(sum(lengths[n] for n in group) for group in packed)
        shape = (len(packed), longest)
        ids_RT = torch.full(shape, self.pad_id)
        labels_RT = torch.full(shape, IGNORED)
        position_RT = torch.zeros(shape, dtype=torch.long)  # padding: each token a row of its own
        for sequence, group in enumerate(packed):
            end = 0
            for n in group:
                start, end = end, end + lengths[n]
                ids_RT[sequence, start:end] = torch.tensor(rows[n]["input_ids"])
                labels_RT[sequence, start + 1 : end] = torch.tensor(rows[n]["labels"][1:])
                position_RT[sequence, start:end] = torch.arange(lengths[n])
        return {"input_ids": ids_RT, "labels": labels_RT, "position_ids": position_RT}


@torch.no_grad()
def check_packing(model: Any, collator: PackedCollator, row: Sequence[int]) -> None:
    """Put a row behind another one, and change that other one's tokens.

    Args:
        model: a causal language model.
        row: at least two ids, not all the same.

    Raises:
        StageError: the logits behind it change, as with models that carry a state from token to
            token (linear attention), so rows must not be packed.
    """
    device, row = next(model.parameters()).device, row[:_TRIED]
    trained = model.training
    model.eval()
    logits_2TV = []
    for before in (row, row[::-1]):
        pair = [{"input_ids": list(ids), "labels": list(ids)} for ids in (before, row)]
        batch = PackedCollator(collator.pad_id, whole=True)(pair)
        moved = {key: batch[key].to(device) for key in ("input_ids", "position_ids")}
        # Flash attention takes 16 bits, whatever the weights have.
        with torch.autocast(device.type, torch.bfloat16, enabled=collator.whole):
            logits_TV = model(**moved, use_cache=False).logits[0, len(row) :]
        logits_2TV.append(logits_TV.float())
    model.train(trained)
    one_TV, other_TV = logits_2TV
    change = float((one_TV - other_TV).abs().max() / one_TV.abs().max())
    if not change <= _LEAK:
        raise StageError(
            f"packing: in {type(model).__name__} a row changes the logits of the next one (by up "
            f"to {change:.2g} of the largest); set packing to false"
        )
