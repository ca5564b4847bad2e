"""Trackers besides metrics.jsonl: what the trainers are told, and what is refused beforehand."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from align.errors import RecipeError
from align.pipeline.check import check_recipe
from align.pipeline.recipe import load_recipe
from align.stages import STAGES
from align.training import trackers
from align.training.trackers import reporting
from tests.align import tiny


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test puts into the environment is gone after it."""
    for name in ("MODE", "PROJECT", "SILENT", "DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.setattr("os.environ", os.environ.copy())


def test_a_tracker_is_told_its_run_and_a_folder_within_it(tmp_path: Path) -> None:
    context = tiny.context(tmp_path, tmp_path / "run" / "sft", track=["tensorboard", "wandb"])
    told = reporting(context)
    assert (told["report_to"], told["run_name"]) == (["tensorboard", "wandb"], "test-sft")
    tracking = tmp_path / "run" / "tracking"
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tracking / "tensorboard" / "sft")
    assert os.environ["WANDB_DIR"] == str(tracking)
    assert os.environ["WANDB_MODE"] == "offline"


def test_wandb_goes_online_where_the_user_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "WANDB_MODE", "online")
    reporting(tiny.context(tmp_path, tmp_path / "run" / "sft", track=["wandb"]))
    assert os.environ["WANDB_MODE"] == "online"


def test_rank_0_alone_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = tiny.context(tmp_path, tmp_path / "run" / "sft", track=["tensorboard"])
    monkeypatch.setattr(trackers, "rank", lambda: 1)
    assert reporting(context) == {"report_to": "none"}
    assert not (tmp_path / "run" / "tracking").exists()


def test_a_tracker_that_is_not_installed_is_told_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "trackio" else found(name)
    )
    with pytest.raises(RecipeError, match="track: 'trackio' is not installed; pip install trackio"):
        check_recipe(load_recipe("phi-nano", ["track=[trackio]"]))


def test_a_recipe_without_trackers_is_what_it_was() -> None:
    assert "track" not in load_recipe("phi-nano").plain()
    told = load_recipe("phi-nano", ["track=[wandb]"]).plain()
    assert told.pop("track") == ["wandb"]
    assert told == load_recipe("phi-nano").plain()


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)
def test_tensorboard_has_the_losses_of_metrics_jsonl(tmp_path: Path) -> None:
    import json

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    base = tiny.save(tmp_path / "base")
    sft = {"num_examples": 32, "batch_size": 4}
    context = tiny.context(base, tmp_path / "run" / "sft", track=["tensorboard"], sft=sft)
    STAGES["sft"].run(context)
    events = EventAccumulator(str(tmp_path / "run" / "tracking" / "tensorboard" / "sft"))
    events.Reload()
    lines = (context.folder / "metrics.jsonl").read_text().splitlines()
    losses = [(row["step"], row["loss"]) for row in map(json.loads, lines)]
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(step, pytest.approx(loss)) for step, loss in losses]
