"""How often the interval of `pts plan` holds what a finished search really took.

    python benchmarks/plan_coverage.py runs/phi-nano-seed0/pts

Probes are drawn at random from the questions of a finished search, and the forecast of each for
all questions is compared with their true totals. The questions that a probe holds are part of the
total, as in `pts plan`. Not measured here: the forecast of hours, which depends on the machine too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pts.planning.forecast import forecast
from pts.runtime.results import read_records

WHAT = ("rollouts", "tokens", "pairs proposed")


def main() -> None:
    """Print coverage and relative width of the intervals by size of the probe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a finished search")
    parser.add_argument("--probes", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    costs = questions(options.run / "results.jsonl")
    totals, rng = costs.sum(axis=0), np.random.default_rng(0)
    print(f"{len(costs)} questions, {options.draws} probes of each size")
    for size in options.probes:
        drawn = (rng.permutation(len(costs))[:size] for _ in range(options.draws))
        found = [forecast(costs[rows].tolist(), len(costs)) for rows in drawn]
        for k, name in enumerate(WHAT):
            held = np.mean([f[k].low <= totals[k] <= f[k].high for f in found])
            width = np.mean([(f[k].high - f[k].low) / totals[k] for f in found])
            print(f"probe of {size}: {name}: held {held:.3f}, mean width {width:.2f} of the total")


def questions(path: Path) -> np.ndarray:
    """What each question took, shape [questions, len(WHAT)]."""
    rows = []
    for record in read_records(path):
        spent = record.result.cost.values()
        pairs = sum(len(path.pairs) for path in record.result.paths)
        rows.append([sum(c.rollouts for c in spent), sum(c.tokens for c in spent), pairs])
    return np.array(rows, dtype=np.float64)


if __name__ == "__main__":
    main()
