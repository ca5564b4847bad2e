"""What a run writes, held against the files that an earlier version wrote.

`tabular/` holds three searches of four tabular machines. Nothing that a later version writes may
differ from them but for the number of the journal's format. They were first written by commit
30f5e2b, and again when confirmation became a test that stops early, which left all of them but the
confirmations as they were, and when the filter began to ask for its rollouts in two parts and to
tell them, which left every rollout as it was. Gaps and intervals of pairs.jsonl were written again
when these were corrected for the early stop and the selection; those of `branch` and `step` when
`branch` came to measure likely pivots first, which left that of `bisect` as it was.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pts.config import SamplingConfig, SearchConfig
from pts.engines.tabular import TabularEngine, TabularVerifier
from pts.runtime.journal import FORMAT
from pts.runtime.search import search
from pts.testing.shapes import SHAPES

RECORDED = Path(__file__).parent / "tabular"
ROUNDS: dict[str, Any] = {"round_rollouts": 8, "round_blocks": 2}
CONFIGS = {
    "branch": SearchConfig(max_rollouts=300, confirm_rollouts=24, **ROUNDS),
    "bisect": SearchConfig(
        method="bisect", bisect_rollouts=24, confirm_rollouts=24, max_rollouts=300, **ROUNDS
    ),
    "step": SearchConfig(unit="step", max_rollouts=200, **ROUNDS),
}
ADDED = {"keep", "t", "rollouts_bytes", "bytes_per_rollout", "stop_below", "reason"}
ADDED |= {"missing_shards"}
"""Keys that the recorded files lack: since then the ids of all rollouts are kept (in journal lines
as "t", in a file of their own), as the setting `keep` says, a search may stop when what is open is
unlikely to be pivotal, results say why a question was set aside, and runs may be merged of shards.
Told in CHANGELOG.md."""


@pytest.fixture(scope="module", params=CONFIGS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = ("sparse", "rare", "wandering", "calm")
    machines = [
        SHAPES[shape](
            np.random.default_rng(7 + i), **({} if shape == "wandering" else {"length": 24})
        ).machine
        for i, shape in enumerate(shapes)
    ]
    engine = TabularEngine(machines, SamplingConfig(max_new_tokens=64))
    folder: Path = tmp_path_factory.mktemp("golden") / request.param
    search(
        engine.problems(), engine, TabularVerifier(), CONFIGS[request.param],
        output=folder, seed=5, window=2, progress=False,
    )  # fmt: skip
    return folder


def without_added(value: Any) -> Any:
    """The value without the keys that recorded files lack."""
    if isinstance(value, dict):
        return {key: without_added(item) for key, item in value.items() if key not in ADDED}
    return [without_added(item) for item in value] if isinstance(value, list) else value


def lines(path: Path) -> list[Any]:
    """Values of a JSONL file, or the one of a JSON file."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]


@pytest.mark.parametrize(
    "name", ["journal.jsonl", "results.jsonl", "pairs.jsonl", "token_texts.json", "summary.json"]
)
def test_files_are_as_recorded(run: Path, name: str) -> None:
    recorded = lines(RECORDED / run.name / name)
    if name == "journal.jsonl":
        recorded[0]["format"] = FORMAT
    written = [without_added(value) for value in lines(run / name)]
    if name == "summary.json":
        written[0]["seconds"] = 0
    assert written == recorded
