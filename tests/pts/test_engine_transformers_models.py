"""What the transformers engine loads, encodes and refuses."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pts.config import SamplingConfig
from pts.engines.base import SampleRequest
from pts.engines.boundaries import completion_steps
from pts.engines.digest import model_digest
from pts.engines.transformers.engine import TransformersEngine, weights_digest
from pts.errors import EngineError
from pts.types import Message, Problem
from tests.pts.tiny_models import (
    PROMPT,
    STOP,
    VOCAB,
    drawn,
    engine,
    reference_rollout,
    some_requests,
    tiny,
    tiny_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module", params=["phi3", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny(request.param)


@pytest.mark.parametrize(
    ("kind", "changes", "key"),
    [
        ("phi3", {"sliding_window": 16}, "sliding_window"),
        (
            "llama",
            {
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
                "max_position_embeddings": 16,
            },
            "original_max_position_embeddings",
        ),
    ],
)
def test_lengths_beyond_exactness_are_refused(
    tokenizer: Any, kind: str, changes: dict, key: str
) -> None:
    made = engine(tiny(kind, **changes), tokenizer)
    with pytest.raises(EngineError, match=f"{key} = 16"):
        drawn(made, [SampleRequest(0, PROMPT, (), 12, (1,))])
    with pytest.raises(EngineError, match=f"{key} = 16"):
        made.score(PROMPT, tuple(range(2, 14)))
    request = SampleRequest(0, PROMPT, (), 11, (1, 2))
    expected = [reference_rollout(made.model, request, s, made.sampling) for s in request.seeds]
    assert drawn(made, [request])[0] == expected


@pytest.mark.parametrize(
    ("config", "cls", "changes"),
    [
        (Gemma3TextConfig, Gemma3ForCausalLM, {"sliding_window": 32, "head_dim": 8}),
        (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
        (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    ],
)
def test_other_families(tokenizer: Any, config: Any, cls: Any, changes: dict) -> None:
    shape = tiny("llama").config
    sizes = {k: getattr(shape, k) for k in ("vocab_size", "hidden_size", "num_hidden_layers",
             "num_attention_heads", "num_key_value_heads", "intermediate_size", "pad_token_id",
             "eos_token_id", "initializer_range", "max_position_embeddings")}  # fmt: skip
    torch.manual_seed(0)
    made = engine(cls(config(**sizes, **changes)).eval(), tokenizer, top_p=0.95)
    requests = some_requests()[:6]
    expected = {
        w.key: [reference_rollout(made.model, w, s, made.sampling) for s in w.seeds]
        for w in requests
    }
    assert drawn(made, requests) == expected


def test_learned_positions_bound_the_length(tokenizer: Any) -> None:
    config = GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    made = engine(GPT2LMHeadModel(config).eval(), tokenizer)
    with pytest.raises(EngineError, match="max_position_embeddings = 16"):
        drawn(made, [SampleRequest(0, PROMPT, (), 12, (1,))])


def test_models_that_slots_cannot_serve_are_refused(tokenizer: Any) -> None:
    config = BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=1, n_head=2)
    with pytest.raises(EngineError, match="takes no position_ids"):
        engine(BloomForCausalLM(config).eval(), tokenizer)
    flash = tiny("phi3")
    flash.config._attn_implementation = "flash_attention_2"
    with pytest.raises(EngineError, match="attn_implementation='sdpa'"):
        engine(flash, tokenizer)


def test_an_unmerged_adapter_is_sampled_from(tokenizer: Any) -> None:
    lora = get_peft_model(
        tiny("phi3"), LoraConfig(r=2, target_modules=["qkv_proj"], init_lora_weights=False)
    )
    unmerged = engine(lora, tokenizer)
    outputs = drawn(unmerged, some_requests())
    rows = unmerged.score(PROMPT, (7, 8, 9))
    merged = engine(lora.merge_and_unload(), tokenizer)
    assert drawn(merged, some_requests()) == outputs
    for row, other in zip(merged.score(PROMPT, (7, 8, 9)), rows, strict=True):
        np.testing.assert_allclose(row.probs, other.probs, atol=1e-5)


def test_encode(tokenizer: Any, model: Any) -> None:
    made = engine(model, tokenizer)
    plain = Problem("a", "%&'", "")
    text = tuple(tokenizer.convert_tokens_to_ids(list("%&'")))
    assert made.encode(plain) == text
    chat = Problem("b", (Message("+", "%&"),), "")
    ids = made.encode(chat)
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2
    other = TransformersEngine(
        model, tokenizer, SamplingConfig(), chat_template="{{ messages[0]['content'] }}"
    )
    assert other.encode(chat) == text[:2]
    with pytest.raises(EngineError, match="no tokens"):
        made.encode(Problem("c", "", ""))


def test_bos_goes_in_front_when_the_tokenizer_wants_it(tokenizer: Any, model: Any) -> None:
    wanting = deepcopy(tokenizer)
    wanting.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 2)]
    )
    assert engine(model, wanting).encode(Problem("a", "%", ""))[0] == 2
    assert engine(model, tokenizer).encode(Problem("a", "%", ""))[0] != 2


def test_messages_without_a_template_are_refused(tokenizer: Any, model: Any) -> None:
    bare = deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(EngineError, match="chat template"):
        engine(model, bare).encode(Problem("a", (Message("user", "%"),), ""))


def test_decode_and_token_texts(tokenizer: Any, model: Any) -> None:
    made = engine(model, tokenizer)
    a, accent = tokenizer.convert_tokens_to_ids("%"), tokenizer.convert_tokens_to_ids(["Ã", "©"])
    assert made.decode((a, *accent, STOP, 0)) == "%é"
    assert made.token_texts((a, *accent, STOP)) == ["%", "\\xc3", "\\xa9", "<|im_end|>"]


def test_digest_follows_the_weights(tokenizer: Any) -> None:
    a, b = tiny("phi3"), tiny("phi3")
    assert weights_digest(a) == weights_digest(b) == engine(a, tokenizer).policy_digest
    with torch.no_grad():
        b.lm_head.weight[0, 0] += 1
    assert weights_digest(a) != weights_digest(b)
    named = TransformersEngine(a, tokenizer, SamplingConfig(), policy_digest="mine")
    assert named.policy_digest == "mine"


def test_load_with_and_without_adapter(tokenizer: Any, tmp_path: Path) -> None:
    base = tiny("phi3")
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    plain = TransformersEngine.load(tmp_path / "base", SamplingConfig())
    assert plain.policy_digest == model_digest(tmp_path / "base")
    assert plain.stop_ids == {STOP}

    lora = get_peft_model(
        tiny("phi3"), LoraConfig(r=2, target_modules=["qkv_proj"], init_lora_weights=False)
    )
    lora.peft_config["default"].base_model_name_or_path = "base"
    lora.save_pretrained(tmp_path / "adapter")
    rows = engine(lora.merge_and_unload(), tokenizer).score(PROMPT, (7, 8, 9))
    given = TransformersEngine.load(
        tmp_path / "base", SamplingConfig(), adapter=tmp_path / "adapter"
    )
    found = TransformersEngine.load(tmp_path / "adapter", SamplingConfig())
    assert given.policy_digest == found.policy_digest
    for made in (given, found):
        assert made.policy_digest != plain.policy_digest
        for row, other in zip(made.score(PROMPT, (7, 8, 9)), rows, strict=True):
            assert row.ids.tolist() == other.ids.tolist()
            np.testing.assert_allclose(row.probs, other.probs, atol=1e-5)
    assert abs(plain.score(PROMPT, (7,))[0].probs - rows[0].probs).max() > 1e-4


def test_load_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot load"):
        TransformersEngine.load(tmp_path / "nothing", SamplingConfig())


def test_phi_nano_if_it_has_been_built() -> None:
    path = Path(__file__).parents[2] / "recipes" / "phi-nano" / "base"
    if not (path / "model.safetensors").exists():
        pytest.skip("recipes/phi-nano/base has not been built")
    made = TransformersEngine.load(path, SamplingConfig(temperature=0.7, max_new_tokens=16))
    prompt = made.encode(Problem("a", "2 + 3 =", "5"))
    outputs = drawn(made, [SampleRequest(0, prompt, (), 16, (1, 2, 3))])[0]
    rows = made.score(prompt, outputs[0])
    assert all(row.prob(token) > 0 for row, token in zip(rows, outputs[0], strict=True))
    assert isinstance(made.decode(outputs[0]), str)


def test_steps_of_a_real_tokenizer_lie_between_its_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(
        Path(__file__).parents[2] / "recipes" / "phi-nano" / "base"
    )
    steps = ["12+50:2,6=62\n", "62-3=59\n\n", "The answer is 3.5.", " So é.", " The end."]
    ids = tokenizer("".join(steps), add_special_tokens=False)["input_ids"]
    made = engine(tiny("phi3"), tokenizer)
    ends = completion_steps(made, (*ids, min(made.stop_ids)))
    assert ends[-1] == len(ids) + 1
    spans = pairwise([0, *ends[:-1], len(ids)])
    assert [tokenizer.decode(ids[start:end]) for start, end in spans] == steps
