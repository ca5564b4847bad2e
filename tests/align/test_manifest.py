"""The manifest: finished stages are kept, changed settings and changed files are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from align.circumstances import circumstances_of
from align.context import StageResult
from align.errors import ManifestError, RecipeError
from align.pipeline.recipe import load_recipe, parse_recipe
from align.pipeline.run import evaluate_again, fresh_seed
from align.run_folder import (
    Manifest,
    check_policies,
    data_digests,
    read_manifest,
    tree_digest,
)
from align.settings import FilesTask

RECIPE = load_recipe("phi-nano")


def finished(folder: Path) -> Path:
    """A run whose stage `sft` is done."""
    model = folder / "sft" / "model"
    with Manifest.open(folder, RECIPE) as manifest:
        model.mkdir(parents=True)
        (model / "weights").write_text("1")
        manifest.add("sft", {"a": {"b": 1}}, StageResult(model, {"rows": 3}, (model,)), 1.0)
    return model


def test_finished_stage_is_kept(tmp_path: Path) -> None:
    model = finished(tmp_path)
    with Manifest.open(tmp_path, RECIPE) as manifest:
        result = manifest.done("sft", {"a": {"b": 1}})
        assert manifest.done("pts", {}) is None
    assert result == StageResult(model, {"rows": 3}, (model,))


def test_other_settings_are_named(tmp_path: Path) -> None:
    finished(tmp_path)
    with (
        Manifest.open(tmp_path, RECIPE) as manifest,
        pytest.raises(ManifestError, match=r"a\.b: 1 -> 2"),
    ):
        manifest.done("sft", {"a": {"b": 2}})


def test_changed_output_is_refused(tmp_path: Path) -> None:
    model = finished(tmp_path)
    (model / "weights").write_text("2")
    with (
        Manifest.open(tmp_path, RECIPE) as manifest,
        pytest.raises(ManifestError, match="was changed since stage 'sft'"),
    ):
        manifest.done("sft", {"a": {"b": 1}})


def test_two_processes_on_one_folder_are_refused(tmp_path: Path) -> None:
    with (
        Manifest.open(tmp_path, RECIPE),
        pytest.raises(ManifestError, match="another process"),
        Manifest.open(tmp_path, RECIPE),
    ):
        raise AssertionError("the second one must not open")


def test_manifest_says_what_ran(tmp_path: Path) -> None:
    finished(tmp_path)
    data = json.loads((tmp_path / "manifest.json").read_text())
    assert data["recipe"]["name"] == "phi-nano"
    assert {"python", "torch", "transformers"} <= data["versions"].keys()
    assert {"commit", "changes"} == data["git"].keys()


def test_a_run_that_goes_on_elsewhere_keeps_what_made_its_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(tmp_path)
    first = read_manifest(tmp_path)
    with Manifest.open(tmp_path, RECIPE):
        pass
    assert read_manifest(tmp_path) == first
    monkeypatch.setattr("align.circumstances.versions", lambda: {"torch": "9.0"})
    for _ in range(2):
        with Manifest.open(tmp_path, RECIPE):
            pass
    told = read_manifest(tmp_path)
    [name] = first["stages"]
    assert told["versions"] == {"torch": "9.0"}
    assert [one["stages"] for one in told["earlier"]] == [[name]]
    assert circumstances_of(told, name) == circumstances_of(first, name)
    assert circumstances_of(told, "next")["versions"] == {"torch": "9.0"}


def test_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "a").write_text("1")
    first = tree_digest(folder)
    (folder / "a").rename(folder / "b")
    second = tree_digest(folder)
    (folder / "b").write_text("2")
    assert len({first, second, tree_digest(folder)}) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "must be an object, got list"),
        (b"{}", "has no object 'stages'"),
        (b'{"recipe": 1, "stages": {}}', "'recipe' must be an object, got int"),
        (b'{"stages": {"sft": 1}}', "the record of stage 'sft' has no keys"),
        (b'{"stages": {"sft": {"seconds": 1, "metrics": {}}}}', "has no sound 'model'"),
        (b"\xff", "not valid JSON"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path)


def test_a_record_without_its_inputs_is_refused(tmp_path: Path) -> None:
    record = {"seconds": 1, "metrics": {}, "model": None}
    (tmp_path / "manifest.json").write_text(json.dumps({"stages": {"sft": record}}))
    with (
        Manifest.open(tmp_path, RECIPE) as manifest,
        pytest.raises(ManifestError, match="stage 'sft' has no inputs and no outputs"),
    ):
        manifest.done("sft", {})


def test_a_file_is_no_folder_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "run"):
        with pytest.raises(ManifestError, match="cannot be the folder of a run"):
            Manifest.open(folder, RECIPE)


def test_digests_of_data_files_follow_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.jsonl").touch()
    task = FilesTask(kind="files", problems={"test": Path("~/t.jsonl")}, chats=Path("~/none"))
    assert data_digests(RECIPE.model_copy(update={"task": task})).keys() == {"task.test"}


def test_a_folder_of_another_command_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(ManifestError, match=r"it holds journal\.jsonl but no manifest\.json"):
        Manifest.open(tmp_path, load_recipe("phi-nano"))


def test_policies_that_were_changed_are_told(tmp_path: Path) -> None:
    model = tmp_path / "sft" / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    record = {"model": "sft/model", "outputs": {"sft/model": tree_digest(model)}}
    made = {"stages": {"sft": record, "eval/sft": {"outputs": {}}}}
    check_policies(tmp_path, made)
    (model / "config.json").write_text("{} ")
    with pytest.raises(ManifestError, match="was changed since stage 'sft' made it"):
        check_policies(tmp_path, made)
    shutil.rmtree(model)
    with pytest.raises(ManifestError, match="is gone or was changed"):
        check_policies(tmp_path, made)


def test_fresh_problems_have_a_seed_of_their_own(tmp_path: Path) -> None:
    with Manifest.open(tmp_path / "words", load_recipe("phi-nano")):
        pass
    drawn = {fresh_seed(tmp_path / "words") for _ in range(8)}
    assert len(drawn) == 8
    assert all(text.startswith("evaluate.seed=") for text in drawn)
    files = {
        "kind": "files",
        "problems": {"test": "t.jsonl"},
        "chats": "c.jsonl",
        "verifier": "math",
    }
    made = parse_recipe({**load_recipe("phi-nano").plain(), "task": files}, "files.yaml")
    with Manifest.open(tmp_path / "files", made):
        pass
    with pytest.raises(RecipeError, match=r"--fresh: the problems of .* are those of files"):
        fresh_seed(tmp_path / "files")


def test_overrides_without_effect_on_an_evaluation_are_refused(tmp_path: Path) -> None:
    with Manifest.open(tmp_path, load_recipe("phi-nano")):
        pass
    with pytest.raises(RecipeError, match=r"'sft\.num_examples=3': changes nothing"):
        evaluate_again(tmp_path, ["evaluate.seed=1", "sft.num_examples=3"], None, Console())
