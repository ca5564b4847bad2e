"""What docs/build_evidence.py says of a prediction, on differences that are written down here."""

from __future__ import annotations

import importlib
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from align.evaluation.seeds import compare_arms
from tests.test_docs import ROOT


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("build_evidence")


def world(**points: list[float]) -> Any:
    """Contrasts (`second_first`) by their seeds' differences in points; the problems agree."""

    def row(second: str, first: str) -> Any:
        gains = points[f"{second}_{first}"]
        before = [np.full(100, 0.5) for _ in gains]
        after = [np.full(100, 0.5 + gain / 100) for gain in gains]
        return SimpleNamespace(found=compare_arms(before, after, margin=0.01))

    return SimpleNamespace(row=row)


@pytest.mark.parametrize(
    ("prediction", "gains", "said"),
    [
        # Student's half-width of 9, 10, 11 is 4.303 / sqrt(3) = 2.48: [7.5, 12.5].
        ("5 or more", [9, 10, 11], "met"),
        ("5 or more", [1, 2, 3], "contradicted"),
        ("5 or more", [4, 6, 8], "open"),
        ("0 or above", [9, 10, 11], "met"),
        ("0 or above", [-11, -10, -9], "contradicted"),
        ("0 or below", [-11, -10, -9], "met"),
        ("0 or below", [9, 10, 11], "contradicted"),
        ("0 or below", [-1, 0, 1], "open"),
        ("within 1", [-11, -10, -9], "contradicted"),
        ("within 1", [-1, 0, 1], "open"),
        # The 90 % half-width of -d, 0, d is 2.920 d / sqrt(3), 0.84 here; the 95 % one is 1.24.
        ("within 1", [-0.5, 0, 0.5], "met"),
    ],
)
def test_a_prediction_is_judged_by_the_interval(
    build: ModuleType, prediction: str, gains: list[float], said: str
) -> None:
    assert build._judged(prediction, world(a_b=gains), ("a", "b")) == said


@pytest.mark.parametrize(
    ("chain", "said"),
    [([4, 5, 6], "met"), ([-6, -5, -4], "contradicted"), ([19, 20, 21], "contradicted"),
     ([-1, 0, 1], "open")],
)  # fmt: skip
def test_less_than_the_first_is_paired_by_seed(
    build: ModuleType, chain: list[float], said: str
) -> None:
    # `both` gains 10, 12, 11 over `rollouts`.
    found = world(both_rollouts=[10, 12, 11], chain_twice=chain)
    assert build._judged(build.LESS, found, ("chain", "twice")) == said
