"""The pictures of docs/evidence.md: what each arm gained over the common start, world by world.

`python docs/build.py` writes them from the cells of the experiment and of its pilot.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.evaluation.statistics import paired_mean
from align.report.charts import gains, gains_side_by_side, standalone
from pts.types import Estimate

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = Path(__file__).parent / "pictures"
WORLDS = {"soft": 6, "late": 6, "rare": 4, "even": 4, "fatal": 6}
"""The worlds and how many test seeds each is to have."""
ARMS = {
    "pairs": "confirmed pairs",
    "as-many": "as many uncertain pairs",
    "coin": "as many, by a coin",
    "rollouts": "the search's right answers",
    "both": "these, then the pairs",
    "again": "rejection sampling again",
    "full": "full-length DPO",
    "chain": "both, then full-length DPO",
    "twice": "again, then full-length DPO",
}
PILOT = {
    "pairs": "50 confirmed pairs",
    "as-many": "50 pairs at uncertain places",
    "uncertain": "348 pairs at uncertain places",
    "rollouts": "the search's right answers",
    "again": "rejection sampling again",
    "twice": "the same, then full-length DPO",
}


def files() -> dict[Path, str]:
    """What `python docs/build.py` writes for this part."""
    pilot = [(label, _gain("pilot", arm, [100])) for arm, label in PILOT.items()]
    panels = {}
    for world, planned in WORLDS.items():
        if seeds := _finished(world):
            rows = [(label, _gain(world, arm, seeds)) for arm, label in ARMS.items()]
            panels[f"{world} ({len(seeds)} of {planned} seeds)"] = rows
    return {
        PICTURES / "pilot.svg": standalone(gains(pilot)),
        PICTURES / "worlds.svg": standalone(gains_side_by_side(panels)),
    }


def _finished(world: str) -> list[int]:
    """The seeds whose every arm is there."""
    cells = RESULTS / f"worlds_{world}" / "cells"
    seeds = [int(path.stem.rpartition("seed")[2]) for path in cells.glob("start-seed*.json")]
    arms = ("start", *ARMS)
    return sorted(s for s in seeds if all((cells / f"{a}-seed{s}.json").exists() for a in arms))


def _gain(world: str, arm: str, seeds: Sequence[int]) -> Estimate:
    """`arm` less the start over all problems of the seeds; paired by problem."""
    start, rates = ([r for s in seeds for r in _rates(world, a, s)] for a in ("start", arm))
    return paired_mean(start, rates).difference


def _rates(world: str, arm: str, seed: int) -> list[float]:
    """Success rate of every problem at T = 0.7."""
    cell = RESULTS / f"worlds_{world}" / "cells" / f"{arm}-seed{seed}.json"
    items: dict[str, Any] = json.loads(cell.read_text())["measured"]["items"]
    return [passed / n for passed, n in zip(items["passed"], items["samples"], strict=True)]
