"""Training in two processes is training in one: the same losses, the same policy, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from align.context import StageContext, StageResult
from align.errors import RecipeError, StageError
from align.pipeline.check import check_recipe
from align.settings import LaunchConfig
from align.stages import STAGES
from align.training.monitors import METRICS
from align.training.ranks import outline, rank, world
from align.training.record import CHECKPOINTS
from align.training.sharding import sharding
from pts.data.pairs import write_pairs
from tests.align import tiny
from tests.align.test_token_dpo import token_pairs

SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"num_examples": 64, "batch_size": 4, "learning_rate": 1e-2},
    "token_dpo": {"epochs": 4, "batch_size": 3, "learning_rate": 1e-3, "strict": False},
    "full_dpo": {"num_problems": 12, "samples": 4, "batch_size": 1, "max_pairs": 8, "epochs": 2},
}
"""Rows of a step divide the rows of an epoch, so that none comes twice."""


def built(kind: type[tiny.Sums], config: Any) -> tiny.Sums:
    return kind()


def begun(base: Path, folder: Path, kind: str, launch: dict[str, Any], **more: Any) -> StageContext:
    """A stage with two forward passes a step, in one process or two."""
    pairs = folder.with_suffix(".jsonl")
    write_pairs(pairs, token_pairs("policy"))
    stages: dict[str, Any] = {kind: {**SETTINGS[kind], "gradient_accumulation": 2, **more}}
    context = tiny.context(base, folder, tiny.ParityTask(), pairs, launch=launch, **stages)
    return replace(context, build_task=partial(built, tiny.ParityTask))


def losses(folder: Path) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [(line["loss"], line["grad_norm"]) for line in lines]


def trained(base: Path, folder: Path, kind: str, launch: dict[str, Any], **more: Any) -> Any:
    result = STAGES[kind].run(begun(base, folder, kind, launch, **more))
    assert not (folder / CHECKPOINTS).exists()
    return result, losses(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that answers with one to five letters, so that some answers are right."""
    folder = tmp_path_factory.mktemp("base")
    raw = tiny.save(folder / "raw")
    made, _ = trained(raw, folder / "sft", "sft", {}, num_examples=320)
    assert made.model is not None
    return Path(made.model)


LORA = {"lora": {"r": 4}}
CASES = [
    ("token_dpo", "ddp", {}),
    pytest.param("full_dpo", "fsdp2", {}, marks=pytest.mark.slow),
    pytest.param("sft", "ddp", {}, marks=pytest.mark.slow),
    pytest.param("sft", "fsdp2", {}, marks=pytest.mark.slow),
    pytest.param("sft", "fsdp2", LORA, marks=pytest.mark.slow),
    pytest.param("full_dpo", "ddp", LORA, marks=pytest.mark.slow),
    pytest.param("token_dpo", "fsdp2", {}, marks=pytest.mark.slow),
    pytest.param("token_dpo", "fsdp2", LORA, marks=pytest.mark.slow),
]


@pytest.mark.filterwarnings("ignore:.*measured on another policy")
@pytest.mark.parametrize(("kind", "strategy", "more"), CASES)
def test_two_processes_make_the_losses_and_the_policy_of_one(
    kind: str, strategy: str, more: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    alone, expected = trained(base, tmp_path / "one", kind, {}, **more)
    launch = {"processes": 2, "strategy": strategy}
    result, found = trained(base, tmp_path / "two", kind, launch, **more)
    assert len(found) >= 4
    # Sums of two halves are rounded otherwise, and Adam carries that on from step to step.
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-3, atol=1e-4)
    one, two = tiny.weights(alone.model), tiny.weights(result.model)
    moved = max(float((one[k] - v).abs().max()) for k, v in tiny.weights(base).items() if k in one)
    apart = max(float((one[name] - two[name]).abs().max()) for name in one.keys() | two.keys())
    assert apart < 0.02 * moved
    assert {*result.metrics} == {*alone.metrics}
    assert result.metrics["trained_tokens"] == alone.metrics["trained_tokens"]
    assert [path.name for path in result.outputs] == [path.name for path in alone.outputs]


def dies(checkpoints: Path, config: Any) -> tiny.Sums:
    """The task; and process 1 is killed as soon as there is a checkpoint."""

    def wait() -> None:
        while not list(checkpoints.glob("checkpoint-*/trainer_state.json")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    if rank() == 1:
        threading.Thread(target=wait, daemon=True).start()
    return tiny.ParityTask()


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_a_process_that_is_killed_stops_the_others_and_the_stage_goes_on(
    strategy: str, base: Path, tmp_path: Path
) -> None:
    launch = {"processes": 2, "strategy": strategy}
    more = {"num_examples": 320, "save_steps": 3}
    _, expected = trained(base, tmp_path / "one", "sft", {}, **more)
    context = begun(base, tmp_path / "two", "sft", launch, **more)
    dying = replace(context, build_task=partial(dies, context.folder / CHECKPOINTS))
    with pytest.raises(
        StageError, match=r"process 1 of 2 that trained is gone \(killed by SIGKILL"
    ):
        STAGES["sft"].run(dying)
    assert list((context.folder / CHECKPOINTS).glob("checkpoint-*"))
    result: StageResult = STAGES["sft"].run(context)
    assert result.metrics["steps"] == len(expected) == 40
    found = torch.tensor(losses(context.folder))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_fault_of_a_process_is_told_as_in_one(base: Path, tmp_path: Path) -> None:
    context = begun(base, tmp_path / "two", "sft", {"processes": 2}, max_length=8)
    with pytest.raises(StageError) as alone:
        STAGES["sft"].run(replace(context, recipe=tiny.recipe(base), folder=tmp_path / "one"))
    with pytest.raises(StageError) as several:
        STAGES["sft"].run(context)
    assert str(several.value) == str(alone.value)


def test_a_cluster_s_own_world_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job on a cluster has it set for all that it starts."""
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    assert (rank(), world()) == (0, 1)
    assert sharding(LaunchConfig(processes=8, strategy="fsdp2")) == {}


def test_an_outline_has_the_names_and_ties_of_a_model_and_no_numbers() -> None:
    model = tiny.model(20, tied=True)
    empty = outline(model)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert empty.lm_head.weight is empty.model.embed_tokens.weight
    empty.load_state_dict(model.state_dict(), assign=True)
    empty.tie_weights()
    ids = torch.arange(5)[None]
    assert torch.equal(empty(ids).logits, model(ids).logits)


def test_what_cannot_be_launched_is_told_before_anything_is_loaded(base: Path) -> None:
    made = tiny.recipe(
        base,
        launch={"processes": 3, "strategy": "fsdp2", "deepspeed_config": "zero.json"},
        stages=["sft", "full_dpo"],
        sft={"gradient_accumulation": 6, "checkpoint_problems": 4},
        full_dpo={"gradient_accumulation": 4},
    )
    with pytest.raises(RecipeError) as error:
        check_recipe(made)
    assert list(error.value.problems) == [
        "launch.deepspeed_config: has no place beside strategy 'fsdp2'",
        "sft.checkpoint_problems: needs whole weights in a process; set it to 0, or "
        "launch.strategy to ddp",
        "full_dpo.gradient_accumulation: got 4, which 3 processes (launch.processes) cannot share; "
        "give a multiple of 3, and a batch_size that leaves the rows of a step as they were",
    ]
