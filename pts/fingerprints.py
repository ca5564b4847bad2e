"""What stands for problems and settings in a run's files: the same text in every process."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Set
from typing import Any

from pts.types import Ids, Problem


def plain(value: Any) -> Any:
    """A value whose `repr` says the same in every process.

    Sets are sorted (their order depends on the process's hash seed), functions and classes become
    their names, objects that print an address the name of their class.
    """
    if isinstance(value, Mapping):
        items = [(plain(key), plain(item)) for key, item in value.items()]
        return sorted(items, key=repr)
    if isinstance(value, Set):
        return sorted(map(plain, value), key=repr)
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return type(value)(map(plain, value))
    if isinstance(value, re.Pattern):
        return value.pattern
    if hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    prints_address = getattr(type(value), "__repr__") is object.__repr__  # noqa: B009
    return type(value).__qualname__ if prints_address else value


def asked_digest(problem: Problem) -> str:
    """Stands for a problem as it was given: another one under the same id is another question."""
    about = (problem.prompt, problem.reference, problem.metadata, problem.completions)
    return _digest(about)


def rollouts_digest(problem: Problem, prompt: Ids) -> str:
    """Stands for all that decides a question's rollouts and verdicts, apart from the run."""
    about = (prompt, problem.reference, sorted(problem.metadata.items()))
    return _digest((*about, problem.completions) if problem.completions else about)


def _digest(about: tuple[Any, ...]) -> str:
    return hashlib.blake2b(repr(plain(about)).encode(), digest_size=12).hexdigest()
