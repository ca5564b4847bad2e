"""Tiny random models, a tokenizer of 60 tokens, and rollouts by plain forwards to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
)

from pts.config import SamplingConfig
from pts.engines.base import SampleRequest
from pts.engines.transformers.engine import TransformersEngine
from pts.engines.transformers.sampling import truncate, uniforms
from pts.types import Ids

VOCAB = 60
STOP = 1
PROMPT = (5, 9, 13, 17, 21)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


def tiny(kind: str, **changes: Any) -> Any:
    """A random model with logits spread enough for sampling to have something to choose."""
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": STOP,
        "initializer_range": 0.4,
    }
    config, cls = {
        "phi3": (Phi3Config, Phi3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[kind]
    torch.manual_seed(0)
    return cls(config(**{**sizes, **changes})).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, without merges; its letters suffice for a few signs and é."""
    special = ["<pad>", "<|im_end|>", "<s>", "<|im_start|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCAB - len(special)]
    accent = ["Ã", "©"]  # stand-ins of the two bytes of é
    letters = [c for c in letters if c not in accent][: VOCAB - len(special) - 2] + accent
    vocab = {t: i for i, t in enumerate([*special, *letters])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<|im_end|>", bos_token="<s>",
        additional_special_tokens=["<|im_start|>"], chat_template=TEMPLATE,
    )  # fmt: skip


def engine(model: Any, tokenizer: Any, max_rows: int | None = None, **sampling: Any) -> Any:
    return TransformersEngine(model, tokenizer, SamplingConfig(**sampling), max_rows=max_rows)


def drawn(engine: Any, requests: list[SampleRequest]) -> dict[int, list[Ids]]:
    return {request.key: outputs for request, outputs in engine.sample(iter(requests))}


def some_requests() -> list[SampleRequest]:
    """Prefixes of several lengths, several rollouts each, some sharing a path."""
    rng = np.random.default_rng(3)
    requests = []
    for key in range(12):
        prompt = PROMPT if key % 2 else (*PROMPT, 30, 31, 32, 33)
        at = tuple(rng.integers(2, VOCAB, key).tolist())
        seeds = tuple(int(s) for s in rng.integers(0, 2**63, 1 + key % 4))
        requests.append(SampleRequest(key, prompt, at, 3 + 2 * key, seeds))
    return requests


def reference_rollout(
    model: Any, request: SampleRequest, seed: int, sampling: SamplingConfig
) -> Ids:
    """One rollout by plain full forwards, without cache or batch."""
    out: list[int] = []
    while len(out) < request.max_tokens and (not out or out[-1] != STOP):
        ids = torch.tensor([[*request.prompt, *request.prefix, *out]])
        with torch.no_grad():
            logits = model(ids).logits[0, -1:]
        number = uniforms(np.array([seed], np.uint64), np.array([len(out)]))
        out.append(int(truncate(logits, sampling).draw(number)[0]))
    return tuple(out)
