"""A finished or unfinished run, opened to be looked at: in a notebook, in a script.

    run = align.open_run("runs/phi-nano-seed0")
    run.table                       # rich in a notebook; .to_text(), .to_pandas(), .to_json()
    run.stages["sft"].metrics       # counts and figures of a stage
    run.metrics("sft")              # a row an optimiser step: the loss and the like
    run.pairs()                     # the confirmed pairs of its search

Nothing is read before it is asked for, and no model library is imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from align.errors import StageError
from align.evaluation.tables import Table, run_table
from align.run_folder import read_manifest
from pts.data.pairs import read_pairs
from pts.errors import did_you_mean
from pts.types import TokenPair


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What the manifest holds of a finished stage."""

    name: str
    seconds: float
    model: Path | None
    """Folder of the policy; None for a stage that trains nothing."""
    metrics: Mapping[str, Any]
    """Counts and figures."""


class Run:
    """The folder of a run."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, stages: {', '.join(self.stages) or 'none yet'})"

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """What was asked, what was made, and from what.

        Raises:
            ManifestError: the folder holds no run, or the manifest is damaged.
        """
        return read_manifest(self.folder)

    @cached_property
    def table(self) -> Table:
        """The policies measured so far, each compared with the one that it started from.

        Raises:
            StageError: none is measured yet, or an evaluation is damaged.
        """
        found = run_table(self.folder, self.manifest)
        if found is None:
            raise StageError(f"{self.folder}: no policy is measured yet; align run goes on with it")
        return found

    @property
    def stages(self) -> dict[str, StageRecord]:
        """The finished stages by name, in the order in which they finished."""
        return {
            name: StageRecord(
                name,
                record["seconds"],
                self.folder / record["model"] if record["model"] else None,
                record["metrics"],
            )
            for name, record in self.manifest["stages"].items()
            if not name.startswith("eval/")
        }

    def metrics(self, stage: str) -> list[dict[str, Any]]:
        """What a stage's trainer logged, a row an optimiser step, also while it trains.

        Raises:
            StageError: the stage trains nothing or has not begun, or a line is damaged.
        """
        file = self.folder / stage / "metrics.jsonl"
        if not file.is_file():
            raise StageError(f"{file}: no such file{did_you_mean(stage, self.stages)}")
        whole = [line for line in file.read_bytes().splitlines(True) if line.endswith(b"\n")]
        try:
            return [json.loads(line) for line in whole]
        except ValueError as error:
            raise StageError(f"{file}: damaged ({error}); restore the file") from None

    def pairs(self, stage: str = "") -> list[TokenPair]:
        """The confirmed pairs of a search.

        Args:
            stage: its name; need not be given where the run has one search.

        Raises:
            StageError: the run has no search, or several.
        """
        found = [path.parent.name for path in sorted(self.folder.glob("*/token_texts.json"))]
        if not stage and len(found) != 1:
            said = f"several searches ({', '.join(found)}); name one" if found else "no search"
            raise StageError(f"{self.folder}: holds {said}")
        return read_pairs(self.folder / (stage or found[0]) / "pairs.jsonl")


def open_run(folder: Path | str) -> Run:
    """The run in a folder.

    Raises:
        ManifestError: the folder holds no run.
    """
    run = Run(folder)
    _ = run.manifest
    return run
