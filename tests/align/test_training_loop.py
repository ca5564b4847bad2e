"""What a recipe's settings become in transformers' trainer, and dropout that is switched off."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    TrainingArguments,
)
from trl import DPOConfig, SFTConfig  # type: ignore[attr-defined]

from align.settings import LoRAConfig
from align.stages import sft, token_dpo
from align.training import loop as training
from align.training import token_dpo as training_token
from pts.data.pairs import write_pairs
from pts.engines.digest import model_digest
from tests.align import tiny
from tests.align.test_token_dpo import SETTINGS, token_pairs


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("base"))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
@pytest.mark.parametrize("kind", [TrainingArguments, SFTConfig, DPOConfig])
@pytest.mark.parametrize("gpus", [0, 1, 2, 8])
def test_one_process_uses_one_gpu(
    kind: Any, gpus: int, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several that PyTorch sees, transformers would take all, by nn.DataParallel."""
    own: Any = TrainingArguments.__dict__["_setup_devices"].func

    def set_up(self: Any) -> torch.device:
        device: torch.device = own(self)
        self._n_gpu = gpus
        return device

    patched: Any = functools.cached_property(set_up)
    patched.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", patched)
    assert kind(output_dir=str(tmp_path), use_cpu=True, bf16=False).n_gpu == gpus
    context = tiny.context(base, tmp_path, sft={"batch_size": 2})
    made = training.arguments(context, context.settings, "sft", tiny.model(20), kind)
    assert made.n_gpu == min(1, gpus)
    assert made.train_batch_size == 2


@pytest.mark.parametrize(
    ("schedule", "warmup", "rates"),
    [
        ("constant", 0.5, [0.0, 0.5, 1.0, 1.0]),
        ("constant", 0.0, [1.0, 1.0, 1.0, 1.0]),
        ("linear", 0.5, [0.0, 0.5, 1.0, 0.5]),
    ],
)
def test_every_schedule_warms_up(
    schedule: str, warmup: float, rates: list[float], base: Path, tmp_path: Path
) -> None:
    settings = {"num_examples": 8, "batch_size": 2, "learning_rate": 1e-3}
    settings |= {"schedule": schedule, "warmup_ratio": warmup}
    sft.run(tiny.context(base, tmp_path, sft=settings))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line)["learning_rate"] / 1e-3 for line in lines]
    assert found == pytest.approx(rates)


SIZES = {"vocab_size": 64, "hidden_size": 32}


def opt() -> Any:
    config = OPTConfig(
        **SIZES, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=32,
        dropout=0.4, attention_dropout=0.3, layerdrop=0.5, init_std=0.2,
    )  # fmt: skip
    return OPTForCausalLM(config)


def bloom() -> Any:
    config = BloomConfig(
        **SIZES, n_layer=2, n_head=2, hidden_dropout=0.4, attention_dropout=0.3,
        initializer_range=0.2,
    )  # fmt: skip
    return BloomForCausalLM(config)


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2))


@pytest.mark.parametrize("make", [opt, bloom, gpt2])
def test_no_margin_depends_on_a_mask(make: Any) -> None:
    """OPT and Bloom hold rates as plain numbers, which no `torch.nn.Dropout` shows."""
    model, rows = make(), [training_token.TokenRow((5, 6, 7, 8, 9), 1, 2)]
    config = model.config.to_dict()
    training.switch_off_dropout(model)
    known = training_token.all_margins(model, rows, 1)
    model.train()
    for _ in range(4):
        found, _ = training_token.margins(model, training_token.collate(rows))
        assert found.tolist() == pytest.approx(known, abs=1e-6)
    assert model.config.to_dict() == config


def test_an_adapter_s_own_dropout_is_off_in_token_dpo(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    fit = training.fit

    def watched(trainer: Any, *args: Any) -> Any:
        modules = [*trainer.model.modules()]
        seen.extend(module.p for module in modules if isinstance(module, torch.nn.Dropout))
        return fit(trainer, *args)

    monkeypatch.setattr(training, "fit", watched)
    pairs = tmp_path / "pairs.jsonl"
    write_pairs(pairs, token_pairs(model_digest(base)))
    settings = {**SETTINGS, "max_steps": 1, "lora": {"r": 2, "dropout": 0.5}}
    token_dpo.run(tiny.context(base, tmp_path / "run", pairs=pairs, token_dpo=settings))
    assert len(seen) > 8
    assert set(seen) == {0.0}


def test_an_adapter_keeps_its_dropout_in_sft(base: Path) -> None:
    model = tiny.model(20)
    described = training.adapter(LoRAConfig(r=2, dropout=0.5), model)
    adapted = training.with_adapter(model, described, seed=0)
    rates = {m.p for m in adapted.modules() if isinstance(m, torch.nn.Dropout)}
    assert 0.5 in rates
