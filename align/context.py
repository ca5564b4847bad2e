"""What a stage is given and returns: a stage is a function `run(context) -> StageResult`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pts.config import Settings

if TYPE_CHECKING:
    from align.pipeline.recipe import Recipe
    from align.tasks.base import Task

BASE = "base"
"""The name of the model that a chain begins with."""


@dataclass(frozen=True, slots=True)
class StageEntry:
    """One entry of a recipe's `stages`."""

    kind: str
    """A name of `align.stages.STAGES`."""
    name: str
    """Names the stage's folder, its row of the table and its overrides; unique in the recipe."""
    settings: Settings
    """Of the kind's own class."""
    start: str = ""
    """Stage whose policy this one starts from, or "base"; empty: the last policy before it."""
    share: str = ""
    """Stage whose problems this one draws too; empty: it draws its own."""
    engine: Settings | None = None
    """Where the stage's rollouts come from (an `EngineConfig`); None: the recipe's engine."""


def seed_of(*labels: object) -> int:
    """A 31-bit seed, fixed by its labels."""
    text = "|".join(map(str, labels)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class SourceRows:
    """The rows of a stage's sources, as ids."""

    file: Path
    """An Arrow stream, to be memory-mapped."""
    counts: Mapping[str, Mapping[str, int]]
    """Of each source: rows in it, drawn, kept, and lost by the way in which they were lost."""

    def total(self, name: str) -> int:
        """One of the counts, over all sources."""
        return sum(counts[name] for counts in self.counts.values())


@dataclass(frozen=True)
class StageContext:
    """Everything that a stage may read, and the one folder that it may write to.

    A stage that was killed is started again with the same context and the same folder: it
    continues from what it finds there.
    """

    recipe: Recipe
    task: Task
    entry: StageEntry
    policy: Path
    """Folder of the model that the stage starts from."""
    folder: Path
    """The stage's own folder."""
    pairs: Path | None = None
    """For a stage that needs pairs or takes rollouts: the file that a search wrote."""
    rollouts: Path | None = None
    """For a stage that takes the rollouts of a search as its data: the file that it wrote."""
    rows: SourceRows | None = None
    """For a stage whose settings name sources: their rows."""
    budget: int = 0
    """What the stages named by the setting `match` have spent: generated tokens, or what
    `match_by` names; 0 without it."""
    progress: bool = True
    """Show progress bars."""
    build_task: Callable[[Any], Task] | None = None
    """Makes `task` anew of the recipe's, in another process."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """Of all that the stage reads (policy, data files, pairs, reference), by name: a stage that is
    continued must find what it was begun with."""

    @property
    def settings(self) -> Any:
        """The stage's settings, of its kind's class."""
        return self.entry.settings

    def seed(self, purpose: str) -> int:
        """A seed for each purpose of each stage: two stages of a kind differ by their names."""
        return seed_of(self.recipe.seed, self.entry.name, purpose)

    @property
    def problem_seed(self) -> int:
        """Seed of the problems (or demonstrations) that the stage draws."""
        return seed_of(self.recipe.seed, self.entry.share or self.entry.name, "problems")


@dataclass(frozen=True)
class StageResult:
    """What a stage made."""

    model: Path | None
    """Folder of the new policy; None for a stage that trains nothing."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Counts and figures for the manifest and the report, JSON-able."""
    outputs: tuple[Path, ...] = ()
    """Files and folders whose digests the manifest keeps."""
