"""A key/value cache with one slot a rollout, each slot at its own length.

`SlotCache` is a `transformers` `Cache` over preallocated buffers [rows, heads, capacity, dim], two
a layer. Before a forward it is aimed at positions [n, Q]: row i writes its Q tokens there, and
attention reads the first `span` positions of rows 0..n-1; a 4D mask hides what a row has not
written. Rows in use are kept dense (0..n-1), so that a batch is a view and never a gather.

`kv_shape` finds the sizes by a one-token forward and refuses models whose layers are not all plain
attention of one shape (recurrent layers, shared or uneven KV). `exact_length` tells how long a
sequence may be: a sliding window is exact only while everything fits inside it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from pts.errors import EngineError

MASK_CELLS = 2**24
"""Cells of the attention mask that one forward may have; longer inputs are fed in pieces."""


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one token occupies in the cache of one layer, and how many layers there are."""

    layers: int
    heads: int
    dims: tuple[int, int]
    """Of a key and of a value."""
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Over all layers, keys and values together."""
        return self.layers * self.heads * sum(self.dims) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Kv:
    """Keys and values of one token sequence, [layers, heads, length, dim] each."""

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


def check_forward(model: Any) -> None:
    """Raise EngineError unless the model's forward takes what `forward` passes, 4D masks too."""
    own = model.get_base_model() if hasattr(model, "get_base_model") else model
    known = inspect.signature(own.forward).parameters
    missing = [
        name
        for name in ("attention_mask", "position_ids", "past_key_values", "logits_to_keep")
        if name not in known
    ]
    if missing:
        raise EngineError(
            f"{type(own).__name__}.forward takes no {', '.join(missing)}; "
            "use a server engine for this model"
        )
    attention = getattr(own.config, "_attn_implementation", None)
    if attention not in ("sdpa", "eager"):
        raise EngineError(
            f"attention {attention!r} ignores 4D masks; load the model with "
            "attn_implementation='sdpa'"
        )


@torch.inference_mode()
def kv_shape(model: Any) -> KvShape:
    """Sizes of the model's cache. Raises EngineError for a cache that slots cannot hold."""
    device = next(model.parameters()).device
    cache: Any = DynamicCache(config=model.config)
    try:
        model(torch.zeros((1, 1), dtype=torch.long, device=device), past_key_values=cache)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model's own code raises
        raise EngineError(
            f"{type(model).__name__}: its forward fails with a cache of attention layers "
            f"({error}); use a server engine for this model"
        ) from error
    layers = cache.layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    if plain and all(layer.is_initialized for layer in layers):
        shapes = {(tuple(layer.keys.shape), tuple(layer.values.shape)) for layer in layers}
        if len(shapes) == 1:
            ((_, heads, _, key_dim), (*_, value_dim)) = shapes.pop()
            keys = layers[0].keys
            return KvShape(len(layers), heads, (key_dim, value_dim), keys.dtype, keys.device)
    kinds = sorted({type(layer).__name__ for layer in layers})
    raise EngineError(
        f"{type(model).__name__}: cache layers {', '.join(kinds)} are not attention layers of "
        "one shape; use a server engine for this model"
    )


def exact_length(config: Any) -> tuple[int, str] | None:
    """The longest sequence whose attention slots reproduce, and the config key behind it.

    None when there is no such bound. Covered: sliding and chunked attention, RoPE that rescales
    itself past a length (all of a batch would switch at once), learned position tables.
    """
    bounds: list[tuple[int, str]] = []
    kinds = getattr(config, "layer_types", None)
    for key, kind in (
        ("sliding_window", "sliding_attention"),
        ("attention_chunk_size", "chunked_attention"),
    ):
        size = getattr(config, key, None)
        off = key == "sliding_window" and getattr(config, "use_sliding_window", True) is False
        if size and not off and (kinds is None or kind in kinds):
            bounds.append((int(size), key))
    table = getattr(config, "max_position_embeddings", None)
    rope: Any = getattr(config, "rope_parameters", None)
    if table and not rope:
        bounds.append((int(table), "max_position_embeddings"))
    # Some configs hold one set of RoPE parameters for each kind of layer.
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))] if rope else []
    if table and any(part.get("rope_type") in ("dynamic", "longrope") for part in parts):
        key = "original_max_position_embeddings"
        bounds.append((int(rope.get(key) or getattr(config, key, None) or table), key))
    return min(bounds) if bounds else None


@dataclass(slots=True)
class _Aim:
    """Where the next forward writes and how far it reads; shared by all layers of a cache."""

    rows: torch.Tensor
    positions: torch.Tensor
    span: int


class _SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's buffers.

    It knows the aim but not the cache: a cycle of references would keep the buffers of a dropped
    cache until the next garbage collection.
    """

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, aim: _Aim, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.aim = aim
        self.keys, self.values = keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the buffers exist."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        aim, n = self.aim, key_states.shape[0]
        self.keys[aim.rows, :, aim.positions] = key_states.transpose(1, 2)
        self.values[aim.rows, :, aim.positions] = value_states.transpose(1, 2)
        return self.keys[:n, :, : aim.span], self.values[:n, :, : aim.span]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.aim.span, 0

    def get_seq_length(self) -> int:
        return self.aim.span

    def get_max_length(self) -> int:
        return int(self.keys.shape[-2])


def new_buffer(shape: KvShape, rows: int, capacity: int, dim: int) -> torch.Tensor:
    """Room for the keys or the values of one layer.

    Filled with zeros: attention multiplies what the mask hides by 0, and 0 x NaN is NaN.
    """
    size = (rows, shape.heads, capacity, dim)
    return torch.zeros(size, dtype=shape.dtype, device=shape.device)


class SlotCache(Cache):
    """Buffers for `rows` sequences of at most `capacity` tokens."""

    def __init__(self, shape: KvShape, rows: int, capacity: int) -> None:
        self.shape, self.rows, self.capacity = shape, rows, capacity
        nowhere = torch.zeros((0, 1), dtype=torch.long, device=shape.device)
        self.aim = _Aim(nowhere, nowhere, 0)
        self.slots = [
            _SlotLayer(self.aim, *(new_buffer(shape, rows, capacity, dim) for dim in shape.dims))
            for _ in range(shape.layers)
        ]
        super().__init__(layers=list(self.slots))

    def put(self, start: int, count: int, kv: Kv, length: int) -> None:
        """Copy the first `length` tokens of `kv` into rows start..start+count-1."""
        rows = slice(start, start + count)
        for slot, keys, values in zip(self.slots, kv.keys, kv.values, strict=True):
            slot.keys[rows, :, :length] = keys[:, :length]
            slot.values[rows, :, :length] = values[:, :length]

    def take(self, row: int, length: int) -> Kv:
        """A copy of the first `length` tokens of a row."""
        keys = torch.stack([slot.keys[row, :, :length] for slot in self.slots])
        return Kv(keys, torch.stack([slot.values[row, :, :length] for slot in self.slots]))

    def move(self, source: torch.Tensor, target: torch.Tensor, length: int) -> None:
        """Copy the first `length` tokens of rows `source` over rows `target`."""
        for slot in self.slots:
            for buffer in (slot.keys, slot.values):
                buffer[target, :, :length] = buffer[source, :, :length]

    def resize(self, rows: int, capacity: int, live: int, length: int) -> None:
        """Take other sizes and keep the first `length` tokens of rows 0..live-1.

        One buffer is replaced after the other, so that never more than one exists twice. An
        exception on the way leaves buffers of two sizes: such a cache is of no further use.
        """

        def resized(old: torch.Tensor) -> torch.Tensor:
            new = new_buffer(self.shape, rows, capacity, old.shape[-1])
            new[:live, :, :length] = old[:live, :, :length]
            return new

        self.rows, self.capacity = rows, capacity
        for slot in self.slots:
            slot.keys = resized(slot.keys)
            slot.values = resized(slot.values)


@torch.inference_mode()
def forward(
    model: Any, cache: SlotCache, tokens: torch.Tensor, positions: torch.Tensor, keep: int
) -> torch.Tensor:
    """Run tokens [n, Q] at positions [n, Q] through rows 0..n-1 of the cache.

    Every position up to a token's own is visible to it, so a row must have been written without
    gaps. The mask has n x Q x span cells (`MASK_CELLS` is what callers allow). Returns logits of
    the last `keep` columns, [n, keep, V].
    """
    span = int(positions.max()) + 1
    cache.aim.rows = torch.arange(positions.shape[0], device=positions.device)[:, None]
    cache.aim.positions, cache.aim.span = positions, span
    hidden = torch.arange(span, device=positions.device) > positions[:, :, None]
    mask = torch.zeros(hidden.shape, dtype=cache.shape.dtype, device=positions.device)
    mask.masked_fill_(hidden, torch.finfo(cache.shape.dtype).min)
    output = model(
        input_ids=tokens,
        attention_mask=mask[:, None],
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=keep,
    )
    logits: torch.Tensor = output.logits
    return logits
