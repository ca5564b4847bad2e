"""QLoRA (Dettmers et al. 2023): the frozen matrices in 4 bits while an adapter is trained on them.

bitsandbytes holds every linear matrix but the head in 4 bits, block by block, and multiplies in the
recipe's dtype. The policy that a stage leaves behind is whole, as after LoRA: its adapter is merged
into the weights that the stage started from, as they were before. So what is evaluated differs from
what was trained by the rounding of the frozen matrices.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from align.settings import LoRAConfig
from pts.errors import MissingExtra


def in_4bit(model: Any) -> bool:
    """Whether a model's matrices are in 4 bits, inside PEFT's wrapper too."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def loading(lora: LoRAConfig, dtype: str, device: str) -> dict[str, Any]:
    """Arguments with which transformers loads a model in 4 bits, on a device.

    Raises:
        MissingExtra: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("bitsandbytes", "qlora")
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type=lora.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=lora.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        ),
        "device_map": {"": torch.cuda.current_device() if device == "cuda" else device},
    }


def hold_adapter_in_float32(model: Any) -> None:
    """Undo what TRL does to the adapter of a model in 4 bits: updates of 1e-6 vanish in
    bfloat16."""
    if in_4bit(model):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


def on_own_weights(trained: Any, own: Any) -> Any:
    """The adapter that was trained on a model in 4 bits, around that model's own weights.

    Args:
        trained: PEFT's model; it is taken apart.
        own: the policy that the stage started from, on the CPU.

    Returns:
        PEFT's model, to be merged. What the stage changed before the first step (rows of new
        tokens, stop ids) is in it.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    weights = get_peft_model_state_dict(trained)
    adapter = trained.peft_config["default"]
    rounded = trained.unload()
    rows = rounded.get_input_embeddings().weight.shape[0]
    if rows != own.get_input_embeddings().weight.shape[0]:
        own.resize_token_embeddings(rows, mean_resizing=False)
    shapes = {name: value.shape for name, value in own.state_dict().items()}
    kept = {
        name: value.cpu()
        for name, value in rounded.state_dict().items()
        if name in shapes and value.is_floating_point() and value.shape == shapes[name]
    }
    own.load_state_dict(kept, strict=False)
    own.tie_weights()
    for key in ("eos_token_id", "pad_token_id"):
        setattr(own.config, key, getattr(rounded.config, key))
    own.generation_config = rounded.generation_config
    whole: Any = get_peft_model(own, adapter)
    set_peft_model_state_dict(whole, weights)
    return whole
