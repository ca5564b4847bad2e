"""Errors of the post-train. All descend from `pts.errors.PTSError`.

    PTSError
    ├── ConfigError   (also ValueError)
    │   └── RecipeError    a recipe, or an override of one, is wrong
    ├── StageError    (also RuntimeError)   a stage cannot go on: its input or its validation failed
    ├── ManifestError (also RuntimeError)   a run folder belongs to another recipe, or was changed
    ├── SweepError    (also RuntimeError)   a cell of a sweep does not belong to it, or is damaged
    ├── CompareError  (also ValueError)     results cannot be read, or do not belong together
    └── ExportError   (also ValueError)     a policy cannot be exported as it was asked for

Each message names the place, the value that was found and what to do about it.
"""

from __future__ import annotations

from pts.errors import ConfigError, PTSError


class RecipeError(ConfigError):
    """A recipe, or an override of one, is wrong; `problems` lists every fault."""


class StageError(PTSError, RuntimeError):
    """A stage cannot go on: its input or its validation before training failed."""


class ManifestError(PTSError, RuntimeError):
    """A run folder belongs to another recipe, or its files were changed after they were made."""


class SweepError(PTSError, RuntimeError):
    """A cell of a sweep was made with other settings, is damaged, or could not be made."""


class CompareError(PTSError, ValueError):
    """Results of two models cannot be read, or are not of the same items."""


class ExportError(PTSError, ValueError):
    """A policy cannot be exported as it was asked for, or not to this place."""
