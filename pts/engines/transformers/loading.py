"""Load a causal language model and its tokenizer: safetensors or GGUF, LoRA merged, no remote code.

Adapters are merged into the weights: a policy is one set of weights, and merged ones run faster.
Nothing is loaded in part: `transformers` would fill tensors that a checkpoint lacks with random
numbers, other ones each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from pts.engines.digest import base_of
from pts.engines.text import TRIED
from pts.errors import EngineError

T = TypeVar("T")
SHOWN = 3
"""Tensors of a kind that a message names."""


def load_model_and_tokenizer(
    path: str | Path,
    *,
    adapter: str | Path | None = None,
    gguf_file: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    model_options: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """The model (eval mode, adapter merged) and its tokenizer.

    `path` is a folder or a hub's name; a folder that holds a LoRA adapter is loaded with the base
    model that it names. dtype defaults to float32, on CUDA to the one in the config; `device` only
    decides that. `model_options` are further arguments of transformers' `from_pretrained`.

    Raises EngineError when a folder is missing, incomplete, damaged or not safetensors, and when
    tensors are missing, of another shape, or not the model's.
    """
    folder = tokenizer_path = Path(path)
    if adapter is None and (folder / "adapter_config.json").exists():
        adapter, folder = folder, base_of(folder)
        if not (tokenizer_path / "tokenizer_config.json").exists():
            tokenizer_path = folder
    try:
        on_cuda = device is not None and torch.device(device).type == "cuda"
    except RuntimeError:
        raise EngineError(
            f"no device {str(device)[:40]!r}; give cpu, cuda, cuda:1 or mps"
        ) from None
    options: dict[str, Any] = {"dtype": dtype or ("auto" if on_cuda else torch.float32)}
    options |= {"gguf_file": gguf_file} if gguf_file else {"use_safetensors": True}
    options |= model_options or {}
    model = _loaded(folder, "a model", lambda: _model(folder, options))
    gguf = {"gguf_file": gguf_file} if gguf_file else {}
    tokenizer: Any = _loaded(
        tokenizer_path,
        "a tokenizer",
        lambda: _tokenizer(tokenizer_path, gguf),
    )
    if adapter is not None:
        model = _merged(model, Path(adapter), len(tokenizer))
    return model.eval(), tokenizer


def _loaded(path: Path, what: str, load: Callable[[], T]) -> T:
    """What `load` gives; whatever a library raises there is told as EngineError."""
    try:
        return load()
    except EngineError:
        raise
    except torch.OutOfMemoryError:
        raise
    except MemoryError as error:
        raise EngineError(f"cannot load {what} from {path}: memory ran out") from error
    except Exception as error:  # of transformers, safetensors, tokenizers, peft and json
        remedy = _remedy(path, error)
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise EngineError(f"cannot load {what} from {path}: {reason[0]}{remedy}") from error


def _remedy(path: Path, error: Exception) -> str:
    """What the files of a folder say about why it cannot be loaded."""
    if not path.is_dir():
        return "" if path.exists() else "; there is no such folder"
    files = sorted(path.iterdir())
    pointers = [f.name for f in files if f.suffix == ".safetensors" and f.stat().st_size < 1024]
    if any((path / name).read_bytes().startswith(b"version https://git-lfs") for name in pointers):
        return f"; {pointers[0]} is a Git LFS pointer, fetch the file itself: git lfs pull"
    names = {f.suffix for f in files}
    if ".safetensors" not in names and {".bin", ".pt", ".pth"} & names:
        return (
            "; its weights are pickled, which is not loaded: convert them with "
            "model.save_pretrained(folder, safe_serialization=True)"
        )
    if ".safetensors" in names and type(error).__name__ == "SafetensorError":
        return "; the file may be cut off or damaged: fetch or copy it again"
    return ""


def _tokenizer(path: Path, options: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **options)
    tokenizer(TRIED, add_special_tokens=False)  # settings that do not fit are told now
    return tokenizer


def _model(path: Path, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # told below, all at once
        **options,
    )
    model, found = loaded
    faults = [
        _some(kind, keys)
        for kind, keys in (
            ("lacks", sorted(found["missing_keys"])),
            ("holds tensors that are not the model's:", sorted(found["unexpected_keys"])),
            (
                "holds tensors of another shape:",
                [
                    f"{name} {list(held)} instead of {list(wanted)}"
                    for name, held, wanted in sorted(found["mismatched_keys"])
                ],
            ),
        )
        if keys
    ]
    if faults:
        raise EngineError(
            f"{path}: the checkpoint is not one of {type(model).__name__}, which config.json "
            f"names: it {'; it '.join(faults)}; restore the folder, or give the model's own config"
        )
    return model


def _some(kind: str, names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return f"{kind} {', '.join(names[:SHOWN])}{more}"


def _merged(model: Any, adapter: Path, tokens: int) -> Any:
    """The model with an adapter in its weights; where it was trained with added tokens, the
    tokenizer's number of `tokens` tells how many rows the embedding had.
    """
    from peft import PeftModel
    from safetensors import safe_open

    file = adapter / "adapter_model.safetensors"
    if not file.exists():
        raise EngineError(f"{adapter} holds no adapter_model.safetensors; save the adapter so")

    def merge() -> Any:
        with safe_open(file, "pt") as weights:
            rows = {
                weights.get_slice(name).get_shape()[0]
                for name in weights.keys()  # noqa: SIM118 - no dict
                if name.endswith(("embed_tokens.weight", "lm_head.weight"))
            }
        if tokens in rows and tokens != model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(tokens)
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=False).merge_and_unload()

    return _loaded(adapter, "an adapter", merge)
