"""The picture of docs/evidence.md: what each arm of the pilot gained over the common start.

`python docs/build.py` writes it from the pilot's cells.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align.evaluation.statistics import paired_mean
from align.report.charts import gains, standalone

ROOT = Path(__file__).parent.parent
CELLS = ROOT / "benchmarks" / "results" / "worlds_pilot" / "cells"
TARGET = Path(__file__).parent / "pictures" / "pilot.svg"
ARMS = {
    "pairs": "50 confirmed pairs",
    "as-many": "50 pairs at uncertain places",
    "uncertain": "348 pairs at uncertain places",
    "rollouts": "the search's right answers",
    "again": "rejection sampling again",
    "twice": "the same, then full-length DPO",
}


def files() -> dict[Path, str]:
    """What `python docs/build.py` writes for this part."""
    rows = []
    start = _rates("start")
    for arm, label in ARMS.items():
        rows.append((label, paired_mean(start, _rates(arm)).difference))
    return {TARGET: standalone(gains(rows))}


def _rates(arm: str) -> list[float]:
    """Success rate of every problem at T = 0.7."""
    items: dict[str, Any] = json.loads((CELLS / f"{arm}-seed100.json").read_text())["measured"][
        "items"
    ]
    return [passed / n for passed, n in zip(items["passed"], items["samples"], strict=True)]
