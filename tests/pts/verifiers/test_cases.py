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
from pts.verifiers.registry import make_verifier

SPECS = {"choice": "choice", "math": "math", "code": "code:timeout=2"}
CASES = [
    pytest.param(kind, case, id=f"{kind}-{case['id']}")
    for kind in SPECS
    for file in sorted((Path(__file__).parent / "cases").glob(f"{kind}*.jsonl"))
    for case in map(json.loads, file.read_text().splitlines())
]


verifier = cache(make_verifier)


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_case(kind: str, case: dict[str, Any]) -> None:
    if kind == "math" and importlib.util.find_spec("math_verify") is None:
        pytest.skip("math-verify is not installed")
    problem = Problem(case["id"], "", case["reference"], case.get("metadata", {}))
    grade = verifier(case.get("verifier", SPECS[kind]))(problem, case["completion"])
    assert grade.verdict == case["expected"], f"{grade} {case.get('why', '')}"


@pytest.mark.parametrize("kind", ["choice", "math"])
def test_long_completions(kind: str) -> None:
    if kind == "math" and importlib.util.find_spec("math_verify") is None:
        pytest.skip("math-verify is not installed")
    reference = {"choice": "B", "math": "7"}[kind]
    judge, problem = verifier(SPECS[kind]), Problem("q1", "", reference)
    said = f"{'Let me see. ' * 5000}The answer is {reference}."
    assert judge(problem, said).verdict == "pass"
    assert judge(problem, f"<think>{said}").verdict == "fail", "it is still thinking"
    assert judge(problem, f"<think>{said}</think>").verdict == "pass"
    assert judge(problem, f"<think>{said}</think>I do not know.").verdict == "fail"
