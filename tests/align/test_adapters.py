"""A folder with a LoRA adapter stands wherever a model may: as the base model and as reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from align.models import adapters
from align.models.load import base_path, prepare_base
from align.pipeline.check import check_recipe
from align.stages import sft, token_dpo
from pts.data.pairs import write_pairs
from pts.engines.digest import model_digest
from tests.align import tiny
from tests.align.test_token_dpo import token_pairs


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter on a tiny model, as PEFT saves it: without a tokenizer."""
    from peft import LoraConfig, get_peft_model

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base = tiny.save(tmp_path / "base")
    adapted = get_peft_model(
        tiny.model(len(tiny.tokenizer())), LoraConfig(r=2, target_modules="all-linear")
    )
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_merged_once_and_is_a_whole_model_then(adapter: Path) -> None:
    config = tiny.recipe(adapter).model
    assert base_path(config) == str(adapter)
    found = prepare_base(config)
    base, merged = tiny.weights(adapter.parent / "base"), tiny.weights(found)
    assert base.keys() == merged.keys()
    name = "model.layers.0.mlp.down_proj.weight"
    file = adapter / "adapter_model.safetensors"
    from safetensors.torch import load_file

    low = load_file(file)
    prefix = f"base_model.model.{name.removesuffix('.weight')}"
    scale = json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"] / 2
    update = low[f"{prefix}.lora_B.weight"] @ low[f"{prefix}.lora_A.weight"]
    torch.testing.assert_close(merged[name], base[name] + scale * update)
    written = (found / "model.safetensors").stat().st_mtime_ns
    assert prepare_base(config) == found
    assert (found / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in found.parent.iterdir()] == [found.name]
    assert found.name.startswith(f"merged-{model_digest(adapter)[:16]}")


def test_a_stage_starts_from_an_adapter(adapter: Path, tmp_path: Path) -> None:
    made = tiny.recipe(adapter, stages=["sft"], sft={"num_examples": 8, "max_steps": 1})
    check_recipe(made)
    folder = prepare_base(made.model)
    settings = {"num_examples": 8, "max_steps": 1, "learning_rate": 1e-12}
    result = sft.run(tiny.context(folder, tmp_path / "sft", sft=settings))
    assert result.model is not None
    trained, merged = tiny.weights(result.model), tiny.weights(folder)
    for name in merged.keys() - {"model.embed_tokens.weight", "lm_head.weight"}:  # SFT adds a turn
        weight = merged[name]
        torch.testing.assert_close(trained[name], weight, atol=1e-6, rtol=0)


def test_an_adapter_is_a_reference(adapter: Path, tmp_path: Path) -> None:
    """A policy whose reference is its own adapter starts with a margin that is no gain."""
    start = adapters.whole(adapter, tiny.recipe(adapter).model)
    pairs = tmp_path / "pairs.jsonl"
    write_pairs(pairs, token_pairs(model_digest(start)))
    settings = {"reference": str(adapter), "max_steps": 1, "batch_size": 4, "beta": 0.5}
    context = tiny.context(start, tmp_path / "run", pairs=pairs, token_dpo=settings)
    result = token_dpo.run(context)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert result.metrics["pairs"] == 12
    assert line["gain"] == pytest.approx(0, abs=1e-5)
