"""The pictures and tables of docs/evidence.md: what each arm reached, world by world.

`python docs/build.py` writes them from the cells of the experiment and of its pilot, and from the
tables that `align sweep` made of these cells.
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
PAGE = Path(__file__).parent / "evidence.md"
BEGIN, END = "<!-- tables: made by docs/build.py -->", "<!-- end of tables -->"
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
CONTRASTS = (
    ("both", "rollouts"),
    ("chain", "twice"),
    ("pairs", "as-many"),
    ("pairs", "again"),
    ("pairs", "full"),
    ("pairs", "uncertain"),
    ("pairs", "coin"),
)
"""The first three are primary."""
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
        PAGE: _page(PAGE.read_text(encoding="utf-8")),
    }


def _page(text: str) -> str:
    """The page with its tables made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = {world: _table(world) for world in WORLDS}
    blocks = [
        _accuracies("sampled", "T = 0.7", tables),
        _accuracies("greedy", "greedy", tables),
        _costs(tables),
        _differences(tables),
    ]
    return before + "\n\n".join([BEGIN, *blocks, END]) + after


def _table(world: str) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((RESULTS / f"worlds_{world}" / "table.json").read_text())
    arms = {row["arm"]: row for row in table["arms"]}
    told = [len(row["seeds"]) for row in arms.values()]
    assert set(told) == {len(_finished(world))}, f"{world}: make its table again"
    contrasts = {tuple(r["arms"]): r for r in table["contrasts"] if r["measure"] == "sampled"}
    return {"seeds": told[0], "arms": arms, "contrasts": contrasts}


def _accuracies(measure: str, name: str, tables: dict[str, Any]) -> str:
    """Means over the seeds; the best arm of a world in bold."""
    arms = next(iter(tables.values()))["arms"]
    means = {
        world: {arm: 100 * row["means"][measure]["mean"] for arm, row in table["arms"].items()}
        for world, table in tables.items()
    }
    rows = []
    for arm in (arm for arm in arms if arm != "sft"):
        told = [(means[world][arm], max(means[world].values())) for world in tables]
        rows.append(
            [f"`{arm}`", *(f"**{x:.1f}**" if x == most else f"{x:.1f}" for x, most in told)]
        )
    heads = [f"{world} ({table['seeds']})" for world, table in tables.items()]
    return _markdown([f"{name}, %, mean of the seeds", *heads], rows)


def _costs(tables: dict[str, Any]) -> str:
    """Of the search and of what is matched to it: generated tokens from the start on."""
    rows = []
    for arm in ("start", "pairs", "chain", "uncertain"):
        spent = [table["arms"][arm]["ledger"]["generated_tokens"] for table in tables.values()]
        rows.append([f"`{arm}`", *(f"{tokens / 1000:,.0f}k" for tokens in spent)])
    return _markdown(["generated tokens from SFT on", *tables], rows)


def _differences(tables: dict[str, Any]) -> str:
    """Differences at T = 0.7 with their intervals over the seeds, and the seeds' own."""
    rows = []
    for second, first in CONTRASTS:
        cells = []
        for table in tables.values():
            row = table["contrasts"][first, second]
            own = [100 * one["difference"]["mean"] for one in row["found"]["per_seed"]]
            mean = sum(own) / len(own)
            text = f"**{mean:+.1f}**" if len(own) > 1 else f"{mean:+.1f}"
            if row["found"]["over_seeds"]:
                difference = row["found"]["over_seeds"]["difference"]
                text += " [{:+.1f}, {:+.1f}]".format(
                    *(100 * difference[bound] for bound in ("low", "high"))
                )
                text += "<br>" + ", ".join(f"{x:+.1f}" for x in own)
            if row["adjusted"] is not None:
                text += f"<br>p = {row['adjusted']:.3f}"
            cells.append(text.replace("-", "−"))
        rows.append([f"`{second}` − `{first}`", *cells])
    return _markdown(["points at T = 0.7", *tables], rows)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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
