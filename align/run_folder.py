"""The manifest of a run folder: what was asked, what was made, and from what.

A stage is skipped when the manifest holds its record, the record's key (digest of the stage's
settings and inputs) is unchanged and its outputs are still what they were. Anything else under
the same name is refused, with the settings that differ, rather than silently mixed.

    with Manifest.open(folder, recipe) as manifest:
        record = manifest.done("sft", key)
        manifest.add("sft", key, result, seconds)

Secrets never enter it: recipes hold none, and of the environment only versions are kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from align.circumstances import CIRCUMSTANCES, circumstances, earlier
from align.context import StageResult
from align.errors import ManifestError
from align.settings import FilesTask, MixtureConfig
from pts.data.tables import BROKEN_TEXT, broken_text
from pts.files import output_fault, write_json

if TYPE_CHECKING:
    from align.pipeline.recipe import Recipe

LONGEST_SECONDS = 1e10
"""Of a stage; what is longer is no time."""
CELLS = "cells"
"""A sweep's folder of results, beside its tables."""


class Manifest:
    """`manifest.json` of one run folder, held by one process at a time."""

    def __init__(self, folder: Path, data: dict[str, Any], lock: IO[str]) -> None:
        self.folder = folder
        self.data = data
        self._lock = lock

    @classmethod
    def open(cls, folder: Path, recipe: Recipe, device: str = "") -> Manifest:
        """Start or continue the run in a folder; `device` is where its models are, if it has some.

        Raises:
            ManifestError: another process holds the folder, or it is not a run's folder.
        """
        if fault := output_fault(folder, "manifest.json"):
            raise ManifestError(f"{folder}: cannot be the folder of a run ({fault})")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / ".lock").open("w")
        except OSError as error:
            raise ManifestError(
                f"{folder}: cannot be the folder of a run ({error.strerror}: {error.filename}); "
                "give another --output"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ManifestError(
                f"{folder}: another process is running here; wait for it or give --output"
            ) from None
        found = read_manifest(folder) if (folder / "manifest.json").exists() else {}
        now = circumstances(device)
        data = {
            "stages": {},
            **found,
            "recipe": recipe.plain(),
            "labels": recipe.labels(),
            **now,
            **earlier(found, now),
        }
        if data != found:  # a finished run that is repeated is left as it is
            write_json(folder / "manifest.json", data)  # from now on this is the folder of a run
        return cls(folder, data, lock)

    def __enter__(self) -> Manifest:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.close()

    def done(self, name: str, inputs: Mapping[str, Any]) -> StageResult | None:
        """The result of a finished stage, or None when it still has to run.

        Raises:
            ManifestError: the stage was finished with other inputs, or its outputs were changed.
        """
        record = self.data["stages"].get(name)
        if record is None:
            return None
        lacking = [key for key in ("inputs", "outputs", "model") if key not in record]
        if lacking:
            raise ManifestError(
                f"{self.folder}/manifest.json: the record of stage {name!r} has no "
                f"{' and no '.join(lacking)}; restore the file, or give another --output"
            )
        wanted = json.loads(json.dumps(inputs))
        if record["inputs"] != wanted:
            raise ManifestError(
                f"{self.folder}: stage {name!r} was made with other settings: "
                f"{differences(record['inputs'], wanted)}; give another --output"
            )
        for output, digest in record["outputs"].items():
            path = self.folder / output
            if not path.exists() or tree_digest(path) != digest:
                raise ManifestError(
                    f"{path}: is gone or was changed since stage {name!r} made it; "
                    f"restore it, or give another --output"
                )
        model = record["model"]
        return StageResult(
            model=self.folder / model if model else None,
            metrics=record["metrics"],
            outputs=tuple(self.folder / output for output in record["outputs"]),
        )

    def add(
        self, name: str, inputs: Mapping[str, Any], result: StageResult, seconds: float
    ) -> None:
        """Record a finished stage and write the manifest."""
        self.data["stages"][name] = {
            "inputs": json.loads(json.dumps(inputs)),
            "seconds": round(seconds, 2),
            "model": _relative(result.model, self.folder),
            "metrics": result.metrics,
            "outputs": {
                str(_relative(path, self.folder)): tree_digest(path) for path in result.outputs
            },
        }
        write_json(self.folder / "manifest.json", self.data)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder.

    Raises:
        ManifestError: there is none, or it is damaged.
    """
    path = folder / "manifest.json"
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ManifestError(f"{path}: not found; give the folder of a run") from None
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: not valid JSON ({error}); restore it") from None
    damage = _damage(data)
    if damage:
        raise ManifestError(f"{path}: {damage}; restore it")
    data.setdefault("recipe", {})
    manifest: dict[str, Any] = data
    return manifest


def check_policies(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise ManifestError for a policy of a run that is not what its stage made."""
    for name, record in manifest["stages"].items():
        model = record.get("model")
        digest = record.get("outputs", {}).get(model)
        if not model or not digest:
            continue
        if not (folder / model).exists() or tree_digest(folder / model) != digest:
            raise ManifestError(
                f"{folder / model}: is gone or was changed since stage {name!r} made it; "
                "restore it, or make the run again with another --output"
            )


def chain_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages of a manifest's recipe, the base model first: name, kind and label of each."""
    labels = manifest.get("labels", {})
    stages = [{"name": "base", "kind": "base"}, *manifest["recipe"].get("stages", ())]
    return [{**stage, "label": labels.get(stage["name"], stage["name"])} for stage in stages]


def _damage(data: Any) -> str:
    """What is wrong with the form of a manifest; empty if nothing is."""
    if not isinstance(data, dict):
        return f"must be an object, got {type(data).__name__}"
    recipe = data.get("recipe", {})
    sections = ("recipe", "labels", "git", "versions", "machine")
    held = {key: data[key] for key in sections if key in data}
    if isinstance(recipe, dict) and "model" in recipe:
        held["recipe.model"] = recipe["model"]
    for key, value in held.items():
        if not isinstance(value, dict):
            return f"{key!r} must be an object, got {type(value).__name__}"
    said = [text for text in held.get("git", {}).values() if text is not None]
    if not all(isinstance(text, str) for text in (*said, *held.get("labels", {}).values())):
        return "'labels' and 'git' must hold text"
    if broken_text(data):
        return BROKEN_TEXT
    before = data.get("earlier", [])
    if not (isinstance(before, list) and all(map(_is_earlier, before))):
        return "'earlier' must be a list of objects with the names of their stages"
    stages = recipe.get("stages", [])
    if not isinstance(stages, list) or not all(map(_is_named, stages)):
        return "'recipe.stages' must be a list of objects with a name"
    if not isinstance(data.get("stages"), dict):
        return "has no object 'stages'"
    for name, record in data["stages"].items():
        lacking = _lacking(name, record)
        if lacking:
            return f"the record of stage {name!r} has no {' and no '.join(lacking)}"
    return ""


def _is_earlier(one: object) -> bool:
    if not isinstance(one, dict) or not isinstance(one.get("stages"), list):
        return False
    return all(isinstance(one.get(key, {}), dict) for key in CIRCUMSTANCES)


def _is_named(stage: object) -> bool:
    return isinstance(stage, dict) and isinstance(stage.get("name"), str)


def _lacking(name: str, record: Any) -> list[str]:
    """What the readers of a finished stage's record need and do not find."""
    if not isinstance(record, dict):
        return ["keys"]
    kinds: dict[str, Any] = {"seconds": int | float, "metrics": dict}
    optional: dict[str, Any] = {"outputs": dict}
    # Evaluations make no model.
    (optional if name.startswith("eval/") else kinds)["model"] = str | None
    unsound = [key for key, kind in kinds.items() if not isinstance(record.get(key, ...), kind)]
    unsound += [
        k for k, kind in optional.items() if k in record and not isinstance(record[k], kind)
    ]
    if "seconds" not in unsound and not 0 <= record["seconds"] < LONGEST_SECONDS:
        unsound.append("seconds")
    return [f"sound {key!r}" for key in unsound]


def tree_digest(path: Path) -> str:
    """SHA-256 over the names and bytes of a file, or of all files under a folder."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(file.relative_to(path.parent).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def data_digests(recipe: Recipe) -> dict[str, str]:
    """Digests of the files that a recipe's task reads, by name; none where it generates its data.

    A file that is missing has none: building the task says so.
    """
    task = recipe.task
    if not isinstance(task, FilesTask):
        return {}
    chats = [("chats", task.chats)] if task.chats is not None else []
    named = [*chats, *task.problems.items()]
    files = {name: Path(os.path.expanduser(path)) for name, path in named}
    return {f"task.{name}": tree_digest(path) for name, path in files.items() if path.exists()}


def source_digests(settings: object) -> dict[str, str]:
    """Digests of the sources that a stage's settings name, by name; of those on a hub, the path.

    A file that is missing has none: opening the source says so.
    """
    if not isinstance(settings, MixtureConfig):
        return {}
    named = {f"sources.{s.name or s.path}": s.path for s in settings.sources}
    named |= {f"against.{path}": path for path in settings.against}
    paths = {name: Path(os.path.expanduser(path)) for name, path in named.items()}
    return {name: tree_digest(path) if path.exists() else str(path) for name, path in paths.items()}


def recipe_digest(recipe: Recipe, data: Mapping[str, str]) -> str:
    """Twelve hex digits that name a recipe, and the data files that it names."""
    text = json.dumps(recipe.plain()) + "".join(f"{k}={v}" for k, v in data.items())
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _relative(path: Path | None, folder: Path) -> str | None:
    return path.relative_to(folder).as_posix() if path else None


def differences(old: Any, new: Any, path: str = "") -> str:
    """`a.b: 1 -> 2` for every leaf that differs, at most five."""
    found: list[str] = []

    def walk(a: Any, b: Any, at: str) -> None:
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted(a.keys() | b.keys()):
                walk(a.get(key), b.get(key), f"{at}.{key}" if at else key)
        elif a != b:
            found.append(f"{at}: {a!r} -> {b!r}")

    walk(old, new, path)
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return ", ".join(found[:5]) + more
