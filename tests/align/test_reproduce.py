"""A run made again is equal on the same machine; what was planted is found, named and explained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner, Result

from align.cli import app
from align.errors import RecipeError
from align.pipeline.recipe import load_recipe
from align.pipeline.reproduce import compare, made_so_far
from align.pipeline.run import run, run_recipe
from tests.align import tiny


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of two small stages, run once."""
    folder = tmp_path_factory.mktemp("chain")
    problems = [{"id": str(k), "prompt": f"{k}+1", "reference": str(k + 1)} for k in range(10)]
    chats = [
        {"messages": [{"role": "user", "content": f"{k}"}, {"role": "assistant", "content": "=2"}]}
        for k in range(8)
    ]
    data = {
        "name": "mini",
        "model": {"path": str(tiny.save(folder / "base")), "device": "cpu", "few_shot_base": False},
        "task": {
            "kind": "files",
            "problems": {"test": write(folder / "test.jsonl", problems)},
            "chats": write(folder / "chats.jsonl", chats),
            "verifier": r"exact:(\d)",
        },
        "sampling": {"max_new_tokens": 4},
        "stages": ["sft", {"kind": "sft", "name": "more", "num_examples": 4}],
        "sft": {"num_examples": 8, "batch_size": 2},
        "evaluate": {"problems": 10, "samples": 2, "skip": ["base"], "temperatures": []},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data))
    recipe = load_recipe(str(folder / "recipe.yaml"), ["seed=5"])
    run(recipe, folder / "run", Console(quiet=True), progress=False)
    return folder


def again(made: Path, *words: object) -> Result:
    arguments = ["reproduce", str(made / "run"), "--quiet", "--json", *map(str, words)]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_on_the_same_machine_everything_is_equal(made: Path, tmp_path: Path) -> None:
    done = again(made, "--output", tmp_path / "new")
    told = json.loads(done.stdout)
    assert (done.exit_code, told["equal"], told["reasons"]) == (0, True, [])
    assert {s["name"] for s in told["stages"]} == {"sft", "eval/sft", "more", "eval/more"}
    assert tiny.same(made / "run" / "more" / "model", tmp_path / "new" / "more" / "model")
    # Finished stages are kept when it is told again.
    kept = again(made, "--output", tmp_path / "new")
    assert kept.exit_code == 0
    assert "more: done before, kept" in kept.stderr


def test_a_changed_data_file_is_named_where_it_tells(made: Path, tmp_path: Path) -> None:
    chats = made / "chats.jsonl"
    before = chats.read_text()
    chats.write_text(before.replace("=2", "=3"))
    try:
        done = again(made, "--stage", "sft", "--output", tmp_path / "new")
    finally:
        chats.write_text(before)
    told = json.loads(done.stdout)
    assert (done.exit_code, told["equal"]) == (1, False)
    stages = {stage["name"]: stage for stage in told["stages"]}
    assert list(stages) == ["sft", "eval/sft"]
    assert "sft/model" in stages["sft"]["files"]
    assert "final_loss" in stages["sft"]["figures"]
    assert told["reasons"][0].startswith("sft was given: task.chats: ")


def test_other_versions_are_named_as_a_reason(made: Path, tmp_path: Path) -> None:
    other = shutil.copytree(made / "run", tmp_path / "run")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["versions"]["torch"] = "1.0"
    manifest["stages"]["sft"]["metrics"]["final_loss"] = 0.5
    (other / "manifest.json").write_text(json.dumps(manifest))
    recipe = made_so_far(run_recipe(other), other, "sft")
    run(recipe, tmp_path / "new", Console(quiet=True), progress=False)
    found = compare(other, tmp_path / "new")
    assert [stage.name for stage in found.stages if not stage.equal] == ["sft"]
    assert "final_loss: 0.5 -> " in found.stages[0].figures
    assert any(reason.startswith("versions.torch: '1.0' -> ") for reason in found.reasons())
    assert "differs from" in found.to_text()


def test_what_cannot_be_made_again_is_told(made: Path) -> None:
    with pytest.raises(RecipeError, match="has no finished stage 'sfd'; did you mean 'sft'"):
        again(made, "--stage", "sfd")
    with pytest.raises(RecipeError, match="is the run itself; give another folder"):
        again(made, "--output", made / "run")
