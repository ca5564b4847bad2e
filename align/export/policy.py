"""Which policy of a run is exported, and what the run's manifest says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import ExportError
from align.run_folder import chain_of, check_policies, read_manifest
from pts.errors import did_you_mean


@dataclass(frozen=True, slots=True)
class Policy:
    """A model that a stage of a run has made."""

    run: Path
    """Folder of the run."""
    stage: str
    label: str
    folder: Path
    """Folder of the model."""
    digest: str
    """That of the folder, as the manifest keeps it."""
    manifest: Mapping[str, Any]

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe as plain data."""
        recipe: Mapping[str, Any] = self.manifest["recipe"]
        return recipe

    @property
    def name(self) -> str:
        """`phi-nano-full_dpo`: the recipe's name and the stage's."""
        return f"{self.recipe.get('name', 'run')}-{self.stage}"

    @property
    def seed(self) -> int:
        """Training seed of the run."""
        return int(self.recipe.get("seed", 0))


def find_policy(run: Path, stage: str | None = None) -> Policy:
    """The policy of a stage, or the last one of a run; its files are what the stage has made.

    Raises:
        ManifestError: the folder holds no run, or the policy was changed.
        ExportError: no stage, or not this one, has made a model.
    """
    manifest = read_manifest(run)
    labels = {entry["name"]: entry["label"] for entry in chain_of(manifest)}
    made = {
        name: record
        for name, record in manifest["stages"].items()
        if record.get("model") and record.get("outputs", {}).get(record["model"])
    }
    if not made:
        raise ExportError(f"{run}: no stage of this run has made a model yet; finish it first")
    name = next(reversed(made)) if stage is None else stage
    if name not in made:
        raise ExportError(
            f"--stage: {name!r} has made no model in {run}; those that have: "
            f"{', '.join(made)}{did_you_mean(name, made)}"
        )
    record = made[name]
    check_policies(run, {"stages": {name: record}})
    folder = run / record["model"]
    if not (folder / "config.json").is_file():
        raise ExportError(f"{folder}: holds no config.json; restore it")
    digest = record["outputs"][record["model"]]
    return Policy(run, name, labels.get(name, name), folder, digest, manifest)
