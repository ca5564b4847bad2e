"""A folder that holds a LoRA adapter, as a policy: merged once into its base model's weights.

Engines, servers and digests then see one whole model, and the chain may go on from it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pts.engines.digest import model_digest
from pts.files import cache_folder

if TYPE_CHECKING:
    from align.settings import ModelConfig

ADAPTER = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / ADAPTER).is_file() and not (folder / "config.json").is_file()


def whole(folder: Path, config: ModelConfig) -> Path:
    """The folder itself, or that of its adapter merged into the base model, in the recipe's dtype.

    Raises:
        EngineError: the adapter or its base model cannot be loaded.
    """
    if not is_adapter(folder):
        return folder
    target = cache_folder() / f"merged-{model_digest(folder)[:16]}-{config.dtype}"
    if target.is_dir():
        return target
    import torch

    from pts import load_model_and_tokenizer

    model, tokenizer = load_model_and_tokenizer(folder, dtype=getattr(torch, config.dtype))
    draft = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft, safe_serialization=True)
    tokenizer.save_pretrained(draft)
    try:
        draft.rename(target)
    except OSError:  # another process was faster
        shutil.rmtree(draft)
    return target
