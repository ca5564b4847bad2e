"""Memory is flat in the number of questions: a search, its resumption and its report."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .test_store import ROOT

SCRIPT = """
import resource, sys
from pathlib import Path
from pts.runtime.search import search
from pts.config import SamplingConfig, SearchConfig
from pts.engines.tabular import Arc, Machine, TabularEngine, TabularVerifier
from pts.report.page import write_report
from pts.types import Problem

folder, n = Path(sys.argv[1]), int(sys.argv[2])
right = lambda p: [Arc(1, p, -1), Arc(2, 1 - p, -1)]
machine = Machine([[Arc(3, 0.5, 1), Arc(4, 0.5, 2)], right(0.9), right(0.2)])
engine = TabularEngine([machine], SamplingConfig(max_new_tokens=8))
few = {"filter_rollouts": 4, "max_rollouts": 8, "confirm_rollouts": 4, "fork_rollouts": 2}
config = SearchConfig(**few, fdr=0.9)
problems = (Problem(f"question-{k}", "0", "right") for k in range(n))
run = search(problems, engine, TabularVerifier(), config, output=folder, progress=False)
write_report(folder)
assert sum(run.summary.questions.values()) == n
assert run.summary.proposed["path"] > n / 10
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(folder: Path, n: int) -> int:
    """Peak resident memory of a search of n questions and its report, in KiB (Linux)."""
    command = [sys.executable, "-c", SCRIPT, str(folder), str(n)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_six_times_the_questions_take_no_more_memory(tmp_path: Path) -> None:
    """Ids and offsets of 10,000 more questions are some 3 MB; 400 bytes more each would show."""
    few, many = peak(tmp_path / "few", 2000), peak(tmp_path / "many", 12_000)
    again = peak(tmp_path / "many", 12_000)
    assert many < 1.1 * few, (few, many)
    assert again < 1.1 * few, (few, again)
