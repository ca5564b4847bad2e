"""The grammar of `stages`: kinds, names, starts, shared problems; and a stage from outside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from align.context import StageContext, StageResult
from align.errors import RecipeError
from align.pipeline.recipe import ENTRY_KEYS, Recipe, parse_recipe
from align.stages import STAGES, Stage
from pts.config import Settings
from tests.align import tiny

CHAIN = """
name: chain
model: {path: x}
task: {kind: word_problems}
stages:
  - sft
  - {kind: rejection_sft, name: best_of_n, num_problems: 40}
  - pts
  - {kind: token_dpo, beta: 0.5}
  - {kind: pts, name: again, from: best_of_n, share: pts, search: {p_gap: 0.3}}
  - {kind: token_dpo, name: late, from: best_of_n, pairs: again}
  - {kind: full_dpo, name: other, from: sft}
pts: {num_problems: 32}
other: {samples: 4}
"""


def parsed(text: str = CHAIN, *overrides: str) -> Recipe:
    return parse_recipe(yaml.safe_load(text), "x.yaml", overrides)


def test_a_kind_may_stand_several_times() -> None:
    recipe = parsed()
    assert [(e.kind, e.name) for e in recipe.stages] == [
        ("sft", "sft"), ("rejection_sft", "best_of_n"), ("pts", "pts"), ("token_dpo", "token_dpo"),
        ("pts", "again"), ("token_dpo", "late"), ("full_dpo", "other"),
    ]  # fmt: skip
    assert recipe.settings("best_of_n").num_problems == 40
    assert recipe.settings("token_dpo").beta == 0.5
    assert (recipe.settings("pts").num_problems, recipe.settings("again").search.p_gap) == (32, 0.3)
    assert recipe.settings("other").samples == 4


def test_stages_start_from_the_last_policy_unless_they_say_otherwise() -> None:
    recipe = parsed()
    starts = {entry.name: recipe.start_of(entry) for entry in recipe.stages}
    assert starts == {
        "sft": "base", "best_of_n": "sft", "pts": "best_of_n", "token_dpo": "best_of_n",
        "again": "best_of_n", "late": "best_of_n", "other": "sft",
    }  # fmt: skip


def test_pairs_come_from_the_last_search_unless_one_is_named() -> None:
    recipe = parsed()
    sources = {e.name: recipe.pairs_of(e) for e in recipe.stages if e.kind == "token_dpo"}
    assert sources == {"token_dpo": "pts", "late": "again"}


@pytest.mark.parametrize(
    "stages",
    [
        "[sft, pts, {kind: rejection_sft, rollouts: pts}]",
        "[sft, pts, {kind: full_dpo, rollouts: pts, pairs_of: continuations}]",
        "[sft, pts, token_dpo, {kind: full_dpo, rollouts: pts, from: sft}]",
        "[sft, pts, token_dpo, {kind: full_dpo, rollouts: pts, strict: false}]",
        "[{kind: pts, search: {keep: right}}, {kind: rejection_sft, rollouts: pts}]",
    ],
)
def test_a_search_may_give_its_rollouts_to_any_training_stage(stages: str) -> None:
    text = f"{{name: n, model: {{path: x}}, task: {{kind: word_problems}}, stages: {stages}}}"
    recipe = parsed(text)
    taking = recipe.stages[-1]
    assert recipe.rollouts_of(taking) == "pts"
    assert recipe.draws(taking) == "nothing"
    assert [recipe.rollouts_of(entry) for entry in recipe.stages[:-1]].count("") == len(
        recipe.stages
    ) - 1


def test_overrides_go_by_the_name_of_a_stage() -> None:
    recipe = parsed(CHAIN, "again.search.p_gap=0.4", "other.beta=2", "sft.num_examples=7")
    assert recipe.settings("again").search.p_gap == 0.4
    assert recipe.settings("other").beta == 2
    assert recipe.settings("sft").num_examples == 7
    assert recipe.settings("pts").search.p_gap == 0.2


def test_the_short_form_stays() -> None:
    short = {"name": "n", "model": {"path": "x"}, "task": {"kind": "word_problems"}}
    recipe = parse_recipe({**short, "sft": {"num_examples": 3}}, "x")
    assert [e.name for e in recipe.stages] == ["sft", "pts", "token_dpo", "full_dpo"]
    assert recipe.settings("sft").num_examples == 3


def test_a_recipe_that_is_written_out_is_the_same_recipe() -> None:
    recipe = parsed(CHAIN, "rejection_sft.samples=3")
    again = parse_recipe(recipe.plain(), "manifest.json")
    assert again == recipe
    assert yaml.safe_load(yaml.safe_dump(recipe.plain())) == recipe.plain()


def test_labels_name_the_stage_where_its_kind_does_not() -> None:
    labels = parsed().labels()
    assert labels["base"] == "base"
    assert labels["sft"] == "SFT"
    assert labels["best_of_n"] == "rejection SFT (best_of_n)"
    assert labels["late"] == "+ token DPO (late)"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[sfd]", "stages.0: no kind of stage 'sfd'; did you mean 'sft'?"),
        ("[{name: x}]", "stages.0: no kind of stage None; known: sft, pts"),
        ("sft", "stages: a list of stages is needed, got 'sft'"),
        ("[{kind: sft, name: base}]", "'base' names something else; take another"),
        ("[{kind: sft, name: task}]", "'task' names something else; take another"),
        ("[{kind: sft, name: a/b}]", "stages.0.name: got 'a/b'; letters, digits"),
        ("[sft, {kind: sft, name: sft}]", "each name may stand once"),
        (
            "[sft, {kind: full_dpo, from: sfd}]",
            "full_dpo.from: no stage 'sfd' before this one; did",
        ),
        ("[{kind: full_dpo, from: sft}, sft]", "full_dpo.from: no stage 'sft' before this one"),
        ("[{kind: sft, share: x}]", "sft.share: no stage 'x' before this one"),
        ("[pts, token_dpo, {kind: sft, from: pts}]", "'pts' trains no policy to start from"),
        ("[sft, pts, {kind: token_dpo, pairs: sft}]", "token_dpo.pairs: 'sft' makes none"),
        (
            "[sft, pts, {kind: rejection_sft, rollouts: ptss}]",
            "rejection_sft.rollouts: no stage 'ptss' before this one; did you mean 'pts'",
        ),
        ("[{kind: rejection_sft, rollouts: pts}, pts, token_dpo]", "rollouts: no stage 'pts'"),
        ("[sft, {kind: rejection_sft, rollouts: sft}]", "rollouts: 'sft' is no search; name a pts"),
        ("[{kind: rejection_sft, rollouts: base}]", "rollouts: 'base' is no search; name a pts"),
        (
            "[{kind: pts, pairs_from: coin}, {kind: rejection_sft, rollouts: pts}]",
            "rejection_sft.rollouts: pts.pairs_from is a control arm, which keeps no rollouts",
        ),
        (
            "[{kind: pts, search: {keep: none}}, {kind: rejection_sft, rollouts: pts}]",
            "pts.search.keep: got 'none', but rejection_sft trains on its rollouts; set it to 'r",
        ),
        (
            "[{kind: pts, search: {keep: right}}, {kind: full_dpo, rollouts: pts}]",
            "pts.search.keep: got 'right', but full_dpo trains on its rollouts; set it to 'all'",
        ),
        (
            "[sft, pts, token_dpo, {kind: full_dpo, rollouts: pts}]",
            "full_dpo.rollouts: 'pts' sampled sft, and the reference is token_dpo; add from: sft,",
        ),
        ("[pts, {kind: rejection_sft, rollouts: pts, purposes: []}]", "rejection_sft.purposes: "),
        ("[{kind: sft, rows: 3}]", "sft.rows: no such key"),
        ("[{kind: sft, num_examples: 0}]", "sft.num_examples: got 0"),
        ("[{kind: pts, search: {p_gapp: 1}}, token_dpo]", "pts.search.p_gapp: no such key; did"),
    ],
)
def test_what_is_wrong_with_a_chain_is_told(stages: str, message: str) -> None:
    text = f"{{name: n, model: {{path: x}}, task: {{kind: word_problems}}, stages: {stages}}}"
    with pytest.raises(RecipeError) as caught:
        parsed(text)
    assert message in str(caught.value)
    assert all(problem.startswith("x.yaml: ") for problem in caught.value.problems)


def test_a_setting_is_told_once() -> None:
    with pytest.raises(RecipeError, match=r"best_of_n.num_problems: told in `stages` and in the"):
        parsed(CHAIN + "best_of_n: {num_problems: 3}\n")


def test_skipped_evaluations_name_stages() -> None:
    with pytest.raises(RecipeError, match=r"evaluate.skip: no stage 'othr'; did you mean 'other'"):
        parsed(CHAIN, "evaluate.skip=[othr]")
    assert parsed(CHAIN, "evaluate.skip=[other, base]").evaluate.skip == ("other", "base")


def test_two_stages_of_a_kind_draw_different_problems_unless_they_share() -> None:
    recipe = parsed()
    found = {e.name: context(recipe, e) for e in recipe.stages}
    assert found["pts"].problem_seed == found["again"].problem_seed
    assert found["pts"].seed("search") != found["again"].seed("search")
    assert found["token_dpo"].problem_seed != found["late"].problem_seed
    assert len({c.problem_seed for c in found.values()}) == len(found) - 1


def context(recipe: Recipe, entry: Any) -> StageContext:
    return StageContext(recipe, tiny.Sums(), entry, Path("x"), Path("y"))


def test_no_setting_has_the_name_of_a_key_of_an_entry() -> None:
    for stage in STAGES.values():
        assert not set(ENTRY_KEYS) & stage.config.model_fields.keys()


class CopyConfig(Settings):
    """A stage that trains nothing and leaves its start as its policy."""

    times: int = 1
    """How often."""


def copy(context: StageContext) -> StageResult:
    return StageResult(context.policy, {"times": context.settings.times})


@pytest.fixture
def registered() -> Iterator[None]:
    STAGES["copy"] = Stage(CopyConfig, copy, "copy", draws="nothing")
    yield
    del STAGES["copy"]


@pytest.mark.usefixtures("registered")
def test_a_stage_from_outside_is_one_function_and_one_line() -> None:
    text = (
        "{name: n, model: {path: x}, task: {kind: word_problems}, stages: [{kind: copy, times: 3}]}"
    )
    recipe = parsed(text)
    [entry] = recipe.stages
    result = STAGES[entry.kind].run(context(recipe, entry))
    assert result == StageResult(Path("x"), {"times": 3})


def test_continuations_follow_the_pairs_of_the_search_that_drew_them() -> None:
    stages = (
        "[sft, pts, {kind: pts, name: other, from: sft, pairs_from: uncertain}, "
        "{kind: token_dpo, pairs: other}, "
        "{kind: full_dpo, from: sft, rollouts: pts, pairs_of: continuations}]"
    )
    text = f"{{name: n, model: {{path: x}}, task: {{kind: word_problems}}, stages: {stages}}}"
    recipe = parsed(text)
    assert recipe.pairs_of(recipe.stages[-1]) == "pts"
