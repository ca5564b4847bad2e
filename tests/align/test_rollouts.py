"""Stages that train on the rollouts of a search: what they take, and that no engine is loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from align.data.preferences import read_preferences
from align.data.rollouts import collect_answers, right_answers_of
from align.errors import StageError
from align.pipeline.background import BackgroundWorker
from align.pipeline.run import PipelineRun
from align.run_folder import Manifest
from align.stages import full_dpo, pivotal_tokens, rejection_sft, sft
from pts.data.pairs import read_pairs
from pts.data.rollouts import read_rollouts
from pts.engines.digest import model_digest
from tests.align import tiny
from tests.align.test_sft import kill_at

SEARCH = {"filter_rollouts": 8, "confirm_rollouts": 12, "max_rollouts": 40, "fdr": 0.5}
SETTINGS: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-2, "save_steps": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that answers with one to five letters and then ends its turn."""
    folder = tmp_path_factory.mktemp("base")
    settings = {"num_examples": 320, "batch_size": 8, "learning_rate": 1e-2}
    made = tiny.context(tiny.save(folder / "raw"), folder / "sft", tiny.ParityTask(), sft=settings)
    result = sft.run(made)
    assert result.model is not None
    return result.model


@pytest.fixture(scope="module")
def searched(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pts")
    settings = {"num_problems": 8, "search": SEARCH}
    result = pivotal_tokens.run(tiny.context(base, folder, tiny.ParityTask(), pts=settings))
    assert folder / "rollouts.jsonl" in result.outputs
    assert result.metrics["rollouts_bytes"] == (folder / "rollouts.jsonl").stat().st_size
    return folder


@pytest.fixture(autouse=True)
def no_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    request.getfixturevalue("searched")  # the search itself needs one

    def loaded(*_: Any) -> None:
        pytest.fail("an engine was loaded")

    for stage in (rejection_sft, full_dpo):
        monkeypatch.setattr(stage, "load_engine", loaded)


def taking(base: Path, searched: Path, folder: Path, kind: str, **settings: Any) -> Any:
    made = tiny.context(
        base, folder, tiny.ParityTask(), pairs=searched / "pairs.jsonl", **{kind: settings}
    )
    return dataclasses.replace(made, rollouts=searched / "rollouts.jsonl")


def test_right_answers_are_rows_of_prompt_and_answer(searched: Path) -> None:
    found = right_answers_of(searched)
    expected = [(q.prompt_ids, ids) for q in read_rollouts(searched) for ids in q.answers()]
    assert [row.ids for row in found] == [(*prompt, *ids) for prompt, ids in expected]
    for row, (prompt, ids) in zip(found, expected, strict=True):
        assert row.mask == (0,) * len(prompt) + (1,) * len(ids)
    filtered = right_answers_of(searched, ["filter"])
    assert {row.ids for row in filtered} < {row.ids for row in found}


def test_duplicates_and_what_is_above_the_limit_are_counted(searched: Path) -> None:
    passed = sum(k.rollout.success for q in read_rollouts(searched) for k in q.rollouts)
    whole = collect_answers(searched)
    assert len(whole.rows) + whole.duplicates == passed
    assert whole.left_out == 0
    few = collect_answers(searched, max_per_question=2, seed=3)
    assert few.rows == collect_answers(searched, max_per_question=2, seed=3).rows
    assert len(few.rows) + few.left_out == len(whole.rows)
    assert few.questions == whole.questions <= 8
    assert len(few.rows) <= 2 * few.questions
    assert {row.ids for row in few.rows} <= {row.ids for row in whole.rows}


def test_wrong_answers_are_rows_where_all_are_asked_for(searched: Path) -> None:
    questions = [*read_rollouts(searched)]
    every = collect_answers(searched, outcomes=(True, False))
    expected = {
        (*q.prompt_ids, *ids)
        for q in questions
        for right in (True, False)
        for ids in q.answers(right)
    }
    assert {row.ids for row in every.rows} == expected
    assert len(every.rows) + every.duplicates == sum(len(q.rollouts) for q in questions)
    wrong = collect_answers(searched, outcomes=(False,))
    assert {row.ids for row in wrong.rows} < expected


@pytest.mark.parametrize("purposes", [["filter"], ["filter", "search", "confirm"]])
def test_rejection_sft_trains_on_a_search(
    base: Path, searched: Path, tmp_path: Path, purposes: Any
) -> None:
    asked = taking(
        base, searched, tmp_path, "rejection_sft", **SETTINGS, max_steps=2, purposes=purposes
    )
    metrics = rejection_sft.run(asked).metrics
    found = collect_answers(searched, purposes)
    assert metrics["rows"] + metrics["rows_other_stop"] == len(found.rows)
    assert metrics["questions"] == found.questions
    assert metrics["duplicates"] == found.duplicates
    assert metrics["generated_tokens"] == 0


def test_a_stage_that_is_killed_ends_with_the_same_weights(
    base: Path, searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "max_steps": 6, "max_per_question": 3}
    calm = rejection_sft.run(taking(base, searched, tmp_path / "calm", "rejection_sft", **settings))
    torn = taking(base, searched, tmp_path / "torn", "rejection_sft", **settings)
    kill_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        rejection_sft.run(torn)
    monkeypatch.undo()
    again = rejection_sft.run(torn)
    assert calm.model is not None
    assert again.model is not None
    assert tiny.same(again.model, calm.model)


def test_full_dpo_pairs_whole_answers_of_a_search(
    base: Path, searched: Path, tmp_path: Path
) -> None:
    asked = taking(
        base, searched, tmp_path, "full_dpo", **SETTINGS, max_steps=2, pairs_per_question=3
    )
    metrics = full_dpo.run(asked).metrics
    pairs = read_preferences(tmp_path / "pairs.jsonl")
    questions = {q.problem_id: q for q in read_rollouts(searched)}
    for pair in pairs:
        question = questions[pair.problem_id]
        assert pair.prompt_ids == question.prompt_ids
        assert pair.policy_digest == question.policy_digest
        assert pair.chosen_ids in question.answers()
        assert pair.rejected_ids in question.answers(right=False)
        cut = {k.completion for k in question.rollouts if k.rollout.truncated}
        assert pair.rejected_truncated == (pair.rejected_ids in cut)
    expected = (min(3, len(q.answers()), len(q.answers(False))) for q in questions.values())
    assert metrics["pairs"] == len(pairs) == sum(expected)
    assert metrics["generated_tokens"] == 0
    assert metrics["questions"] == 8


def test_full_dpo_pairs_continuations_of_the_confirmed_pairs(
    base: Path, searched: Path, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "max_steps": 2, "pairs_of": "continuations", "rollouts": "pts"}
    stages = {"stages": ["sft", "pts", "full_dpo"], "full_dpo": settings}
    made = tiny.context(base, tmp_path, tiny.ParityTask(), pairs=searched / "pairs.jsonl", **stages)
    asked = dataclasses.replace(made, rollouts=searched / "rollouts.jsonl")
    metrics = full_dpo.run(asked).metrics
    confirmed = read_pairs(searched / "pairs.jsonl")
    by_prompt = {pair.prompt_ids: pair for pair in confirmed}
    pairs = read_preferences(tmp_path / "pairs.jsonl")
    assert pairs
    assert metrics["pairs"] + metrics["pairs_without_continuations"] == len(confirmed)
    questions = {q.problem_id: q for q in read_rollouts(searched)}
    for made in pairs:
        token_pairs = [p for p in confirmed if p.prompt_ids == made.prompt_ids]
        assert (made.chosen_ids[0], made.rejected_ids[0]) in [
            (pair.chosen, pair.rejected) for pair in token_pairs
        ]
        question = questions[made.problem_id]
        prefix = made.prompt_ids[len(question.prompt_ids) :]
        assert by_prompt[made.prompt_ids].problem_id == made.problem_id
        assert (*prefix, *made.chosen_ids) in question.answers()
        assert (*prefix, *made.rejected_ids) in question.answers(right=False)


def test_rollouts_of_another_policy_are_refused_for_dpo(
    base: Path, searched: Path, tmp_path: Path
) -> None:
    other = tiny.save(tmp_path / "other", seed=4)
    asked = taking(other, searched, tmp_path / "run", "full_dpo", **SETTINGS, max_steps=1)
    with pytest.raises(StageError, match=r"another policy than the rollouts .*strict=false"):
        full_dpo.run(asked)
    loose = taking(
        other, searched, tmp_path / "loose", "full_dpo", **SETTINGS, max_steps=1, strict=False
    )
    with pytest.warns(UserWarning, match="another policy"):
        assert full_dpo.run(loose).metrics["pairs"] > 0


def test_no_right_answer_is_an_error_with_a_remedy(base: Path, tmp_path: Path) -> None:
    settings = {"num_problems": 2, "search": SEARCH}
    hopeless = tiny.context(base, tmp_path / "pts", tiny.NeverTask(), pts=settings)
    pivotal_tokens.run(hopeless)
    for kind, stage in (("rejection_sft", rejection_sft), ("full_dpo", full_dpo)):
        asked = taking(base, tmp_path / "pts", tmp_path / kind, kind, **SETTINGS)
        with pytest.raises(StageError, match=r"rollouts\.jsonl: .*take other purposes"):
            stage.run(asked)


def test_a_recipe_hands_the_rollouts_of_its_search_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [
        {"kind": "pts", "num_problems": 4, "search": SEARCH},
        {"kind": "rejection_sft", "rollouts": "pts", "max_steps": 2, **SETTINGS},
        {"kind": "full_dpo", "from": "base", "rollouts": "pts", "max_steps": 2, **SETTINGS},
    ]
    recipe = tiny.recipe(
        base, stages=stages, evaluate={"skip": ["base", "rejection_sft", "full_dpo"]}
    )
    monkeypatch.setattr("align.pipeline.run.build_task", lambda _: tiny.ParityTask())

    def chain() -> tuple[dict[str, Any], str]:
        console = Console(record=True, width=200)
        with Manifest.open(tmp_path / "run", recipe) as manifest:
            worker = BackgroundWorker(parallel=False)
            made = PipelineRun(recipe, manifest, worker, console, progress=False)
            made.begin(base)
            for entry in recipe.stages:
                made.stage(entry)
            return manifest.data["stages"], console.export_text()

    records, _ = chain()
    inputs = records["rejection_sft"]["inputs"]
    assert inputs["rollouts"] == records["pts"]["outputs"]["pts/rollouts.jsonl"]
    assert records["rejection_sft"]["metrics"]["generated_tokens"] == 0
    assert records["full_dpo"]["metrics"]["generated_tokens"] == 0

    digest = model_digest(base)
    assert digest in (tmp_path / "run" / "full_dpo" / "pairs.jsonl").read_text()
    _, said = chain()
    assert said.count("done before, kept") == 3
