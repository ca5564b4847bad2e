"""A small sweep of the shipped base model, every stage the real one, killed once and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

FILE = """
recipe: phi-nano
overrides:
  - sft.num_examples=1600
  - pts.num_problems=24
  - token_dpo.max_steps=4
  - evaluate.problems=60
  - evaluate.samples=2
stages:
  - sft
  - pts
  - token_dpo
  - {kind: rejection_sft, name: rejection, from: sft, match: [pts], learning_rate: 3.0e-4}
arms: {start: sft, pairs: token_dpo, rejection: rejection}
primary: [[rejection, pairs]]
contrasts: [[start, pairs]]
margin: 2
"""


def command(folder: Path, *more: str) -> list[str]:
    words = ["sweep", str(folder / "sweep.yaml"), "--seeds=0-1", f"--output={folder / 'out'}"]
    return [sys.executable, "-m", "align.cli", *words, *more]


def cells(folder: Path) -> dict[str, Any]:
    files = (folder / "out" / "cells").glob("*.json")
    return {path.stem: json.loads(path.read_text()) for path in files}


def killed_at_the_first_cell(folder: Path) -> None:
    """SIGKILL to the parent alone: its worker has to notice."""
    run = subprocess.Popen(command(folder), start_new_session=True)
    while not cells(folder) and run.poll() is None:
        time.sleep(0.2)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    time.sleep(3)
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_from_its_cells(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(FILE)
    killed_at_the_first_cell(tmp_path)
    first = cells(tmp_path)
    assert first
    status = subprocess.run(
        command(tmp_path, "--status"), capture_output=True, text=True, check=True
    )
    assert status.stdout.startswith(f"{6 - len(first)} of 6 cells are left; about ")
    subprocess.run(command(tmp_path, "--jobs=2", "--discard-models"), check=True)
    found = cells(tmp_path)
    assert {*found} == {f"{arm}-seed{n}" for arm in ("start", "pairs", "rejection") for n in (0, 1)}
    assert {name: found[name] for name in first} == first
    assert not (tmp_path / "out" / "runs" / "seed0").exists()
    for seed in (0, 1):
        of_pairs, of_rejection = (
            found[f"{arm}-seed{seed}"]["ledger"]["generated_tokens"]
            for arm in ("pairs", "rejection")
        )
        assert abs(of_rejection - of_pairs) <= 0.02 * of_pairs
    problems = [found[f"start-seed{seed}"]["measured"]["items"]["id"] for seed in (0, 1)]
    assert not {*problems[0]} & {*problems[1]}
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [row["found"]["over_seeds"]["df"] for row in table["contrasts"]] == [1] * 4
