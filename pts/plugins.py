"""Modules of one's own that register a verifier, an engine or the like when they are imported."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable

from pts.errors import ConfigError


def import_modules(names: Iterable[str], key: str) -> None:
    """Import modules, installed ones or those of the working folder.

    Args:
        names: as in an import statement.
        key: the setting that names them, for messages.

    Raises:
        ConfigError: every module that is not there, or whose code fails.
    """
    here, names = os.getcwd(), [*names]
    if names and here not in sys.path:
        sys.path.append(here)  # the last place: a file there hides no library
    faults = []
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            faults.append(f"{key}: {_fault(name, here, error)}")
    if faults:
        raise ConfigError(*faults)


def _fault(name: str, here: str, error: Exception) -> str:
    parts = name.split(".")
    above = [".".join(parts[: k + 1]) for k in range(len(parts))]
    if isinstance(error, ModuleNotFoundError) and error.name in above:
        return f"no module {name!r} is installed or stands in {here}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = f"{type(error).__name__}: {error}"
    return f"{name!r} cannot be imported: {said} ({frame.filename}, line {frame.lineno})"
