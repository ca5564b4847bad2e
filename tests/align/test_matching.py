"""Matching the generated tokens of other stages: sizes are decided while sampling."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from align.context import StageContext, StageEntry
from align.errors import RecipeError, StageError
from align.ledger import Ledger
from align.pipeline.recipe import parse_recipe
from align.stages.pivotal_tokens import PTSConfig
from align.stages.rejection_sft import RejectionSFTConfig
from align.stages.sampling import TOLERANCE, ask_problems
from align.sweep.table import ArmRow, _costs
from align.tasks.base import Split
from pts.types import Problem
from tests.align import tiny


class Few(tiny.Sums):
    """A task that has few problems, and draws them in another order for every number of them."""

    def __init__(self, size: int) -> None:
        self.every = super().problems("train", size, 0)

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        return random.Random(n).sample(self.every, min(n, len(self.every)))


def matching(budget: int, size: int = 3000) -> StageContext:
    entry = StageEntry("rejection_sft", "again", RejectionSFTConfig(match=("pts", "full_dpo")))
    recipe: Any = SimpleNamespace(seed=0)
    return StageContext(recipe, Few(size), entry, Path("x"), Path("y"), budget=budget)


class Asked:
    """Questions that cost what their ids say, and what was asked when."""

    def __init__(self, least: int = 20, most: int = 400) -> None:
        self.least, self.most = least, most
        self.calls: list[list[str]] = []

    def __call__(self, problems: list[Problem]) -> int:
        self.calls.append([problem.id for problem in problems])
        return sum(random.Random(p.id).randint(self.least, self.most) for p in problems)

    @property
    def spent(self) -> int:
        return sum(random.Random(i).randint(self.least, self.most) for i in self.calls[-1])


@pytest.mark.parametrize("budget", [10_500, 40_000, 300_000])
def test_the_budget_is_met_within_a_question(budget: int) -> None:
    ask = Asked()
    ask_problems(matching(budget), 5, ask)
    assert abs(ask.spent - budget) <= ask.most < 2 * TOLERANCE * budget
    for earlier, later in zip(ask.calls, ask.calls[1:], strict=False):
        assert later[: len(earlier)] == earlier
    assert len(set(ask.calls[-1])) == len(ask.calls[-1])
    again = Asked()
    ask_problems(matching(budget), 5, again)
    assert again.calls == ask.calls


def test_slices_are_few() -> None:
    ask = Asked()
    ask_problems(matching(500_000), 5, ask)
    assert len(ask.calls) < 40


def test_questions_that_cost_too_much_are_told() -> None:
    with pytest.raises(StageError, match=r"match: got .* more than 2% off; a question costs"):
        ask_problems(matching(1000), 5, Asked(700, 700))


def test_a_task_with_too_few_problems_is_told() -> None:
    with pytest.raises(StageError, match="left 10,000 generated tokens, and the task's"):
        ask_problems(matching(10_000, size=20), 5, Asked())


def test_nothing_to_match_is_told() -> None:
    with pytest.raises(StageError, match="pts and full_dpo left no generated tokens to match"):
        ask_problems(matching(0), 5, Asked())


@pytest.mark.parametrize(
    ("match", "message"),
    [
        ("[ptz]", "again.match: no stage 'ptz' before this one; did you mean 'pts'"),
        ("[late]", "again.match: no stage 'late' before this one"),
        ("[base]", "again.match: 'base' samples nothing; name a stage that does"),
        ("[pts, sft]", "again.match: 'sft' samples nothing; name a stage that does"),
        ("[pts], rollouts: pts", "again.match: its rollouts are there already; leave out match or"),
    ],
)
def test_what_is_wrong_with_a_match_is_told(match: str, message: str) -> None:
    text = f"""
{{name: n, model: {{path: x}}, task: {{kind: word_problems}}, stages: [sft, pts, token_dpo,
{{kind: rejection_sft, name: again, from: sft, match: {match}}}, {{kind: full_dpo, name: late}}]}}
"""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(yaml.safe_load(text), "x")
    assert message in str(caught.value)


def test_numbers_of_pairs_are_matched_exactly() -> None:
    """A pair from half of the questions: the last ones are asked one by one."""
    found: list[int] = []

    def ask(problems: list[Problem]) -> int:
        found.append(sum(random.Random(problem.id).random() < 0.5 for problem in problems))
        return found[-1]

    for budget in (1, 7, 219):
        context = matching(budget)
        settings = PTSConfig(pairs_from="coin", match=("pts",), match_by="pairs")
        entry = replace(context.entry, settings=settings)
        ask_problems(replace(context, entry=entry), 5, ask)
        assert found[-1] == budget


def test_pairs_of_a_search_are_no_target_while_it_runs() -> None:
    with pytest.raises(ValueError, match="pairs of a search are selected at its end"):
        PTSConfig(match=("pts",), match_by="pairs")


def test_ledgers_add_up() -> None:
    first = Ledger.of({"generated_tokens": 5, "trained_tokens": 2, "rows": 9})
    assert first + Ledger(1, 2, 3, 4) == Ledger(6, 2, 3, 6)


def test_costs_of_judges_are_shown_where_an_arm_has_any() -> None:
    plain = ArmRow("plain", (0,), {}, {}, Ledger(1, 2, 3, 4), {})
    own = ("generated tokens", "verifier calls", "questions", "trained tokens")
    assert _costs([plain]).header == ("", *own)
    judged = ArmRow(
        "judged", (0,), {}, {}, Ledger(1, 2, 3, 4, judge_calls=5, judge_tokens=6000), {}
    )
    table = _costs([plain, judged])
    assert table.header == ("", *own, "judge calls", "judge tokens")
    assert table.rows == (
        ("plain", "1", "2", "3", "4", "0", "0"),
        ("judged", "1", "2", "3", "4", "5", "6,000"),
    )
