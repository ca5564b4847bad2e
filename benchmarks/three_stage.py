"""The three stages and their control arms, on test problems that nobody can have tuned on.

    python benchmarks/three_stage.py --seeds 0-11 --jobs 2
    python benchmarks/three_stage.py --seeds 0-11 --status

The sweep itself is benchmarks/three_stage.yaml, and everything given here goes to `align sweep`.
The seed of the test problems is taken from the commit that is measured, which must hold the code as
it is; `--commit` continues a measurement after later commits, such as those that keep its cells.
The tables are copied to benchmarks/results when every cell is there.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SWEEP = ROOT / "benchmarks" / "three_stage.yaml"


def main() -> None:
    """Run what is missing; copy the tables of a whole measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commit", default="HEAD", help="commit that is measured")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "three_stage")
    parser.add_argument("--name", default="three_stage_sweep", help="name of the result files")
    options, others = parser.parse_known_args()
    commit = git("rev-parse", "--verify", f"{options.commit}^{{commit}}")
    if changed := git("diff", "--name-only", commit, "--", "align", "pts", str(SWEEP)):
        sys.exit(f"not the code of {commit[:7]}: {changed.split()[0]} differs; commit it first")
    seed = int(commit[:7], 16)
    command = [sys.executable, "-m", "align.cli", "sweep", str(SWEEP), f"evaluate.seed={seed}"]
    done = subprocess.run([*command, f"--output={options.output}", *others], check=False)
    table = options.output / "table.md"
    if done.returncode or "--status" in others or not table.exists():
        sys.exit(done.returncode)
    RESULTS.mkdir(exist_ok=True)
    head = f"Code and test problems of commit {commit} (evaluate.seed={seed}).\n\n"
    (RESULTS / f"{options.name}.md").write_text(head + table.read_text())
    for end, source in ((".json", "table.json"), (".svg", "gains.svg")):
        shutil.copy(options.output / source, RESULTS / f"{options.name}{end}")


def git(*words: str) -> str:
    """What a git command says."""
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
