"""The `align` command: fast help, errors without tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import pts
from align.pipeline.recipe import load_recipe
from align.tasks.registry import build_task
from tests.align import sweeps


def align(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "align.cli", *words], capture_output=True, text=True, check=False
    )


def test_check_says_ok() -> None:
    done = align("check", "phi-nano", "seed=3")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "phi-nano: ok; stages sft > rejection_sft > pts > token_dpo > full_dpo\n"


@pytest.mark.parametrize("command", ["check", "run"])
def test_wrong_recipe_is_told_in_full_without_a_traceback(command: str) -> None:
    done = align(command, "phi-nano", "sedd=1", "pts.search.p_gap=2")
    assert done.returncode == 2
    assert done.stderr.startswith("2 errors:\n")
    assert "did you mean 'seed'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_faults_are_no_json() -> None:
    done = align("check", "phi-nano", "sedd=1", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean 'seed'?" in done.stderr


def test_report_of_a_folder_without_a_run() -> None:
    done = align("report", "/nowhere")
    assert done.returncode == 2
    assert "/nowhere/manifest.json: not found; give the folder of a run" in done.stderr


def test_check_loads_no_torch() -> None:
    code = (
        "import sys; from align.pipeline.check import check_recipe;"
        "from align.pipeline.recipe import load_recipe;"
        "check_recipe(load_recipe('phi-nano')); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_problems_of_a_recipe_are_written_for_a_search(tmp_path: Path) -> None:
    file = tmp_path / "new" / "problems.jsonl"
    done = align("problems", "phi-nano", "seed=3", f"--output={file}", "--count=5")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{file}: 5 dev problems of phi-nano, seed 3\n"
    asked = build_task(load_recipe("phi-nano").task).problems("dev", 5, 3)
    read = list(pts.load_problems(file, chat=True))
    assert [(p.id, p.prompt, p.reference) for p in read] == [
        (p.id, p.prompt, p.reference) for p in asked
    ]


def test_an_unknown_split_is_told(tmp_path: Path) -> None:
    done = align("problems", "phi-nano", f"--output={tmp_path}/p.jsonl", "--split=tset")
    assert done.returncode == 2
    assert "split: 'tset' is none; did you mean 'test'?" in done.stderr


def own_recipe(folder: Path) -> Path:
    """A recipe on files, with a test split alone."""
    chat = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    (folder / "chats.jsonl").write_text(json.dumps({"messages": chat}))
    row = {"id": "a", "prompt": "2+3?", "reference": "5"}
    (folder / "test.jsonl").write_text(json.dumps(row))
    task = {
        "kind": "files",
        "problems": {"test": str(folder / "test.jsonl")},
        "chats": str(folder / "chats.jsonl"),
        "verifier": "exact:(5)",
    }
    data = {"name": "own", "model": {"path": "builtin:phi-nano"}, "task": task}
    (folder / "own.yaml").write_text(json.dumps(data))
    return folder / "own.yaml"


def test_problems_of_an_absent_split_are_an_error(tmp_path: Path) -> None:
    done = align("problems", str(own_recipe(tmp_path)), f"--output={tmp_path}/p.jsonl")
    assert done.returncode == 2
    assert "task.problems: no 'dev' problems; name a file" in done.stderr
    assert not (tmp_path / "p.jsonl").exists()


def test_problems_are_not_written_over_a_folder(tmp_path: Path) -> None:
    done = align("problems", "phi-nano", f"--output={tmp_path}")
    assert done.returncode == 2
    assert f"--output: {tmp_path} cannot be written: Is a directory" in done.stderr


@pytest.mark.parametrize("command", ["eval", "report", "chat"])
@pytest.mark.parametrize("content", ["[]", '{"stages": {"sft": {}}}'])
def test_a_damaged_manifest_is_told(tmp_path: Path, command: str, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    done = align(command, str(tmp_path))
    assert done.returncode == 2
    assert f"{tmp_path}/manifest.json: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_sweep_says_what_is_left_without_touching_anything(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(sweeps.FILE)
    words = ("sweep", f"{tmp_path}/sweep.yaml", f"--output={tmp_path}/out", "--status")
    done = align(*words, "--seeds=0,7")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "8 of 8 cells are left",
        "seed 0: start, pairs, rejection, chain",
        "seed 7: start, pairs, rejection, chain",
    ]
    told = json.loads(align(*words, "--seeds=7", "--json").stdout)
    left = [f"{arm}-seed7" for arm in ("start", "pairs", "rejection", "chain")]
    assert told == {"cells": 4, "left": left}
    assert not (tmp_path / "out").exists()
    wrong = align(*words, "rejection.smples=2")
    assert wrong.returncode == 2
    assert "rejection.smples: no such key; did you mean 'samples'?" in wrong.stderr
