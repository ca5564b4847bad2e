"""Which sandboxes this machine allows, for the tests of the code verifier."""

from __future__ import annotations

from functools import cache

import pytest

from pts.errors import ConfigError
from pts.verifiers.code.sandbox import Isolation
from pts.verifiers.code.verifier import CodeVerifier


@cache
def refusal(isolation: Isolation) -> str:
    """Why this machine cannot isolate so; empty when it can."""
    try:
        CodeVerifier(isolation=isolation).close()
    except ConfigError as error:
        return str(error)
    return ""


def make(isolation: Isolation, timeout: float = 5.0, memory: int = 512) -> CodeVerifier:
    """The verifier; skips the test where this isolation does not work."""
    if refusal(isolation):
        pytest.skip(refusal(isolation))
    return CodeVerifier(timeout, memory, isolation)


def available() -> Isolation:
    """The strongest isolation there is; skips the test where there is none."""
    return "landlock" if refusal("bwrap") else make("bwrap").isolation
