"""Every error that `pts` raises on purpose.

    PTSError
    ├── ConfigError      (also ValueError)    a setting, a recipe key or an argument is wrong
    ├── DataError        (also ValueError)    an input file or record is wrong
    ├── EngineError      (also RuntimeError)  a model or a server could not sample or score
    │   └── UnscorableError                   it cannot tell what follows one prefix
    ├── VerifierError    (also RuntimeError)  a verifier is broken, not the completion it judged
    ├── JournalError     (also RuntimeError)  a journal belongs to another run, or is in use
    └── MissingExtra     (also ImportError)   an optional dependency is not installed

Each message names the place, the value that was found and what to do about it.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable

_MACHINE = {
    errno.ENOSPC: "free some space on the disk",
    errno.EDQUOT: "free some of your quota on the disk",
    errno.EROFS: "give an --output that can be written to",
    errno.EACCES: "give an --output that can be written to, or mend its permissions",
    errno.EPERM: "give an --output that can be written to, or mend its permissions",
    errno.EIO: "the disk fails",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOTDIR: "a part of this path is a file; give another --output",
    errno.ELOOP: "its links lead in a circle; mend them, or give another path",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
}
"""Failures of the machine, with remedies."""


class PTSError(Exception):
    """Root of all errors raised on purpose by `pts` (and by `align`, which builds on it)."""


class ConfigError(PTSError, ValueError):
    """A setting is wrong. `problems` lists every fault found, one line each."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class DataError(PTSError, ValueError):
    """An input file or one of its records cannot be used."""


class EngineError(PTSError, RuntimeError):
    """A model or a server could not sample or score."""


class PromptError(EngineError):
    """A prompt cannot be sampled; others can."""


class UnscorableError(EngineError):
    """An engine cannot tell the distribution after one prefix; others it can. The question whose
    prefix it is is set aside, and the run goes on."""


class VerifierError(PTSError, RuntimeError):
    """A verifier itself is broken (its set-up, not the completion that it was given)."""


class JournalError(PTSError, RuntimeError):
    """A journal belongs to another run, is damaged, or is held by another process."""


class MissingExtra(PTSError, ImportError):
    """An optional dependency is missing; the message holds the install line."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'three-stage[{extra}]'")


def told(error: PTSError) -> str:
    """The error as the commands print it: how many there are, a line each, then its notes."""
    lines = [printable(line) for line in str(error).split("\n")]
    head = "error:" if len(lines) == 1 else f"{len(lines)} errors:"
    notes: list[str] = getattr(error, "__notes__", [])
    return "\n".join([head, *(f"  {line}" for line in (*lines, *map(printable, notes)))])


def printable(text: str) -> str:
    """Text with everything escaped that could steer a terminal, line breaks excepted."""
    return "".join(c if c == "\n" or c.isprintable() else ascii(c)[1:-1] for c in text)


def outside(error: BaseException) -> str | None:
    """What the commands say of a failure of the machine; None for a fault of the program."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            "memory ran out; use a smaller model, dtype, window or batch_size. The same command "
            "continues"
        )
    if not isinstance(error, OSError):
        told_by = re.search(r"\(os error (\d+)\)", str(error))  # libraries in other languages
        remedy = _MACHINE.get(int(told_by[1])) if told_by else None
        return f"{error}; {remedy}. The same command continues" if remedy else None
    if error.errno not in _MACHINE:
        return None
    name = str(error.filename or "")
    place = f"{name[:100]}{'…' if len(name) > 100 else ''}: " if name else ""
    return f"{place}{error.strerror}; {_MACHINE[error.errno]}. The same command continues"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
