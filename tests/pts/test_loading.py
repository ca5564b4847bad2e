"""Checkpoints are loaded whole or refused, by name; rows of a batch never disturb each other."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
)

from pts import load_model_and_tokenizer
from pts.config import SamplingConfig
from pts.engines.base import SampleRequest
from pts.engines.transformers.engine import TransformersEngine
from pts.errors import EngineError
from pts.types import Message, Problem
from tests.pts.tiny_models import (
    PROMPT,
    VOCAB,
    drawn,
    engine,
    reference_rollout,
    some_requests,
    tiny,
    tiny_tokenizer,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    tiny("phi3").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        held = load_file(file)
        change(held)
        save_file(held, file, metadata={"format": "pt"})

    return damage


def rewrite(name: str, content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content((folder / name).read_bytes()))

    return damage


def other_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))


NORM = "model.norm.weight"


def without_norm(held: dict[str, torch.Tensor]) -> None:
    del held[NORM]


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (weights(without_norm), f"it lacks {NORM}"),
    "unexpected": (
        weights(lambda held: held.update(extra=torch.ones(1))),
        "tensors that are not the model's: extra",
    ),
    "mismatched": (
        weights(lambda held: held.update({NORM: torch.ones(3)})),
        rf"of another shape: {NORM} \[3\] instead of \[32\]",
    ),
    "another type": (other_type, "not one of LlamaForCausalLM"),
    "cut off": (rewrite("model.safetensors", lambda b: b[: len(b) // 2]), "cut off or damaged"),
    "no safetensors": (rewrite("model.safetensors", lambda b: b"no" * 999), "cut off or damaged"),
    "git lfs": (rewrite("model.safetensors", lambda b: LFS), "git lfs pull"),
    "pickled": (
        lambda folder: shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin"),
        "weights are pickled",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "cannot load a model"),
    "broken config": (rewrite("config.json", lambda b: b[:20]), "cannot load a model"),
    "no tokenizer": (
        lambda folder: [file.unlink() for file in folder.glob("token*")],
        "cannot load a tokenizer",
    ),
    "broken tokenizer": (
        rewrite("tokenizer.json", lambda b: b[: len(b) // 2]),
        "cannot load a tokenizer",
    ),
    "nothing": (shutil.rmtree, "there is no such folder"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_checkpoints_are_refused(folder: Path, kind: str) -> None:
    damage, message = DAMAGED[kind]
    damage(folder)
    with pytest.raises(EngineError, match=message):
        TransformersEngine.load(folder, SamplingConfig())


def test_an_adapter_with_added_tokens_is_loaded(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model_and_tokenizer(folder)
    tokenizer.add_tokens(["<|think|>", "<|end|>"])
    model.resize_token_embeddings(len(tokenizer))
    settings = LoraConfig(
        r=2, target_modules=["qkv_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    lora = get_peft_model(model, settings)
    lora.peft_config["default"].base_model_name_or_path = str(folder)
    lora.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    merged = lora.merge_and_unload()
    loaded, read = load_model_and_tokenizer(tmp_path / "adapter")
    assert len(read) == VOCAB + 2
    ids = torch.tensor([[*PROMPT, VOCAB + 1]])
    torch.testing.assert_close(loaded(ids).logits, merged(ids).logits)


def test_a_damaged_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    lora = get_peft_model(tiny("phi3"), LoraConfig(r=2, target_modules=["qkv_proj"]))
    lora.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(EngineError, match="cannot load an adapter"):
        load_model_and_tokenizer(folder, adapter=tmp_path / "adapter")


def gpt_neo(window: int) -> Any:
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=VOCAB, hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48,
        attention_types=[[["global", "local"], 1]], window_size=window,
        max_position_embeddings=128, initializer_range=0.4, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    return GPTNeoForCausalLM(config).eval()


def test_rows_that_disturb_each_other_run_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    model = gpt_neo(window=6)
    with caplog.at_level(logging.WARNING):
        made = engine(model, tiny_tokenizer())
    assert "GPTNeoForCausalLM: rows of unlike lengths disturb each other" in caplog.text
    requests = some_requests()
    for key, outputs in drawn(made, requests).items():
        request = requests[key]
        wanted = [reference_rollout(model, request, s, SamplingConfig()) for s in request.seeds]
        assert outputs == wanted


def test_rows_that_do_not_disturb_each_other_share_a_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        engine(tiny("phi3"), tiny_tokenizer())
    assert not caplog.text


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, is_decoder=False, initializer_range=0.4,
    )  # fmt: skip
    with pytest.raises(EngineError, match="other logits than without"):
        drawn(
            engine(BertLMHeadModel(config).eval(), tiny_tokenizer()),
            [SampleRequest(0, PROMPT, (), 3, (1,))],
        )


def test_a_token_without_a_row_is_told() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|think|>"])
    made = engine(tiny("phi3"), tokenizer)
    with pytest.raises(EngineError, match=rf"'q1'.*'<\|think\|>' \({VOCAB}\), but the model has"):
        made.encode(Problem("q1", "!<|think|>", ""))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system turn') }}", "no system turn"),
        ("{% for m in messages %}", "chat template fails"),
    ],
)
def test_a_chat_template_that_fails_is_told(template: str, message: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    made = engine(tiny("phi3"), tokenizer)
    with pytest.raises(EngineError, match=f"problem 'q1'.*{message}.*roles here: system, user"):
        made.encode(Problem("q1", (Message("system", "!"), Message("user", "!")), ""))
