"""The shape of a model, from its config alone: no weight is loaded and nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import RecipeError
from align.models.load import SMOLLM2, base_path
from align.settings import LoRAConfig, ModelConfig


@dataclass(frozen=True, slots=True)
class Shape:
    """What the cost of a model depends on."""

    parameters: int
    """All of them, tied ones once."""
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocab: int
    tied: bool
    """The head shares the weights of the input embedding."""
    linears: tuple[tuple[str, int, int], ...]
    """Name, inputs and outputs of every linear module but the head."""
    source: str

    @property
    def multiplied(self) -> int:
        """Parameters that a token is multiplied with: all but an input embedding of its own."""
        return self.parameters - (0 if self.tied else self.vocab * self.hidden)

    def adapter(self, config: LoRAConfig) -> int:
        """Parameters of a LoRA adapter: r · (inputs + outputs) of each module that gets one.

        Raises:
            RecipeError: no module has such a name.
        """
        targets = config.target_modules
        found = [
            config.r * (inputs + outputs)
            for name, inputs, outputs in self.linears
            if targets == "all-linear" or name.rpartition(".")[2] in targets or name in targets
        ]
        if not found:
            known = sorted({name.rpartition(".")[2] for name, _, _ in self.linears})
            raise RecipeError(f"lora.target_modules: {targets} names none of {', '.join(known)}")
        return sum(found)


def shape_of(model: ModelConfig, given: Mapping[str, int] | None = None) -> Shape:
    """The shape of a recipe's base model.

    Args:
        model: of the recipe.
        given: `parameters`, `layers`, `hidden` and, if wanted, `heads`, `kv_heads`, `intermediate`
            and `vocab` of a model whose config is not at hand.

    Raises:
        RecipeError: no config is at hand, or transformers does not know it.
    """
    if given:
        return _by_hand(given)
    path = base_path(model, to_load=False)
    config = _local(path) if model.path != SMOLLM2 else _local(path, needed=False)
    if config is not None:
        return counted(config, f"{path}/config.json, counted on PyTorch's meta device")
    if path in KNOWN:
        return KNOWN[path]
    raise RecipeError(
        f"model.path: the config of {path!r} is not on this machine, and a plan downloads nothing; "
        f"fetch it (hf download {path} config.json), or tell its shape: "
        "--parameters 14.7B --layers 40 --hidden 5120"
    )


def _local(path: str, needed: bool = True) -> dict[str, Any] | None:
    """The config of a folder, or of the hub's cache; None where there is none."""
    file = Path(path) / "config.json"
    if not Path(path).exists():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(path, "config.json")
        if not isinstance(cached, str):
            return None
        file = Path(cached)
    adapter = file.with_name("adapter_config.json")
    if not file.is_file() and adapter.is_file():
        base: str = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        return _local(base)
    if not file.is_file():
        if needed:
            raise RecipeError(f"model.path: {path!r} holds no config.json; give a model's folder")
        return None
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


def counted(config: Mapping[str, Any], source: str) -> Shape:
    """The shape that a config describes, its parameters counted on PyTorch's meta device.

    Raises:
        RecipeError: transformers cannot build it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(config)
    try:
        made: Any = AutoConfig.for_model(values.pop("model_type"), **values)
        # A padding token beyond the vocabulary would be refused; no count depends on it.
        made.pad_token_id = None
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(made)  # type: ignore[no-untyped-call]
    except (KeyError, ValueError) as error:
        raise RecipeError(f"model.path: its config describes no model: {error}") from None
    text = made.get_text_config()
    head = model.get_output_embeddings()
    linears = tuple(
        (name, module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    heads = text.num_attention_heads
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
        intermediate=text.intermediate_size,
        vocab=text.vocab_size,
        tied=bool(text.tie_word_embeddings),
        linears=linears,
        source=source,
    )


def _by_hand(given: Mapping[str, int]) -> Shape:
    """A shape that was told, the rest of it as in a Llama: heads of 128, a gated block of 3.5."""
    lacking = [key for key in ("parameters", "layers", "hidden") if not given.get(key)]
    if lacking:
        raise RecipeError(f"--{lacking[0]}: missing; parameters, layers and hidden go together")
    hidden, layers = given["hidden"], given["layers"]
    heads = given.get("heads") or max(1, hidden // 128)
    kv_heads = given.get("kv_heads") or heads
    intermediate = given.get("intermediate") or round(3.5 * hidden)
    size = hidden // heads
    block = [
        ("q_proj", hidden, heads * size),
        *((name, hidden, kv_heads * size) for name in ("k_proj", "v_proj")),
        ("o_proj", heads * size, hidden),
        *((name, hidden, intermediate) for name in ("gate_proj", "up_proj")),
        ("down_proj", intermediate, hidden),
    ]
    return Shape(
        parameters=given["parameters"],
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        intermediate=intermediate,
        vocab=given.get("vocab") or 100_000,
        tied=False,
        linears=tuple((f"layers.{k}.{name}", i, o) for k in range(layers) for name, i, o in block),
        source="told on the command line",
    )


def _phi3(
    parameters: int,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    mlp: int,
    vocab: int,
    source: str,
) -> Shape:
    size = hidden // heads
    block = [
        ("qkv_proj", hidden, (heads + 2 * kv_heads) * size),
        ("o_proj", heads * size, hidden),
        ("gate_up_proj", hidden, 2 * mlp),
        ("down_proj", mlp, hidden),
    ]
    linears = tuple((f"layers.{k}.{name}", i, o) for k in range(layers) for name, i, o in block)
    return Shape(
        parameters, layers, hidden, heads, kv_heads, size, mlp, vocab, False, linears, source
    )


KNOWN = {
    "microsoft/phi-4": _phi3(
        14_659_507_200, 40, 5120, 40, 10, 17920, 100_352, "published config of microsoft/phi-4"
    )
}
"""Shapes of models that a recipe of the project names, so that these can be planned where no hub is
at hand. A test counts them."""
