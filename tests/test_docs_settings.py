"""The figures of docs/choosing-settings.md that can be derived are derived here."""

from __future__ import annotations

import importlib
import math
from types import ModuleType

import pytest

from pts.algorithm.branch import MIN_BRANCHES
from pts.algorithm.siblings import SCREENING_MOST, SCREENING_SHARE
from pts.config import SearchConfig
from tests.test_docs import ROOT

PAGE = ROOT / "docs" / "choosing-settings.md"


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("build_settings")


def said() -> str:
    return " ".join(PAGE.read_text(encoding="utf-8").split())


@pytest.mark.parametrize("name", ["filtered", "confirmed"])
def test_exact_tables_are_up_to_date(build: ModuleType, name: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"<!-- built: {name} -->\n\n{build.table(build.TABLES[name]())}\n" in text


def test_kept_by_hand(build: ModuleType) -> None:
    # Two rollouts: kept with one pass of two (0.5), as 0 and 1 lie outside [0.2, 0.8].
    assert build.kept(0.3, 2) == pytest.approx(2 * 0.3 * 0.7)
    # Sixteen: the saving that the page states, ten rollouts times P(the first six are equal).
    for p, saved in ((0.0, "10"), (0.05, "7.4"), (0.1, "5.3")):
        assert 16 - build.drawn(p, 16) == pytest.approx(10 * (p**6 + (1 - p) ** 6))
        assert f"{16 - build.drawn(p, 16):.1f}".removesuffix(".0") == saved
    assert "saves 10 where `p` is 0 or 1, 7.4 at 0.05 and 0.95, and 5.3 at 0.1 and 0.9" in said()
    assert build.kept(0.2, 16) == pytest.approx(build.kept(0.8, 16))


def test_arithmetic_of_the_worked_example() -> None:
    config, kept, proposed, confirmed = SearchConfig(), 36, 102, 100
    spent = 698 + 4845 + 5008
    bound = 48 * 16 + kept * (
        config.paths * config.max_rollouts + 2 * config.max_pairs * config.confirm_rollouts
    )
    shares = f"{kept / 48:.2f} · {proposed / kept:.2f} · {confirmed / proposed:.2f}"
    assert f"48 · {shares} = {confirmed}` pairs for {spent:,} rollouts" in said()
    assert f"{spent / confirmed:.0f} a pair; the bound above says {round(bound, -2):,}" in said()
    assert spent - 4845 - 5008 == 41 * config.filter_rollouts + 7 * 6, "7 stopped after six"


def test_branches_to_a_decision() -> None:
    config, q, d = SearchConfig(), 0.6, 0.2
    at_gap, above = (
        (config.z * (1 - q)) ** 2
        * d
        * (1 - d)
        / (delta - config.p_gap + config.indifference_margin) ** 2
        for delta in (0.2, 0.3)
    )
    assert f"these are {at_gap:.0f} at Δ = 0.2 and {above:.0f} at Δ = 0.3" in said()
    margin = f"`indifference_margin = {config.indifference_margin}`"
    assert f"`z = {config.z}`, `p_gap = {config.p_gap}` and {margin}" in said()
    assert f"fewer than {MIN_BRANCHES} branches" in said()
    assert math.isclose(SCREENING_SHARE, 0.25)
    assert f"A quarter of `max_rollouts`, {SCREENING_MOST} at most" in said()
