"""What is wrong with how a recipe's stages train: processes, packages, devices; before anything is
loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.context import StageEntry
from align.errors import RecipeError
from align.models.adapters import is_adapter
from align.models.load import base_path, cuda_devices, device_of
from align.settings import TrainingConfig
from pts.errors import ConfigError, MissingExtra, did_you_mean

if TYPE_CHECKING:
    from align.pipeline.recipe import Recipe

FLASH = "flash_attention_2"


def training_faults(recipe: Recipe) -> Iterator[str]:
    """A line a fault."""
    yield from _launch_faults(recipe)
    for entry in recipe.stages:
        if isinstance(entry.settings, TrainingConfig):
            yield from _quantisation_faults(recipe, entry, entry.settings)
            yield from _kernel_faults(recipe, entry, entry.settings)
            yield from _adapter_faults(recipe, entry, entry.settings)


def _launch_faults(recipe: Recipe) -> Iterator[str]:
    """What is wrong with the processes that are to train."""
    launch, n = recipe.launch, recipe.launch.processes
    if launch.strategy != "deepspeed" and launch.deepspeed_config:
        yield f"launch.deepspeed_config: has no place beside strategy {launch.strategy!r}"
    if n == 1:
        return
    for entry in recipe.stages:
        settings = entry.settings
        if not isinstance(settings, TrainingConfig):
            continue
        if settings.gradient_accumulation % n:
            yield (
                f"{entry.name}.gradient_accumulation: got {settings.gradient_accumulation}, which "
                f"{n} processes (launch.processes) cannot share; give a multiple of {n}, and a "
                "batch_size that leaves the rows of a step as they were"
            )
        if settings.checkpoint_problems and launch.strategy != "ddp":
            yield (
                f"{entry.name}.checkpoint_problems: needs whole weights in a process; set it to 0, "
                "or launch.strategy to ddp"
            )
    if launch.strategy == "deepspeed":
        if importlib.util.find_spec("deepspeed") is None:
            yield "launch.strategy: 'deepspeed' is not installed; pip install deepspeed"
        if launch.deepspeed_config and not Path(launch.deepspeed_config).is_file():
            yield f"launch.deepspeed_config: {launch.deepspeed_config!r}: no such file"
    if device_of(recipe.model) == "cuda" and n > (here := cuda_devices()):
        yield f"launch.processes: got {n}, but PyTorch finds {here} GPUs here; give {here} at most"


def _quantisation_faults(
    recipe: Recipe, entry: StageEntry, settings: TrainingConfig
) -> Iterator[str]:
    """What is wrong with weights in 4 bits."""
    if settings.lora is None or not settings.lora.load_in_4bit:
        return
    key, launch = f"{entry.name}.lora.load_in_4bit", recipe.launch
    if importlib.util.find_spec("bitsandbytes") is None:
        yield f"{key}: {MissingExtra('bitsandbytes', 'qlora')}"
    if launch.processes > 1 and launch.strategy != "ddp":
        yield (
            f"{key}: weights in 4 bits are whole in each process; set launch.strategy to ddp, not "
            f"{launch.strategy!r}"
        )


def _adapter_faults(recipe: Recipe, entry: StageEntry, settings: TrainingConfig) -> Iterator[str]:
    """Names of modules that the base model has not, or of its head, where its files tell."""
    if settings.lora is None or settings.lora.target_modules == "all-linear":
        return
    key, modules, head = f"{entry.name}.lora.target_modules", _modules(recipe), _head(recipe)
    known = sorted({name.rpartition(".")[2] for name in modules - {head}})
    for target in settings.lora.target_modules:
        if _names(target, head):
            yield (
                f"{key}: {target!r} is the output embedding, whose matrix the losses read "
                "themselves, so that it gets no adapter; leave it out"
            )
        elif modules and not any(_names(target, name) for name in modules):
            yield (
                f"{key}: the model has no module {target!r}"
                f"{did_you_mean(target, known) or '; known: ' + ', '.join(known)}"
            )


def _names(target: str, module: str) -> bool:
    """Whether a target means a module, as PEFT takes it: its name, or the end of it."""
    return f".{module}".endswith(f".{target}")


def _head(recipe: Recipe) -> str:
    """Name of the output embedding; empty where no config is at hand, or transformers knows none.

    The model is built without numbers: a head that is tied has no name in the files of weights.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        folder = Path(base_path(recipe.model, to_load=False))
        if is_adapter(folder) or not folder.is_dir():
            return ""
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config.pad_token_id = None  # one beyond the vocabulary would be refused
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except Exception:  # what transformers makes of a config is its own affair, and said elsewhere
        return ""
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), "")


def _modules(recipe: Recipe) -> set[str]:
    """Names of the modules with a matrix of weights; none where the files are not at hand."""
    from safetensors import SafetensorError, safe_open

    try:
        folder = Path(base_path(recipe.model, to_load=False))
    except ConfigError:
        return set()
    found = set()
    for file in () if is_adapter(folder) else folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="numpy") as tensors:
                names = tensors.keys()
                shapes = {name: tensors.get_slice(name).get_shape() for name in names}
        except (OSError, SafetensorError):
            return set()  # said elsewhere
        found |= {
            name.removesuffix(".weight")
            for name, shape in shapes.items()
            if name.endswith(".weight") and len(shape) == 2
        }
    return found


def _kernel_faults(recipe: Recipe, entry: StageEntry, settings: TrainingConfig) -> Iterator[str]:
    """What is wrong with the kernels that a stage asks for."""
    flash = settings.attn_implementation == FLASH
    if not flash and not settings.use_liger_kernel:
        return
    device, name = _device(recipe), entry.name
    asked = {"attn_implementation": FLASH} if flash else {}
    asked |= {"use_liger_kernel": "true"} if settings.use_liger_kernel else {}
    if device != "cuda":
        yield from (
            f"{name}.{key}: got {value}, which needs a CUDA device, but the model is on {device}; "
            "leave the key out"
            for key, value in asked.items()
        )
    if settings.use_liger_kernel and importlib.util.find_spec("liger_kernel") is None:
        yield f"{name}.use_liger_kernel: {MissingExtra('liger-kernel', 'liger')}"
    if not flash:
        return
    key = f"{name}.attn_implementation"
    if importlib.util.find_spec("flash_attn") is None:
        yield (
            f"{key}: flash-attn is not installed; run: pip install flash-attn --no-build-isolation"
        )
    if recipe.model.dtype != "bfloat16":
        yield f"{key}: {FLASH} takes 16 bits; set model.dtype to bfloat16, or give sdpa"
    # Weights that are all trained are in float32, and only the trainer's passes are cast.
    if settings.lora is None and hasattr(settings, "reference"):
        yield f"{key}: the reference is asked in float32 unless there is lora; give lora, or sdpa"
    if settings.checkpoint_problems:
        yield (
            f"{name}.checkpoint_problems: answers are not sampled with {FLASH}; set it to 0, or "
            "attn_implementation to sdpa"
        )


def _device(recipe: Recipe) -> str:
    """The device that trains, in words if it is not here."""
    try:
        return device_of(recipe.model)
    except RecipeError:
        return f"{recipe.model.device}, which PyTorch does not find here"
