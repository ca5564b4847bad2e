"""Brute force on a world: how often each manner of the deciding line is chosen, and passes.

    python benchmarks/worlds/check.py benchmarks/worlds/soft.yaml runs/soft/runs/seed100/start

samples 8 answers to each of 300 development problems from the policy that a stage made, and prints
a table. No world is trained on before it has the fork that it claims. Two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

from align.sweep.file import load_sweep
from align.tasks.registry import build_task
from align.tasks.word_problems.solutions import strategy_of, written_lines
from pts.engines.transformers.engine import TransformersEngine
from pts.runtime.sample import sample
from pts.stats import wilson

PROBLEMS, SAMPLES = 300, 8


def manner(text: str, steps: int, line: str | None) -> str:
    """Of the deciding line where a verdict is planted, of the whole solution elsewhere."""
    lines = written_lines(text)
    if line is None or not lines:
        return strategy_of(text, steps)
    return "careful" if lines[0 if line == "first" else -1][1] == ":" else "direct"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sweep", type=Path)
    parser.add_argument("stage", type=Path, help="folder of the stage that made the policy")
    args = parser.parse_args()
    recipe = load_sweep(args.sweep).recipe
    task = build_task(recipe.task)
    planted = task.config.planted  # type: ignore[attr-defined]
    engine = TransformersEngine.load(args.stage / "model", recipe.sampling)
    problems = task.problems("dev", PROBLEMS, 0)
    steps = {problem.id: int(str(problem.metadata["steps"])) for problem in problems}
    with tempfile.TemporaryDirectory() as folder:
        found = sample(problems, engine, task.verifier, n=SAMPLES, output=Path(folder) / "samples",
                       progress=False)  # fmt: skip
    chosen, passed, lengths, between = Counter[str](), Counter[str](), 0, 0
    for samples in found:
        for rollout in samples.rollouts:
            text = engine.decode(rollout.ids)
            key = manner(text, steps[samples.problem_id], planted and planted.line)
            chosen[key] += 1
            passed[key] += rollout.success
            lengths += len(rollout.ids)
        between += 0.2 <= sum(r.success for r in samples.rollouts) / SAMPLES <= 0.8
    total = chosen.total()
    table = {}
    for key, n in chosen.most_common():
        interval = wilson(passed[key], n)
        table[key] = {"share": n / total, "passed": interval.mean, "n": n}
        print(f"{key:12} share {n / total:6.1%}  passed {interval.mean:6.1%} "
              f"[{interval.low:.1%}, {interval.high:.1%}]  n {n}")  # fmt: skip
    print(f"{total} answers of {lengths / total:.0f} tokens; "
          f"{between / len(problems):.0%} of the questions between .2 and .8")  # fmt: skip
    print(json.dumps({"world": args.sweep.stem, "stage": args.stage.name, "manners": table,
                      "tokens": lengths / total, "between": between / len(problems)}))  # fmt: skip


if __name__ == "__main__":
    main()
