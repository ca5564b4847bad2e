"""Bad inputs about how a stage trains: weights in 4 bits, packed rows, kernels."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any
from unittest import mock

from tests.bad_inputs import Place, bad

QLORA = {"lora": {"load_in_4bit": True}}
FLASH = {"attn_implementation": "flash_attention_2"}
LIGER = {"use_liger_kernel": True}


def stage(kind: str = "sft", launch: Any = None, **settings: Any) -> Callable[[Place], object]:
    """A recipe with one stage on the CPU, checked where no package of kernels is installed."""

    def check(p: Place) -> None:
        found, absent = importlib.util.find_spec, ("bitsandbytes", "flash_attn", "liger_kernel")

        def find(name: str, *more: Any) -> Any:
            return None if name in absent else found(name, *more)

        stages = ["sft", "pts", kind] if kind == "token_dpo" else [kind]
        with mock.patch.object(importlib.util, "find_spec", find):
            p.check("model.device=cpu", stages=stages, launch=launch or {}, **{kind: settings})

    return check


TRAINING = [
    bad(
        "4 bits without an adapter",
        stage(load_in_4bit=True),
        "sft: load_in_4bit: belongs to lora",
        "lora: {load_in_4bit: true}",
    ),
    bad(
        "unknown type of 4 bits",
        stage(lora={"load_in_4bit": True, "bnb_4bit_quant_type": "nf5"}),
        "sft.lora.bnb_4bit_quant_type: got 'nf5'",
        "did you mean 'nf4'?",
    ),
    bad(
        "type of 4 bits alone",
        stage(lora={"bnb_4bit_quant_type": "fp4"}),
        "sft.lora: bnb_4bit_quant_type needs load_in_4bit: true",
    ),
    bad(
        "unknown key of 4 bits",
        stage(lora={"load_in_4bits": True}),
        "sft.lora.load_in_4bits: no such key; did you mean 'load_in_4bit'?",
    ),
    bad(
        "no bitsandbytes",
        stage(**QLORA),
        "sft.lora.load_in_4bit: bitsandbytes is not installed",
        "pip install 'three-stage[qlora]'",
    ),
    bad(
        "4 bits in parts",
        stage(
            launch={"processes": 2, "strategy": "fsdp2"}, gradient_accumulation=2, **QLORA
        ),
        "sft.lora.load_in_4bit: weights in 4 bits are whole in each process",
        "launch.strategy to ddp, not 'fsdp2'",
    ),
    bad("packed pairs", stage("full_dpo", packing=True), "full_dpo.packing: no such key"),
    bad(
        "unknown attention",
        stage(attn_implementation="flash_attention2"),
        "sft.attn_implementation: got 'flash_attention2'",
        "did you mean 'flash_attention_2'?",
    ),
    bad(
        "flash attention on a CPU",
        stage(**FLASH),
        "sft.attn_implementation: got flash_attention_2, which needs a CUDA device",
    ),
    bad("no flash-attn", stage(**FLASH), "flash-attn is not installed", "pip install flash-attn"),
    bad("flash attention in 32 bits", stage(**FLASH), "takes 16 bits; set model.dtype to bfloat16"),
    bad(
        "flash attention of a reference",
        stage("token_dpo", **FLASH),
        "token_dpo.attn_implementation: the reference is asked in float32",
        "give lora, or sdpa",
    ),
    bad(
        "flash attention that samples",
        stage(checkpoint_problems=4, **FLASH),
        "sft.checkpoint_problems: answers are not sampled with flash_attention_2",
    ),
    bad(
        "Liger on a CPU",
        stage(**LIGER),
        "sft.use_liger_kernel: got true, which needs a CUDA device, but the model is on cpu",
    ),
    bad(
        "no liger-kernel",
        stage("full_dpo", **LIGER),
        "full_dpo.use_liger_kernel: liger-kernel is not installed",
        "pip install 'three-stage[liger]'",
    ),
]  # fmt: skip
