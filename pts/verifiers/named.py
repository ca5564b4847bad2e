"""Verifiers by name, as recipes and command lines give them."""

from __future__ import annotations

from pts.errors import ConfigError, did_you_mean
from pts.verifiers.base import Verifier
from pts.verifiers.choice import ChoiceVerifier
from pts.verifiers.exact import ExactVerifier, as_integer

NAMES = ("exact", "math", "choice")


def as_written(answer: str) -> str:
    """Whole numbers in canonical spelling, other answers as they are."""
    try:
        return as_integer(answer)
    except ValueError:
        return answer.strip()


def make_verifier(spec: str) -> Verifier:
    """The verifier of `exact:REGEX`, `math`, `choice` or `choice:LETTERS`.

    Raises ConfigError for another name or a bad argument, MissingExtra for `math` without its
    library.
    """
    name, _, argument = spec.partition(":")
    if name == "exact" and argument:
        return ExactVerifier(argument, as_written)
    if name == "math" and not argument:
        from pts.verifiers.math import MathVerifier

        return MathVerifier()
    if name == "choice":
        return ChoiceVerifier(argument or "ABCD")
    forms = "exact:REGEX (one group, the answer), math, choice or choice:LETTERS"
    raise ConfigError(f"no verifier {spec!r}{did_you_mean(name, NAMES)}; give {forms}")
