"""Memory of one device while a stage samples, asks the reference or trains, in bytes.

Weights that are all trained are held in float32, with gradients and two moments of AdamW: 4 + 4 + 8
bytes a parameter. Under LoRA the frozen weights keep the recipe's dtype, and the adapter alone has
16. In 4 bits (QLoRA) a frozen matrix has half a byte a weight and a float32 scale for each block of
64, under double quantisation a byte for the scale and a float32 for 256 of these; the one that is
multiplied is unpacked into the recipe's dtype. `ddp` holds all of it on every device, `fsdp2` and
`deepspeed` a part, and one layer whole.

Activations: Korthikanti et al. (2022, "Reducing Activation Recomputation in Large Transformer
Models") count 34 bytes a token, layer and hidden size in 16 bits (attention without stored scores).
That is 10 + 4 for queries, keys, values, the attention's output and its input's norms, 16 for a
plain block of width 4 and 4 for dropout and norms; here the keys and values have their own number
of heads, the block is gated (8 bytes a unit of its width), and there is no dropout. Recomputed, a
layer keeps its input alone, and one layer at a time has all.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from align.planning.assumptions import Assumptions
from align.planning.counts import Counts
from align.planning.shapes import Shape
from align.settings import LoRAConfig, TrainingConfig

if TYPE_CHECKING:
    from align.pipeline.recipe import Recipe

LARGE = 1_000_000_000
"""Parameters from which the training recomputes activations on a GPU."""
TILE = 1024
"""Positions whose logits are in memory at a time: TRL's fused head goes in tiles."""
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one device, by what it is for."""

    weights: float = 0
    gradients: float = 0
    optimiser: float = 0
    copies: float = 0
    """Weights in bfloat16 for the forward pass (autocast), a gathered layer of sharded ones, and
    the buckets in which `ddp` adds up gradients."""
    activations: float = 0
    logits: float = 0
    kv_cache: float = 0
    process: float = 0

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(getattr(self, field.name) for field in fields(self)))


def training_memory(
    recipe: Recipe, config: TrainingConfig, shape: Shape, counts: Counts, told: Assumptions,
    gpu: bool,
) -> Memory:  # fmt: skip
    """While the longest batch that the settings allow is trained on."""
    sequences = config.batch_size * counts.sides * counts.longest
    state = training_state(recipe, config.lora, shape, gpu)
    tokens = sequences + counts.held
    kept = token_bytes(recipe, config.lora, shape, gpu)
    activations = tokens * kept + _one_layer(recipe, config.lora, shape, gpu) * tokens
    # Token DPO has the logits of the positions it is held along: the policy's, the reference's and
    # the gradient.
    logits = 4 * shape.vocab * (3 * counts.held or 2 * min(TILE, tokens))
    return Memory(*state, activations=activations, logits=logits, process=told.process_bytes)


def training_state(
    recipe: Recipe, lora: LoRAConfig | None, shape: Shape, gpu: bool
) -> tuple[float, float, float, float]:
    """Weights, gradients, optimiser's state and copies on each device."""
    processes, sharded = recipe.launch.processes, _sharded(recipe)
    parts = processes if sharded else 1
    trained = shape.adapter(lora) if lora else shape.parameters
    frozen = held_bytes(recipe, lora, shape) if lora else 0
    mixed = gpu and recipe.model.dtype == "bfloat16"
    cast = 2.0 * trained if mixed else 0.0
    if sharded:  # the layer at hand and the next one, whole
        layer = (shape.parameters - shape.vocab * shape.hidden) / shape.layers
        cast = 2 * layer * (2 if mixed or lora else 4)
    cast += _unpacked(recipe, lora, shape)
    buckets = 4 * trained if processes > 1 and not sharded else 0
    return (
        (frozen + 4 * trained) / parts, 4 * trained / parts, 8 * trained / parts, cast + buckets,
    )  # fmt: skip


def held_bytes(recipe: Recipe, lora: LoRAConfig | None, shape: Shape) -> float:
    """Bytes of a model's weights as a training stage loads them."""
    if lora is None:
        return float(BYTES["float32"] * shape.parameters)
    width = BYTES[recipe.model.dtype]
    if not lora.load_in_4bit:
        return float(width * shape.parameters)
    packed = sum(inputs * outputs for _, inputs, outputs in shape.linears)
    scale = 1 + 4 / 256 if lora.bnb_4bit_use_double_quant else 4
    return width * (shape.parameters - packed) + packed * (1 / 2 + scale / 64)


def _unpacked(recipe: Recipe, lora: LoRAConfig | None, shape: Shape) -> float:
    """Bytes of the largest matrix that is multiplied with out of 4 bits."""
    if lora is None or not lora.load_in_4bit:
        return 0.0
    largest = max((inputs * outputs for _, inputs, outputs in shape.linears), default=0)
    return float(BYTES[recipe.model.dtype] * largest)


def _sharded(recipe: Recipe) -> bool:
    """Whether each device holds a part of what is trained."""
    return recipe.launch.processes > 1 and recipe.launch.strategy != "ddp"


def _width(recipe: Recipe, lora: LoRAConfig | None, gpu: bool) -> tuple[int, int]:
    """Bytes of a number inside a layer, and of one between layers."""
    half = recipe.model.dtype == "bfloat16" and (gpu or lora is not None)
    # Autocast leaves what stands between layers in the type of the weights, which sharded ones are
    # gathered in (accelerate gives FSDP2 bfloat16 for parameters and outputs).
    return (2 if half else 4), (2 if half and (lora is not None or _sharded(recipe)) else 4)


def _whole_layer(recipe: Recipe, lora: LoRAConfig | None, shape: Shape, gpu: bool) -> float:
    """Bytes a token that a layer keeps for its backward pass, recomputation aside."""
    inside, between = _width(recipe, lora, gpu)
    keys = 2 * shape.kv_heads * shape.head_size
    queries = 2 * shape.heads * shape.head_size  # and the attention's output
    attention = shape.hidden + queries + keys
    block = shape.hidden + 4 * shape.intermediate
    norms = 2 * shape.hidden
    return inside * (attention + block) + between * norms


def recomputes(shape: Shape, gpu: bool) -> bool:
    """Whether the training recomputes activations."""
    return gpu and shape.parameters >= LARGE


def token_bytes(recipe: Recipe, lora: LoRAConfig | None, shape: Shape, gpu: bool) -> float:
    """Bytes of activations that a token keeps until its backward pass, over all layers."""
    if recomputes(shape, gpu):
        return _width(recipe, lora, gpu)[1] * shape.hidden * shape.layers
    return _whole_layer(recipe, lora, shape, gpu) * shape.layers


def _one_layer(recipe: Recipe, lora: LoRAConfig | None, shape: Shape, gpu: bool) -> float:
    """Bytes a token of the layer that is being recomputed; none without recomputation."""
    return _whole_layer(recipe, lora, shape, gpu) if recomputes(shape, gpu) else 0.0


def longest_that_fits(
    recipe: Recipe, config: TrainingConfig, shape: Shape, counts: Counts, told: Assumptions,
    gpu: bool, room: float,
) -> int:  # fmt: skip
    """Tokens of a row with which the batch of the settings still fits into `room` bytes."""
    whole = training_memory(recipe, config, shape, counts, told, gpu)
    left = room - (whole.total - whole.activations - whole.logits)
    each = token_bytes(recipe, config.lora, shape, gpu) + _one_layer(
        recipe, config.lora, shape, gpu
    )
    share = counts.held / counts.longest if counts.longest else 0.0
    rows = config.batch_size * counts.sides + share
    fixed = 0.0 if counts.held else whole.logits
    per_token = rows * each + 4 * shape.vocab * 3 * share
    return max(0, int((left - fixed) / per_token))


def reference_memory(
    recipe: Recipe, config: TrainingConfig, shape: Shape, counts: Counts, told: Assumptions,
    gpu: bool,
) -> Memory:  # fmt: skip
    """While one process asks the reference for what the training needs of it."""
    tokens = config.batch_size * counts.sides * counts.longest
    layer = _whole_layer(recipe, config.lora, shape, gpu)
    logits = 4 * shape.vocab * 2 * min(TILE, tokens)
    return Memory(
        weights=held_bytes(recipe, config.lora, shape),
        copies=_unpacked(recipe, config.lora, shape),
        activations=layer * tokens, logits=logits, process=told.process_bytes,
    )  # fmt: skip


def kv_bytes(shape: Shape, dtype: str) -> float:
    """Bytes of keys and values of one token."""
    return 2.0 * shape.layers * shape.kv_heads * shape.head_size * BYTES[dtype]


def sampling_memory(
    recipe: Recipe, shape: Shape, rows: int, tokens: float, told: Assumptions, parts: int
) -> Memory:
    """While `rows` answers of so many tokens, prompts included, are drawn on `parts` devices
    that share one copy of the model."""
    dtype = recipe.model.dtype
    return Memory(
        weights=BYTES[dtype] * shape.parameters / parts,
        logits=4.0 * rows * shape.vocab,
        kv_cache=rows * tokens * kv_bytes(shape, dtype) / parts,
        process=told.process_bytes,
    )
