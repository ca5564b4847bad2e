"""The attention and the kernels that a stage trains with: what reaches the libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments
from trl import DPOConfig, SFTConfig

from align.errors import RecipeError
from align.pipeline.check import check_recipe
from align.stages import sft
from align.training import loop
from tests.align import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_stage_trains_with_the_attention_that_it_is_told(
    attention: str, base: Path, tmp_path: Path
) -> None:
    settings = {"num_examples": 8, "max_steps": 2, "attn_implementation": attention}
    context = tiny.context(base, tmp_path / "run", sft=settings)
    policy, _ = loop.load_trainable(base, context.recipe.model, context.settings)
    assert policy.config._attn_implementation == attention
    result = sft.run(context)
    assert result.model is not None
    assert "attn_implementation" not in (result.model / "config.json").read_text()


@pytest.mark.parametrize("kind", [TrainingArguments, SFTConfig, DPOConfig])
def test_liger_s_fused_loss_stays_off(kind: Any, base: Path, tmp_path: Path) -> None:
    """It would replace the forward pass that TRL's losses and the token loss go through."""
    context = tiny.context(base, tmp_path, sft={"use_liger_kernel": True})
    policy = tiny.model(20)
    made = loop.arguments(context, context.settings, "sft", policy, kind)
    assert made.use_liger_kernel
    assert made.liger_kernel_config == {"fused_linear_cross_entropy": False}


def test_the_keys_are_recorded_where_they_are_set(base: Path) -> None:
    """Runs that were begun before the keys existed go on."""
    plain = tiny.recipe(base, stages=["sft"], sft={"lora": {"r": 4}}).stages[0].settings
    keys = {"packing", "attn_implementation", "use_liger_kernel", "load_in_4bit"}
    told = json.dumps(plain.model_dump(mode="json"))
    assert not [key for key in keys if key in told]
    changed = {"packing": True, "attn_implementation": "eager", "lora": {"load_in_4bit": True}}
    other = tiny.recipe(base, stages=["sft"], sft=changed).stages[0].settings
    found = other.model_dump(mode="json")
    assert found["packing"] is True
    assert found["attn_implementation"] == "eager"
    assert found["lora"]["bnb_4bit_quant_type"] == "nf4"
    assert type(other).model_validate(found) == other


def test_kernels_need_a_device_that_is_there(base: Path) -> None:
    made = tiny.recipe(base, stages=["sft"], sft={"use_liger_kernel": True})
    on_cuda = made.model.model_copy(update={"device": "cuda"})
    with pytest.raises(RecipeError, match=r"sft\.use_liger_kernel: .* is on c(uda|pu)") as error:
        check_recipe(made.model_copy(update={"model": on_cuda if not _cuda() else made.model}))
    assert "leave the key out" in str(error.value)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
