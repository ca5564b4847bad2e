"""A small run folder, complete enough for a report: a real search, evaluations, metrics."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from align.pipeline.recipe import load_recipe
from pts.config import SamplingConfig, SearchConfig
from pts.engines.tabular import TabularEngine, TabularVerifier
from pts.runtime.search import search
from pts.testing.shapes import sparse
from pts.types import Estimate
from tests.align.evaluations import store

STAGES = {"base": 2, "sft": 24, "token_dpo": 32, "full_dpo": 34}
"""Greedy answers that are right, of 40."""


def write_run(folder: Path, question: str = "What is 2 + {}?", name: str = "tiny") -> Path:
    """Write everything but the report."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    kl = Estimate(0.02, 0.015, 0.025, 40, "ratio")
    for shift, (stage, right) in enumerate(STAGES.items()):
        # The problems that a stage solves are shifted by two, so that steps also lose some.
        greedy = [int((k - 2 * shift) % 40 < right) for k in range(40)]
        passed = [int(n) for n in rng.binomial(8, np.where(greedy, 0.8, 0.3))]
        store(folder, stage, greedy, passed, [float(v) for v in greedy], kl, question)
    for stage in ("sft", "token_dpo", "full_dpo"):
        _metrics(folder / stage)
    _search(folder / "pts")
    (folder / "manifest.json").write_text(json.dumps(_manifest(name)), encoding="utf-8")
    return folder


def _search(folder: Path) -> None:
    machines = [sparse(np.random.default_rng(seed), 30).machine for seed in range(3)]
    engine = TabularEngine(machines, SamplingConfig(max_new_tokens=48))
    search(engine.problems(), engine, TabularVerifier(), SearchConfig(), output=folder)


def _metrics(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    keys = {"token_dpo": ("prob_chosen", "prob_rejected", "prob_others")}
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, 61):
            shares = (0.4 + step / 150, 0.45 - step / 160, 0.15 - step / 2400)
            row = {"step": step, "loss": 0.7 * math.exp(-step / 30)}
            row.update(zip(keys.get(folder.name, ()), shares, strict=False))
            file.write(json.dumps(row) + "\n")
        file.write('{"step": 61, "lo')


def _manifest(name: str) -> dict[str, object]:
    metrics = {
        "sft": {"rows": 4800, "rows_too_long": 3},
        "pts": {"pairs": 212, "truncated_share": 0.001},
    }
    order = ["eval/base", "sft", "eval/sft", "pts", "token_dpo", "eval/token_dpo"]
    return {
        "recipe": {
            "name": name,
            "seed": 3,
            "model": {"path": "builtin:phi-nano"},
            "stages": [{"kind": n, "name": n} for n in ("sft", "pts", "token_dpo", "full_dpo")],
        },
        "labels": load_recipe("phi-nano").labels(),
        "git": {"commit": "0123456789abcdef", "changes": "yes"},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "stages": {
            stage: {"seconds": 61.5, "model": None, "metrics": metrics.get(stage, {"steps": 60})}
            for stage in [*order, "full_dpo", "eval/full_dpo"]
        },
    }
