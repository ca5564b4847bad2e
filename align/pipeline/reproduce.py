"""Two runs of one recipe beside each other: what came out equal, and why the rest may differ.

    recipe = made_so_far(run_recipe(first), first)
    run(recipe, second, Console())
    found = compare(first, second)
    found.equal, found.to_text()

Both manifests hold digests of every output, the figures of every stage and what it was given. What
is no result (seconds) is not compared. On one machine with one set of versions everything is equal;
elsewhere the manifests tell what is other, which may be the reason.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from align.circumstances import CIRCUMSTANCES, circumstances_of
from align.errors import RecipeError
from align.pipeline.recipe import Recipe
from align.run_folder import chain_of, differences, read_manifest
from pts.errors import did_you_mean

NO_RESULTS = frozenset({"seconds"})
"""Keys of figures that two equal runs do not share."""
"""Sections of a manifest that tell with what a run was made."""


@dataclass(frozen=True, slots=True)
class StageComparison:
    """A stage or evaluation of a run beside the same one of the other run."""

    name: str
    compared: int
    """Files and figures that both have."""
    files: tuple[str, ...]
    """Outputs that differ, or that one run lacks."""
    figures: str
    """Figures that differ: `a.b: 1 -> 2`."""
    given: str
    """Settings and digests of inputs that differ."""

    @property
    def equal(self) -> bool:
        """Whether it came out equal, whatever it was given."""
        return not self.files and not self.figures

    def lines(self) -> Iterator[str]:
        """As text."""
        if self.equal:
            yield f"{self.name}: equal ({self.compared} files and figures)"
            return
        yield f"{self.name}: differs"
        told = ("files", ", ".join(self.files)), ("figures", self.figures), ("given", self.given)
        yield from (f"  {what}: {text}" for what, text in told if text)


@dataclass(frozen=True, slots=True)
class Reproduction:
    """Two runs of one recipe, stage by stage."""

    first: Path
    second: Path
    stages: tuple[StageComparison, ...]
    circumstances: tuple[str, ...]
    """What the manifests tell of versions, machine and code that differs."""

    @property
    def equal(self) -> bool:
        """Whether every stage came out equal."""
        return all(stage.equal for stage in self.stages)

    def reasons(self) -> list[str]:
        """What may be the reason of the first difference; none where all is equal."""
        first = next((stage for stage in self.stages if not stage.equal), None)
        if first is None:
            return []
        given = [f"{first.name} was given: {first.given}"] if first.given else []
        return [*given, *self.circumstances] or [
            "the manifests tell of no other input, version, machine or commit; what is left is "
            "the hardware, the load of the machine, or an operation that is not deterministic"
        ]

    def to_text(self) -> str:
        """For a terminal."""
        lines = [line for stage in self.stages for line in stage.lines()]
        differing = [stage.name for stage in self.stages if not stage.equal]
        if not differing:
            lines.append(f"{self.second} equals {self.first}.")
            if self.circumstances:
                lines.append(f"Though other than there: {'; '.join(self.circumstances)}")
            return "\n".join(lines)
        reasons = [f"  {reason}" for reason in self.reasons()]
        said = f"{self.second} differs from {self.first} from {differing[0]} on. What may be why:"
        return "\n".join([*lines, said, *reasons])

    def to_json(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        stages = [{**asdict(stage), "equal": stage.equal} for stage in self.stages]
        told = {"first": str(self.first), "second": str(self.second), "equal": self.equal}
        return {
            **told, "stages": stages, "circumstances": self.circumstances,
            "reasons": self.reasons(),
        }  # fmt: skip


def made_so_far(recipe: Recipe, folder: Path, stage: str = "") -> Recipe:
    """The recipe of a run up to a stage, or up to the last one that the run has finished.

    Raises:
        RecipeError: the run has not finished such a stage.
    """
    made = read_manifest(folder)["stages"]
    names = [entry.name for entry in recipe.stages]
    finished = [name for name in names if name in made]
    if stage and stage not in finished:
        hint = did_you_mean(stage, finished) or f"; it has {', '.join(finished) or 'none'}"
        raise RecipeError(f"--stage: {folder} has no finished stage {stage!r}{hint}")
    last = stage or (finished[-1] if finished else "")
    count = names.index(last) + 1 if last else 0
    return recipe.model_copy(update={"stages": recipe.stages[:count]})


def compare(first: Path, second: Path) -> Reproduction:
    """Compare what the first run has of the stages in the second run's recipe, with their
    evaluations."""
    manifests = read_manifest(first), read_manifest(second)
    chain = {stage["name"] for stage in chain_of(manifests[1])}
    old, new = (manifest["stages"] for manifest in manifests)
    stages = tuple(
        _compared(name, (first, record), (second, new.get(name, {})))
        for name, record in old.items()
        if name.removeprefix("eval/") in chain
    )
    told = _circumstances(*manifests, [stage.name for stage in stages])
    return Reproduction(first, second, stages, tuple(told))


def _compared(
    name: str, first: tuple[Path, Mapping[str, Any]], second: tuple[Path, Mapping[str, Any]]
) -> StageComparison:
    (_, old), (_, new) = first, second
    files = dict(old.get("outputs", {})) | dict(new.get("outputs", {}))
    before, after = _results(old.get("metrics", {})), _results(new.get("metrics", {}))
    return StageComparison(
        name,
        len(files) + len(before),
        tuple(file for file in files if not _same(file, first, second)),
        differences(before, after),
        differences(old.get("inputs", {}), new.get("inputs", {})),
    )


def _same(
    file: str, first: tuple[Path, Mapping[str, Any]], second: tuple[Path, Mapping[str, Any]]
) -> bool:
    """Whether an output is equal; JSON that holds seconds is compared without them."""
    digests = [record.get("outputs", {}).get(file) for _, record in (first, second)]
    if digests[0] == digests[1]:
        return True
    if None in digests or not file.endswith(".json"):
        return False
    texts = [folder / file for folder, _ in (first, second)]
    if not all(path.is_file() for path in texts):
        return False
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in texts)
    return bool(_results(old) == _results(new))


def _results(value: Any) -> Any:
    """Plain data without what is no result."""
    if isinstance(value, dict):
        return {key: _results(inner) for key, inner in value.items() if key not in NO_RESULTS}
    return value


def _circumstances(
    old: Mapping[str, Any], new: Mapping[str, Any], stages: Collection[str]
) -> Iterator[str]:
    """What differs, for any of the stages; a run that was continued has several."""
    pairs = [(circumstances_of(old, name), circumstances_of(new, name)) for name in stages]
    told = (line for before, after in pairs for line in _differing(before, after))
    yield from dict.fromkeys(told)


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for section in CIRCUMSTANCES:
        if section not in before:
            yield f"{section}: the first run's manifest tells nothing of it"
        elif found := differences(before[section], after[section], section):
            yield found
