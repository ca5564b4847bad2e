"""Adapters that a recipe asks for and no stage can train: told before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import BioGptConfig, BioGptForCausalLM

from align.pipeline.training_faults import training_faults
from tests.align import tiny


def faults(base: Path, targets: Any, *stages: str) -> list[str]:
    lora = {"lora": {"target_modules": targets}}
    recipe = tiny.recipe(base, stages=[*stages], **dict.fromkeys(stages, lora))
    return [*training_faults(recipe)]


@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_on_the_head_is_a_fault_of_the_recipe(tied: bool, tmp_path: Path) -> None:
    """A tied head has no name in the files of weights."""
    base = tiny.save(tmp_path / "base", tied=tied)
    found = faults(base, ["qkv_proj", "lm_head"], "sft", "full_dpo")
    assert found == [
        f"{stage}.lora.target_modules: 'lm_head' is the output embedding, whose matrix the losses "
        "read themselves, so that it gets no adapter; leave it out"
        for stage in ("sft", "full_dpo")
    ]


def test_the_head_is_known_by_whatever_name_it_has(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = BioGptConfig(vocab_size=40, num_attention_heads=2, **sizes)
    BioGptForCausalLM(config).save_pretrained(tmp_path)
    [found] = faults(tmp_path, ["q_proj", "output_projection"], "sft")
    assert "'output_projection' is the output embedding" in found
    [found] = faults(tmp_path, ["lm_head"], "sft")
    assert "the model has no module 'lm_head'" in found


@pytest.mark.parametrize("targets", ["all-linear", ["qkv_proj", "gate_up_proj"]])
def test_other_modules_are_fine(targets: Any, tmp_path: Path) -> None:
    assert faults(tiny.save(tmp_path / "base"), targets, "sft") == []


def test_what_cannot_be_told_is_not(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base")
    (base / "config.json").write_text('{"model_type": "of_tomorrow"}')
    assert faults(base, ["qkv_proj"], "sft") == []
    for name in ("no/such-model", str(tmp_path / "none")):
        assert faults(Path(name), ["lm_head"], "sft") == []
