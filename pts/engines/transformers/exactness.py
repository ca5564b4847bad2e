"""Whether a model's forward gives in slots what it gives without them.

Some models build a mask or a position from the length of the cache instead of from the positions
that they are given (the local attention of GPT-Neo), or attend to later tokens (BERT that is no
decoder). What is sampled from them in a batch of rows of unlike lengths would not be the model's.
"""

from __future__ import annotations

from typing import Any

import torch

from pts.engines.transformers.kv_cache import KvShape, SlotCache, forward
from pts.errors import EngineError

MAX_WINDOW = 1024
"""Windows of local attention up to here are tried out; longer rows cost too much at every start."""
TOLERANCE, HALF_TOLERANCE = 0.02, 0.5
"""Difference of two logits, in standard deviations of a row, that rounding may cause in single and
in half precision (there a mixture of experts may choose others)."""


@torch.inference_mode()
def batches_exactly(model: Any, shape: KvShape, longest: int | None) -> bool:
    """Whether rows of unlike lengths can share a batch; if not, they must run one by one.

    Compares the plain forward of two rows with slots, alone and together. Raises EngineError where
    even a row alone differs, or the forward fails. `longest` is what the model's attention allows.
    """
    window = getattr(model.config, "window_size", None)
    beyond = window + 4 if isinstance(window, int) and window <= MAX_WINDOW else 0
    vocabulary = int(model.config.get_text_config().vocab_size)
    lengths = (3, min(max(9, beyond), longest or max(9, beyond)))
    rows = [[7 * i % vocabulary for i in range(1, n + 1)] for n in lengths]
    try:
        plain = [_plain(model, ids, shape.device) for ids in rows]
        alone = [_in_slots(model, shape, [ids])[0] for ids in rows]
        together = _in_slots(model, shape, rows)
    except torch.OutOfMemoryError:
        return True  # sampling has a remedy for that, and a message
    except Exception as error:  # whatever a model's own code raises
        raise EngineError(
            f"{type(model).__name__}: its forward fails with a cache of slots ({error}); "
            "use a server engine for this model"
        ) from error
    if any(bool(row.isnan().any()) for row in plain):
        raise EngineError(
            f"{type(model).__name__}: the model returned logits that are NaN; check the weights "
            "and the dtype"
        )
    if not _same(plain, alone):
        raise EngineError(
            f"{type(model).__name__}: with a cache its forward gives other logits than without "
            "(is it a decoder?); use a server engine for this model"
        )
    return _same(plain, together)


def _in_slots(model: Any, shape: KvShape, rows: list[list[int]]) -> list[torch.Tensor]:
    """The last logits of rows that are prefilled together and then make one step together."""
    width = max(map(len, rows))
    cache = SlotCache(shape, len(rows), width)
    known = [ids[:-1] + [0] * (width - len(ids)) for ids in rows]
    positions = torch.arange(width - 1, device=shape.device).expand(len(rows), width - 1)
    forward(model, cache, torch.tensor(known, device=shape.device), positions, keep=1)
    last = torch.tensor([ids[-1:] for ids in rows], device=shape.device)
    at = torch.tensor([[len(ids) - 1] for ids in rows], device=shape.device)
    return list(forward(model, cache, last, at, keep=1)[:, 0])


def _plain(model: Any, ids: list[int], device: torch.device) -> torch.Tensor:
    """The last logits of a row, without a cache."""
    output = model(torch.tensor([ids], device=device), use_cache=False)
    logits: torch.Tensor = output.logits[0, -1]
    return logits


def _same(wanted: list[torch.Tensor], given: list[torch.Tensor]) -> bool:
    tolerance = TOLERANCE if wanted[0].dtype == torch.float32 else HALF_TOLERANCE
    return all(
        bool((a.float() - b.float()).abs().max() <= tolerance * (a.float().std() + 1e-6))
        for a, b in zip(wanted, given, strict=True)
    )
