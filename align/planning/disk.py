"""Bytes on disk of a stage: policies, checkpoints, rollouts and results.

Bytes of rollouts were measured on runs of phi-nano and on synthetic answers of 500 tokens
(docs/running-a-search.md): ids of sampled answers stand in plain JSON, a digit of the vocabulary's
size a token about, twice (journal and samples); those of a search packed, twice too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from align.planning.counts import Counts
from align.planning.memory import BYTES
from align.planning.shapes import Shape
from align.settings import TrainingConfig

CHECKPOINTS = 2
"""Kept at a time."""
ROLLOUT = 55
"""Bytes of a rollout in a file besides its ids."""
PACKED = (0.7, 0.56)
"""Bytes a token of a search's rollouts, in its journal and in rollouts.jsonl."""
PATH_TOKEN = 95
"""Bytes a token of a searched path in results.jsonl."""
ITEM = 500
"""Bytes of an evaluated question in items.jsonl."""


@dataclass(frozen=True, slots=True)
class Disk:
    """What stays when the stage is done, and what it needs besides while it trains."""

    policy: float = 0
    files: float = 0
    checkpoints: float = 0

    @property
    def total(self) -> float:
        """At the peak."""
        return self.policy + self.files + self.checkpoints


def stage_disk(
    settings: Any, kind: str, shape: Shape, dtype: str, counts: Counts, answer: float
) -> Disk:
    """Of a stage or (`kind` "eval") of an evaluation.

    Args:
        answer: tokens of a whole answer.
    """
    ids = len(str(shape.vocab))
    files = counts.rollouts * 2 * ROLLOUT + counts.generated * 2 * ids
    if kind == "pts":
        files = counts.rollouts * ROLLOUT + counts.generated * sum(PACKED)
        files += counts.kept * answer * PATH_TOKEN
    files += counts.pairs * counts.length * ids * counts.sides
    if kind == "eval":
        files += counts.questions * ITEM
    if not isinstance(settings, TrainingConfig):
        return Disk(files=files)
    trained = shape.adapter(settings.lora) if settings.lora else shape.parameters
    # Weights in float32, and two moments.
    checkpoint = (4 + 8) * trained
    written = min(CHECKPOINTS, counts.steps // settings.save_steps)
    return Disk(BYTES[dtype] * shape.parameters, files, written * checkpoint)
