"""Code, versions and machine that something was made with: a run's stages, a sweep's cells."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "numpy",
    "three-stage",
)

CIRCUMSTANCES = ("versions", "machine", "git")
"""What a manifest tells of how a run was made, beside its recipe."""


def circumstances(device: str = "") -> dict[str, dict[str, Any]]:
    """Those of this process; `device` is where its models are, if it has some."""
    return {
        "git": git_state(),
        "versions": versions(),
        "machine": {**machine(), **({"device": device} if device else {})},
    }


def earlier(found: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Circumstances that finished stages were made in before a run was continued in other ones."""
    listed = found.get("earlier", [])
    counted = {name for one in listed for name in one["stages"]}
    made = [name for name in found.get("stages", {}) if name not in counted]
    before = {key: found[key] for key in CIRCUMSTANCES if key in found}
    if made and before != dict(now):
        listed = [*listed, {"stages": made, **before}]
    return {"earlier": listed} if listed else {}


def circumstances_of(manifest: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Code, versions and machine that a stage was finished with."""
    told = next((one for one in manifest.get("earlier", ()) if stage in one["stages"]), manifest)
    return {key: told[key] for key in CIRCUMSTANCES if key in told}


def git_state() -> dict[str, str | None]:
    """Commit of the code that runs, and a digest of its uncommitted changes (None if clean)."""
    root = Path(__file__).parent.parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()) != root:
            return {"commit": None, "changes": None}
        commit, diff = git("rev-parse", "HEAD").strip(), git("diff", "HEAD")
    except (subprocess.CalledProcessError, FileNotFoundError):
        return {"commit": None, "changes": None}
    return {
        "commit": commit,
        "changes": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, str]:
    """What of the machine can shape a rounding: the processor, and how many cores and threads."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        told = []
    names = (line.partition(":")[2].strip() for line in told if line.startswith("model name"))
    return {
        "processor": next(names, "") or platform.processor() or platform.machine(),
        "cores": str(cores()),
        "threads": os.environ.get("OMP_NUM_THREADS", "one a core"),
    }
