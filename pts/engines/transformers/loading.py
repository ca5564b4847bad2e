"""Load a causal language model and its tokenizer: safetensors or GGUF, LoRA merged, no remote code.

Adapters are merged into the weights: a policy is one set of weights, and merged ones run faster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pts.engines.text import json_value
from pts.errors import EngineError


def load_model_and_tokenizer(
    path: Path,
    *,
    adapter: str | Path | None = None,
    gguf_file: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> tuple[Any, Any]:
    """The model (eval mode, adapter merged) and its tokenizer.

    Raises EngineError when a directory is missing, incomplete or not safetensors.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer_path = path
    if adapter is None and (path / "adapter_config.json").exists():
        adapter, path = path, _base_of(path)
        if not (tokenizer_path / "tokenizer_config.json").exists():
            tokenizer_path = path
    on_cuda = device is not None and torch.device(device).type == "cuda"
    gguf: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    weights = gguf or {"use_safetensors": True}
    kind = dtype or ("auto" if on_cuda else torch.float32)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, trust_remote_code=False, dtype=kind, **weights
        )
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_path, trust_remote_code=False, **gguf)
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot load a model from {path}: {error}") from error
    if adapter is not None:
        from peft import PeftModel

        if not (Path(adapter) / "adapter_model.safetensors").exists():
            raise EngineError(f"{adapter} holds no adapter_model.safetensors; save the adapter so")
        loaded = PeftModel.from_pretrained(model, str(adapter), is_trainable=False)
        model = loaded.merge_and_unload()
    return model.eval(), tokenizer


def _base_of(adapter: Path) -> Path:
    """The base model that an adapter directory names; a relative one is looked up beside it."""
    base = json_value(adapter / "adapter_config.json", "base_model_name_or_path")
    if not base:
        raise EngineError(f"{adapter}/adapter_config.json names no base model; pass it as path")
    beside = adapter.parent / base
    return beside if not Path(base).exists() and beside.exists() else Path(base)
