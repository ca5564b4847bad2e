"""Verifiers by name, as recipes and command lines give them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from pts.errors import ConfigError, did_you_mean
from pts.types import Problem, Verdict
from pts.verifiers.base import Verifier
from pts.verifiers.choice import ChoiceVerifier
from pts.verifiers.exact import ExactVerifier, as_integer

_log = logging.getLogger(__name__)

CODE_OPTIONS: dict[str, Callable[[str], Any]] = {
    "timeout": float,
    "memory": int,
    "isolation": str,
    "prefix": str,
    "entry_point": str,
}
"""Options of `code` and how each is read; `CodeVerifier` says what they mean."""


def as_written(answer: str) -> str:
    """Whole numbers in canonical spelling, other answers as they are."""
    try:
        return as_integer(answer)
    except ValueError:
        return answer.strip()


def make_verifier(spec: str) -> Verifier:
    """The verifier of `exact:REGEX`, `math`, `choice`, `choice:LETTERS`, `code` or `code:OPTIONS`.

    OPTIONS are `timeout=5,memory=512` and the like. Raises ConfigError for another name or a bad
    argument, MissingExtra for `math` without its library.
    """
    name, _, argument = spec.partition(":")
    verifier = VERIFIERS[name](argument) if name in VERIFIERS else None
    if verifier is None:
        forms = "exact:REGEX (one group, the answer), math, choice, choice:LETTERS or code:OPTIONS"
        hint = "" if name in VERIFIERS else did_you_mean(name, VERIFIERS)
        own = "one of your own is known once its module is named (imports, pts --import)"
        raise ConfigError(f"no verifier {spec!r}{hint}; give {forms}; {own}")
    return verifier


def _exact(argument: str) -> Verifier | None:
    return ExactVerifier(argument, as_written) if argument else None


def _math(argument: str) -> Verifier | None:
    from pts.verifiers.math.verifier import MathVerifier

    return None if argument else MathVerifier()


def _choice(argument: str) -> Verifier | None:
    return ChoiceVerifier(argument or "ABCD")


def _code(argument: str) -> Verifier | None:
    """Raises ConfigError with every fault of the options."""
    from pts.verifiers.code.verifier import CodeVerifier

    values: dict[str, Any] = {}
    faults = []
    for part in filter(None, (part.strip() for part in argument.split(","))):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in CODE_OPTIONS:
            hint = did_you_mean(key, CODE_OPTIONS) or f"; it has {', '.join(CODE_OPTIONS)}"
            faults.append(f"code: no option {key!r}{hint}")
        elif not value:
            faults.append(f"code: option {key!r} needs a value, e.g. code:timeout=5,memory=512")
        elif key in values:
            faults.append(f"code: option {key!r} is given twice")
        else:
            try:
                values[key] = CODE_OPTIONS[key](value)
            except ValueError:
                kind = "a whole number" if key == "memory" else "a number"
                faults.append(f"code: {key} must be {kind}, got {value!r}")
    if faults:
        raise ConfigError(*faults)
    return CodeVerifier(**values)


VERIFIERS: dict[str, Callable[[str], Verifier | None]] = {
    "exact": _exact,
    "math": _math,
    "choice": _choice,
    "code": _code,
}
"""What makes a verifier of the text behind the colon (empty without one), by name; None where the
text does not fit. One of your own joins by one line: `VERIFIERS["mine"] = make`."""


class ReferenceCheck:
    """Tells why a verifier cannot read a reference; counts those that no answer can match."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._seen = 0
        self._unmatched: list[str] = []

    def __call__(self, problem: Problem) -> str | None:
        """The fault of a problem's reference, found by judging an empty completion."""
        self._seen += 1
        said = self._verifier(problem, "")
        if said.verdict is Verdict.UNSCORED:
            return said.reason
        exact = self._verifier
        if isinstance(exact, ExactVerifier) and not exact.can_match(problem.reference):
            self._unmatched.append(f"{problem.id}: {problem.reference[:40]!r}")
        return None

    def warn(self) -> None:
        """Log how many references no answer can match, with the first of them."""
        if self._unmatched:
            _log.warning(
                "the verifier's pattern cannot spell %s of %s references, so that no answer to "
                "them is right: %s; change the pattern's group or the references",
                f"{len(self._unmatched):,}",
                f"{self._seen:,}",
                ", ".join(self._unmatched[:3]),
            )
