"""What a stage is given and returns: a stage is a function `run(context) -> StageResult`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.recipe import Recipe
from align.tasks.base import Task


@dataclass(frozen=True)
class StageContext:
    """Everything that a stage may read, and the one folder that it may write to.

    A stage that was killed is started again with the same context and the same folder: it
    continues from what it finds there.
    """

    recipe: Recipe
    task: Task
    policy: Path
    """Folder of the model that the stage starts from."""
    folder: Path
    """The stage's own folder."""
    pairs: Path | None = None
    """`token_dpo` only: the pairs that the search wrote."""
    progress: bool = True
    """Show progress bars."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of all that the stage reads (policy, data files, pairs, reference), by name: a stage that is
    continued must find what it was begun with."""

    def seed(self, purpose: str) -> int:
        """A 31-bit seed of its own for each purpose, fixed by the recipe's seed."""
        text = f"{self.recipe.seed}|{purpose}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big") >> 1


@dataclass(frozen=True)
class StageResult:
    """What a stage made."""

    model: Path | None
    """Folder of the new policy; None for a stage that trains nothing."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Counts and figures for the manifest and the report, JSON-able."""
    outputs: tuple[Path, ...] = ()
    """Files and folders whose digests the manifest keeps."""
