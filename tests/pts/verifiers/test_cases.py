"""Answers as people and models write them, after public reports (`source`), with their verdicts.

Where a verdict is a decision and not a fact, the case says why.
"""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pts.types import Problem
from pts.verifiers.base import Verifier
from pts.verifiers.registry import make_verifier

SPECS = {"choice": "choice", "math": "math", "code": "code:timeout=2"}
CASES = [
    pytest.param(kind, json.loads(line), id=f"{kind}-{json.loads(line)['id']}")
    for kind in SPECS
    for line in (Path(__file__).parent / "cases" / f"{kind}.jsonl").read_text().splitlines()
]


@cache
def verifier(kind: str) -> Verifier:
    return make_verifier(SPECS[kind])


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_case(kind: str, case: dict[str, Any]) -> None:
    if kind == "math" and importlib.util.find_spec("math_verify") is None:
        pytest.skip("math-verify is not installed")
    problem = Problem(case["id"], "", case["reference"], case.get("metadata", {}))
    grade = verifier(kind)(problem, case["completion"])
    assert grade.verdict == case["expected"], f"{grade} {case.get('why', '')}"
