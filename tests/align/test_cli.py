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
from tests.align.runs import write_run


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


def test_help_imports_no_settings_and_no_arrays() -> None:
    code = "import sys, align.cli; print({'numpy', 'pydantic', 'yaml'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


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


def test_a_table_is_written_again_but_not_over_other_files(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "cells").mkdir()
    (kept / "table.json").write_text('{"measure": 1}')
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a"}\n')
    for form in ("md", "json", "csv", "parquet"):
        words = ("table", str(run), f"--format={form}")
        for _ in range(2):
            done = align(*words, f"--output={tmp_path / form}")
            assert done.returncode == 0, done.stderr
        for file, said in (
            (run / "manifest.json", f"the run in {run} keeps a file of its own there"),
            (kept / "table.json", f"the sweep in {kept} keeps a file of its own there"),
            (rows, f"{rows} exists and holds no table as {form}; it is not written over"),
        ):
            before = file.read_bytes()
            done = align(*words, f"--output={file}")
            assert (done.returncode, file.read_bytes()) == (2, before)
            assert f"--output: {file}: {said}" in done.stderr


def test_a_page_of_data_is_not_written_over_rows(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    source = tmp_path / "source.jsonl"
    source.write_text(json.dumps({"messages": chat}) + "\n")
    before = source.read_bytes()
    sections = json.dumps([{"path": str(source)}])
    words = ("data", str(own_recipe(tmp_path)), "stages=[sft]", f"sft.sources={sections}")
    done = align(*words, f"--html={source}")
    assert (done.returncode, source.read_bytes()) == (2, before), done.stderr
    assert f"--html: {source}: {source} exists and holds no page" in done.stderr
    for _ in range(2):
        assert align(*words, f"--html={tmp_path}/data.html").returncode == 0


def test_an_export_is_public_only_where_it_is_pushed(tmp_path: Path) -> None:
    done = align("export", str(tmp_path), f"--output={tmp_path}/out", "--public")
    assert done.returncode == 2
    assert "--public: nothing is pushed; give --push OWNER/NAME, or leave it out" in done.stderr


def test_known_keys_are_those_of_the_kind_that_is_given() -> None:
    done = align("check", "phi-nano", "task={kind: word_problems, dataset: x}")
    assert "task.word_problems.dataset: no such key; known: kind, options\n" in done.stderr
    done = align("check", "phi-nano", "task={kind: reasoning_gym, dataset: x, instructoin: y}")
    assert "instructoin: no such key; did you mean 'instruction'?" in done.stderr
    done = align("check", "phi-nano", "engine={kind: transformers, urls: [x]}")
    assert "urls: no such key; known: kind, options\n" in done.stderr


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            "qkv_proj",
            "got 'qkv_proj'; input should be a valid tuple (a list): write [qkv_proj], or input "
            "should be 'all-linear'\n",
        ),
        ("all-liner", "or input should be 'all-linear'; did you mean 'all-linear'?\n"),
    ],
)
def test_text_where_a_list_is_wanted(value: str, said: str) -> None:
    done = align("check", "phi-nano", f"sft.lora={{target_modules: {value}}}")
    assert done.stderr.startswith("error:\n")
    assert "sft.lora.target_modules: got " in done.stderr
    assert said in done.stderr


def test_problems_are_written_again_but_not_over_other_files(tmp_path: Path) -> None:
    file, mine = tmp_path / "problems.jsonl", tmp_path / "recipe.yaml"
    for count in (3, 2):
        assert align("problems", "phi-nano", f"--output={file}", f"--count={count}").returncode == 0
    assert len(file.read_text().splitlines()) == 2
    mine.write_text("name: mine\n")
    done = align("problems", "phi-nano", f"--output={mine}")
    assert (done.returncode, mine.read_text()) == (2, "name: mine\n")
    assert f"--output: {mine}: {mine} exists and holds no problems" in done.stderr


def test_a_search_of_no_paths_is_a_fault_of_the_recipe() -> None:
    done = align("check", "phi-nano", "pts.search.paths=0")
    assert done.returncode == 2
    assert "pts.search: paths: got 0, which searches given completions alone" in done.stderr
