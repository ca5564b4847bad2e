"""Loading and saving policies: safetensors only, no code from the hub.

`load_policy` is for training and teacher-forced passes; rollouts use `pts.TransformersEngine`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import RecipeError
from align.recipe import ModelConfig, data_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUILTIN = {"builtin:phi-nano": "phi-nano/base"}


def base_path(config: ModelConfig) -> str:
    """Folder or hub name of the base model.

    Raises:
        RecipeError: an unknown builtin name, or a folder without a model.
    """
    path = config.path
    if path.startswith("builtin:"):
        if path not in BUILTIN:
            raise RecipeError(f"model.path: got {path!r}; known: {', '.join(BUILTIN)}")
        path = str(data_folder("recipes") / BUILTIN[path])
    looks_local = path.startswith((".", "/", "~")) or Path(path).exists()
    if looks_local and not (Path(path).expanduser() / "config.json").is_file():
        raise RecipeError(f"model.path: {path} holds no config.json; give the folder of a model")
    return str(Path(path).expanduser()) if looks_local else path


def chat_template(config: ModelConfig) -> str | None:
    """The jinja text of the recipe's chat template; None keeps the tokenizer's own."""
    if config.chat_template == "keep":
        return None
    file = data_folder("chat_templates") / f"{config.chat_template}.jinja"
    return file.read_text(encoding="utf-8")


def device_of(config: ModelConfig) -> str:
    """`auto` resolved to cuda, mps or cpu."""
    import torch

    if config.device != "auto":
        return config.device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_policy(
    path: str | Path, config: ModelConfig
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder, with the recipe's dtype, device and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    template = chat_template(config)
    if template is not None:
        tokenizer.chat_template = template
    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, config.dtype), use_safetensors=True
    )
    return model.to(device_of(config)), tokenizer


def save_policy(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights (safetensors), configuration, generation settings and tokenizer."""
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
