"""The main job end to end on the shipped base model: small, but every stage is the real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from align.context import StageResult
from align.errors import ManifestError
from align.pipeline.background import BackgroundWorker
from align.pipeline.recipe import load_recipe, parse_recipe
from align.pipeline.run import PipelineRun
from align.run_folder import Manifest

SMALL = [
    "sft.num_examples=1600",
    "pts.num_problems=24",
    "full_dpo.num_problems=48",
    "evaluate.problems=60",
    "evaluate.samples=2",
    "token_dpo.max_steps=4",
    "token_dpo.save_steps=2",
    "full_dpo.max_steps=4",
    "sft.save_steps=20",
]
STAGES = ["base", "sft", "token_dpo", "full_dpo"]


def command(folder: Path) -> list[str]:
    words = ["run", "phi-nano", *SMALL, f"--output={folder}", "--quiet"]
    return [sys.executable, "-m", "align.cli", *words]


def weights(folder: Path) -> dict[str, bytes]:
    """Bytes of all policies that a run made."""
    return {
        stage: (folder / stage / "model" / "model.safetensors").read_bytes() for stage in STAGES[1:]
    }


def killed(folder: Path, seconds: float) -> None:
    """Start the run and kill all of it after a while."""
    run = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, start_new_session=True)
    time.sleep(seconds)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    calm, torn = tmp_path / "calm", tmp_path / "torn"
    subprocess.run(command(calm), check=True)
    for seconds in (20, 35, 30, 25):
        killed(torn, seconds)
    subprocess.run(command(torn), check=True)
    assert weights(calm) == weights(torn)
    assert (calm / "pts" / "pairs.jsonl").read_bytes() == (
        torn / "pts" / "pairs.jsonl"
    ).read_bytes()
    tables = [json.loads((folder / "table.json").read_text()) for folder in (calm, torn)]
    assert tables[0] == tables[1]
    assert (torn / "report.html").is_file()


@pytest.mark.slow
def test_a_finished_run_repeated_does_nothing(tmp_path: Path) -> None:
    words = [*command(tmp_path), "stages=[]"]
    subprocess.run(words, check=True)
    before = (tmp_path / "manifest.json").stat().st_mtime_ns
    again = subprocess.run(words, check=True, capture_output=True, text=True)
    assert "eval/base: done before, kept" in again.stdout
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == before


def test_another_problem_file_is_another_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path stays the same; what was measured on the old content does not stand for the new."""
    rows = {
        "test": [{"id": str(k), "prompt": f"{k}+1", "reference": str(k + 1)} for k in range(3)],
        "chats": [{"messages": [{"role": r, "content": "1"} for r in ("user", "assistant")]}],
    }
    for name, content in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    task = {
        "kind": "files",
        "problems": {"test": str(tmp_path / "test.jsonl")},
        "verifier": "exact:(1)",
    }
    recipe = parse_recipe(
        {
            "name": "n",
            "model": {"path": "x"},
            "task": {**task, "chats": str(tmp_path / "chats.jsonl")},
        },
        "test",
    )
    made = StageResult(None), 0.1
    monkeypatch.setattr("align.pipeline.run.run_evaluation", lambda *_: made)

    def evaluate() -> str:
        console = Console(record=True, width=200)
        with Manifest.open(tmp_path / "run", recipe) as manifest:
            chain = PipelineRun(
                recipe, manifest, BackgroundWorker(parallel=False), console, progress=False
            )
            chain.evaluate("base", tmp_path / "model", before=None)
            chain._settle(wait=True)
        return console.export_text()

    evaluate()
    assert "eval/base: done before, kept" in evaluate()
    (tmp_path / "test.jsonl").write_text(json.dumps(rows["test"][0]) + "\n")
    with pytest.raises(
        ManifestError, match=r"'eval/base' was made with other settings: task\.test"
    ):
        evaluate()


def test_a_run_that_measures_nothing_says_so(tmp_path: Path) -> None:
    recipe = load_recipe("phi-nano", ['evaluate.skip=["base"]', "stages=[]"])
    console = Console(record=True, width=200)
    with Manifest.open(tmp_path, recipe) as manifest, BackgroundWorker(parallel=False) as worker:
        PipelineRun(recipe, manifest, worker, console, progress=False).table()
    assert "no table: evaluate.skip names every policy" in console.export_text()
    assert not (tmp_path / "table.json").exists()
