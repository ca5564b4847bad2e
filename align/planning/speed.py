"""Seconds of sampling and of training on a device, from its data sheet.

Training: a token takes 2 floating point operations a parameter forward and 4 backward (2 where the
weights are frozen), and as many again as forward where activations are recomputed; and attention to
half of its sequence on average. Sampling: a step reads the weights and the keys and values of all
rows once, or multiplies all rows with the weights, whichever takes longer. Both have a part that
grows with the layers alone. Prompts are computed once for all answers to a question, and left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from align.engines.settings import EngineConfig, ServedEngine
from align.planning.assumptions import Assumptions
from align.planning.counts import Counts
from align.planning.devices import CPU, Device
from align.planning.memory import BYTES, kv_bytes, recomputes
from align.planning.shapes import Shape
from align.settings import TrainingConfig

if TYPE_CHECKING:
    from align.pipeline.recipe import Recipe

ROOM = 0.9
"""Share of a device's memory that sampling may fill."""
ROWS = {True: 256, False: 64}
"""Answers in progress on a device: on a GPU (vLLM's default), on a CPU."""


@dataclass(frozen=True, slots=True)
class Sampler:
    """The devices that sample."""

    kind: str
    """Of the engine."""
    parts: int
    """Devices that share one copy of the model."""
    copies: int
    """Copies of the model that sample at a time."""

    @property
    def devices(self) -> int:
        """All of them."""
        return self.parts * self.copies


def sampler_of(engine: EngineConfig, devices: int) -> Sampler:
    """What an engine samples on, by its settings; on `devices` in all where that is not 0."""
    if isinstance(engine, ServedEngine):
        words = engine.whole_command.replace("=", " ").split()
        parts = _after(words, ("--tensor-parallel-size", "-tp"))
        copies = max(1, len(engine.urls)) * _after(words, ("--data-parallel-size", "-dp"))
    else:
        parts = int(engine.options.get("tensor_parallel_size", 1))
        copies = int(engine.options.get("data_parallel_size", 1))
    return Sampler(engine.kind, parts, max(1, devices // parts) if devices else copies)


def _after(words: list[str], names: tuple[str, ...]) -> int:
    """The number behind an option of a command; 1 without it."""
    for name, value in pairwise(words):
        if name in names and value.isdigit():
            return int(value)
    return 1


def is_gpu(device: Device) -> bool:
    """Whether a device is a GPU."""
    return not device.name.startswith(CPU.upper())


def rows_at_once(
    recipe: Recipe, shape: Shape, device: Device, told: Assumptions, sampler: Sampler, length: float
) -> int:
    """Answers that one copy of the model has in progress: those that fit, at most as many as are
    assumed. At least 1, fit or not."""
    weights = BYTES[recipe.model.dtype] * shape.parameters
    room = ROOM * device.memory * sampler.parts - weights - told.process_bytes * sampler.parts
    fitting = int(room / (length * kv_bytes(shape, recipe.model.dtype)))
    return max(1, min(told.rows or ROWS[is_gpu(device)], fitting))


def sampling_seconds(
    recipe: Recipe, shape: Shape, device: Device, told: Assumptions, sampler: Sampler,
    counts: Counts,
) -> float:  # fmt: skip
    """Seconds in which all copies together draw the tokens of a stage."""
    if not counts.generated:
        return 0.0
    dtype = recipe.model.dtype
    rows = rows_at_once(recipe, shape, device, told, sampler, counts.length)
    # Answers in progress are at all lengths: half of a whole one, on average.
    cache = rows * counts.length / 2 * kv_bytes(shape, dtype)
    read = BYTES[dtype] * shape.parameters + cache
    product = 2.0 * shape.multiplied * rows
    step = max(
        read / (sampler.parts * device.bandwidth * told.bandwidth_share),
        product / (sampler.parts * device.flops[dtype] * told.mfu),
    )
    step += shape.layers * layer_seconds(told, sampler.kind)
    return counts.generated / (rows * sampler.copies) * step


def layer_seconds(told: Assumptions, engine: str) -> float:
    """Seconds of a layer and step that do not depend on its rows."""
    return told.layer_seconds or (5e-4 if engine == "transformers" else 5e-5)


def _forward(shape: Shape, length: float) -> float:
    """Operations of one token forward: weights, and attention to half of `length` tokens."""
    attention = 4.0 * shape.layers * shape.heads * shape.head_size * length / 2
    return 2.0 * shape.multiplied + attention


def training_seconds(
    recipe: Recipe, config: TrainingConfig, shape: Shape, device: Device, told: Assumptions,
    counts: Counts,
) -> float:  # fmt: skip
    """Seconds of the optimiser's steps, on the devices of `launch`."""
    passes = (2 if config.lora else 3) + recomputes(shape, is_gpu(device))
    work = counts.passed * passes * _forward(shape, counts.length)
    processes = recipe.launch.processes
    batches = counts.steps * config.gradient_accumulation / processes
    started = batches * 3 * shape.layers * layer_seconds(told, "transformers")
    return work / (processes * device.flops[recipe.model.dtype] * told.mfu) + started


def scoring_seconds(
    recipe: Recipe, shape: Shape, device: Device, told: Assumptions, counts: Counts
) -> float:
    """Seconds of the passes that train nothing, on one device."""
    work = counts.scored * _forward(shape, counts.length)
    return work / (device.flops[recipe.model.dtype] * told.mfu)
