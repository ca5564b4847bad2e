"""What all training stages share: arguments, adapters, checkpoints, metrics, the final save.

    result = begin(context, config)              # not None: it was killed after its last write
    policy, tokenizer = load_trainable(context.policy, recipe.model, config)
    trainer = SomeTrainer(policy, args=arguments(context, config, "sft"), ...)
    fit(trainer, context, tokenizer, tokens)     # continues from the last whole checkpoint
    finish(context, trainer.model, tokenizer, metrics)

The trainers themselves are in `align.training.token_dpo` (token-level DPO on transformers' Trainer)
and `align.training.trl` (SFT and full-length DPO on TRL's trainers). These three files and
`align.training.quantized` are the only ones that touch TRL, PEFT and accelerate.
`align.training.launch` runs the same code in several processes; here rank 0 alone writes.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from safetensors import SafetensorError, safe_open
from transformers import PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.utils.logging import disable_progress_bar

from align.context import StageContext, StageResult
from align.models.load import device_of, load_policy, save_policy
from align.settings import LoRAConfig, ModelConfig, TrainingConfig
from align.training import record
from align.training.backbone import plain
from align.training.checkpoints import MEASURED, CheckpointChoice, on_dev
from align.training.monitors import METRICS, MetricsLogger, ProgressBar
from align.training.quantized import in_4bit, loading, on_own_weights
from align.training.ranks import outline, rank, wait_for_all, world
from align.training.record import CHECKPOINTS
from align.training.sharding import let_cpus_shard, sharding
from align.training.trackers import reporting, tracked

disable_progress_bar()  # type: ignore[no-untyped-call]
_LARGE = 1_000_000_000
"""Parameters from which activations are recomputed to save memory."""


def load_trainable(path: str | Path, model: ModelConfig, config: TrainingConfig) -> tuple[Any, Any]:
    """Policy and tokenizer to train.

    Weights that are all trained are held in float32, whatever the recipe's dtype: updates of
    1e-6 vanish in bfloat16. `finish` saves them in the recipe's dtype again. Under LoRA the frozen
    weights keep the recipe's dtype, or are held in 4 bits, and PEFT holds the adapter in float32.

    Raises:
        EngineError: as `load_policy`.
        MissingExtra: bitsandbytes, which 4 bits need, is not installed.
    """
    options: dict[str, Any] = {}
    if config.attn_implementation != "auto":
        options["attn_implementation"] = config.attn_implementation
    if config.lora is None:
        return load_policy(path, model.model_copy(update={"dtype": "float32"}), options)
    if config.lora.load_in_4bit:
        options |= loading(config.lora, model.dtype, device_of(model))
    return load_policy(path, model, options)


def arguments(
    context: StageContext,
    config: TrainingConfig,
    seed: str,
    policy: Any,
    kind: type[TrainingArguments] = TrainingArguments,
    **more: Any,
) -> Any:
    """Training arguments of a stage. `kind` is the class that a TRL trainer wants."""
    device = device_of(context.recipe.model)
    with warnings.catch_warnings():
        # Its new name is unknown to the oldest transformers that is supported.
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated")
        made = kind(
            **_arguments(context, config, seed, device),
            gradient_checkpointing=device != "cpu" and _is_large(policy),
            **sharding(context.recipe.launch),
            **reporting(context),
            **more,
        )
    let_cpus_shard(made)
    _use_one_gpu(made)
    return made


def _use_one_gpu(made: TrainingArguments) -> None:
    """Where PyTorch sees several GPUs, transformers would spread one process over all of them
    (nn.DataParallel): other rows in a step, and losses that cannot be gathered."""
    _ = made.device  # counts them
    made._n_gpu = min(1, made.n_gpu)


def _arguments(
    context: StageContext, config: TrainingConfig, seed: str, device: str
) -> dict[str, Any]:
    schedule: str = config.schedule
    if schedule == "constant" and config.warmup_ratio:
        schedule = "constant_with_warmup"  # transformers' `constant` knows no warm-up
    return {
        "output_dir": str(context.folder / CHECKPOINTS),
        "learning_rate": config.learning_rate,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation // world(),
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "warmup_steps": config.warmup_ratio,
        "lr_scheduler_type": schedule,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "logging_steps": 1,
        "save_steps": config.save_steps,
        "save_total_limit": 2,
        "seed": context.seed(seed),
        "use_cpu": device == "cpu",
        "bf16": mixed(context),
        "dataloader_pin_memory": device == "cuda",
        "disable_tqdm": True,
        "use_liger_kernel": config.use_liger_kernel,
        # Its fused loss would replace the forward pass that TRL's losses and ours go through.
        "liger_kernel_config": {"fused_linear_cross_entropy": False},
        "logging_nan_inf_filter": False,
    }


def mixed(context: StageContext) -> bool:
    """Whether matrices are multiplied in bfloat16 while weights are held in float32."""
    model = context.recipe.model
    return model.dtype == "bfloat16" and device_of(model) == "cuda"


def cast(context: StageContext) -> AbstractContextManager[Any]:
    """Context: what is measured before there is a trainer is computed in its precision. So the
    margins of the reference are those that the policy has before its first step."""
    if not mixed(context):
        return nullcontext()
    return torch.autocast(device_of(context.recipe.model), torch.bfloat16)


def _is_large(model: Any) -> bool:
    return int(plain(model).num_parameters()) >= _LARGE  # numbers in 4 bits are counted apart


def switch_off_dropout(model: Any) -> None:
    """Set every dropout rate to 0: a margin must not depend on the draw of a mask.

    Some modules hold their rates as plain numbers (OPT's `dropout`, Bloom's `hidden_dropout`, the
    `layerdrop` of whole layers). The config, which is saved with the model, keeps its own.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, rate in [*vars(module).items()]:
            is_rate = "dropout" in name or name == "layerdrop"
            if is_rate and isinstance(rate, float) and 0 <= rate < 1:
                setattr(module, name, 0.0)


def adapter(config: LoRAConfig | None, model: Any, new_tokens: Sequence[int] = ()) -> Any:
    """PEFT's description of the adapter, or None to train all weights.

    Rows of new tokens are trained as well, in the input embedding and in an untied head. The
    adapter's own dropout (`lora.dropout`) is for SFT: the DPO stages switch it off with all other
    dropout, since a policy must begin as its reference.
    """
    if config is None:
        return None
    from peft import LoraConfig

    targets = config.target_modules
    layers = [model.get_input_embeddings()]
    if not model.config.tie_word_embeddings:
        layers.append(model.get_output_embeddings())
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    rows = {names[id(layer)]: list(new_tokens) for layer in layers}
    return LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        trainable_token_indices=rows if new_tokens else None,
        task_type="CAUSAL_LM",
    )


def with_adapter(model: Any, peft_config: Any, seed: int) -> Any:
    """The model itself, or wrapped with a fresh adapter, drawn with the seed."""
    if peft_config is None:
        return model
    from peft import get_peft_model

    set_seed(seed)
    if _is_large(model):
        model.enable_input_require_grads()
    return get_peft_model(model, peft_config)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; torn ones are passed over."""
    found = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
    newest_first = sorted(found, key=lambda path: int(path.name[11:]), reverse=True)
    return next((path for path in newest_first if _whole(path)), None)


def _whole(checkpoint: Path) -> bool:
    """True if every file was written to its end. `trainer_state.json` is written last."""
    weights = list(checkpoint.glob("*.safetensors"))
    archives = [path for path in checkpoint.iterdir() if path.suffix in {".pt", ".pth", ".bin"}]
    needed = ["scheduler.pt", "rng_state*.pth"]
    if not (checkpoint / "latest").exists():  # DeepSpeed's mark: its optimizer has a folder
        needed.append("optimizer.*")
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        for path in weights:
            with safe_open(path, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    there = bool(weights) and all(any(checkpoint.glob(pattern)) for pattern in needed)
    return there and all(zipfile.is_zipfile(path) for path in archives)


def fit(
    trainer: Trainer, context: StageContext, tokenizer: Any, loss_tokens: int
) -> dict[str, Any]:
    """Train to the end, from the last whole checkpoint if there is one; in `trainer.model` is the
    whole model then (with `checkpoint_problems` the best checkpoint), in rank 0 at least.

    Args:
        tokenizer: the policy's.
        loss_tokens: tokens of the data that carry loss.

    Returns:
        Steps, the mean loss of the last tenth of the logged steps, and the trained tokens: those
        with loss, times the passes over them; and which checkpoint was chosen.

    Raises:
        StageError: the loss is not finite.
    """
    trainer.remove_callback(PrinterCallback)
    choice = None
    if rank() == 0:
        trainer.add_callback(MetricsLogger(context.folder / METRICS))
    if rank() == 0 and context.progress:
        trainer.add_callback(ProgressBar(context.folder.name))
    if rank() == 0 and context.settings.checkpoint_problems:
        choice = CheckpointChoice(context.folder, on_dev(context, tokenizer))
        trainer.add_callback(choice)
    checkpoint = last_checkpoint(context.folder / CHECKPOINTS)
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    whole: Any = outline(trainer.model) if sharded else trainer.model
    with tracked(context):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if sharded:
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if rank() == 0:
            whole.load_state_dict(weights, assign=True)
            plain(whole).tie_weights()
        trainer.model = whole
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tail = losses[-max(1, len(losses) // 10) :]
    return {
        "steps": trainer.state.global_step,
        "final_loss": sum(tail) / max(1, len(tail)),
        "trained_tokens": round(loss_tokens * (trainer.state.epoch or 0)),
        **(choice.take(partial(_put, trainer.model)) if choice else {}),
    }


def _put(model: Any, weights: dict[str, Any]) -> None:
    """Weights of a checkpoint's file: an adapter's, or (a part of) the model's, tied ones once."""
    if hasattr(model, "merge_and_unload"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, weights)
        return
    strange = model.load_state_dict(weights, strict=False).unexpected_keys
    assert not strange, strange
    model.tie_weights()


def finish(
    context: StageContext,
    model: Any,
    tokenizer: Any,
    metrics: dict[str, Any],
    files: Sequence[str] = (),
) -> StageResult:
    """Merge the adapter, save the policy whole or not at all, remove the checkpoints.

    Args:
        context: the stage.
        model: what was trained, a PEFT model or a plain one.
        tokenizer: saved beside it, chat template included.
        metrics: for the manifest.
        files: names of the stage's other outputs in its folder.
    """
    if rank() == 0:
        _save(context, model, tokenizer)
        own = [METRICS, *([MEASURED] if (context.folder / MEASURED).exists() else [])]
        record.close(context, metrics, [*files, *own])
    wait_for_all()
    result = record.finished(context)
    assert result is not None
    return result


def _save(context: StageContext, model: Any, tokenizer: Any) -> None:
    """The policy stands in the stage's folder whole or not at all."""
    if in_4bit(model):
        on_cpu = context.recipe.model.model_copy(update={"device": "cpu"})
        model = on_own_weights(model, load_policy(context.policy, on_cpu)[0])
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model = model.to(getattr(torch, context.recipe.model.dtype))
    model.config.use_cache = True
    temporary, folder = context.folder / ".model.tmp", context.folder / "model"
    shutil.rmtree(temporary, ignore_errors=True)
    save_policy(model, tokenizer, temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
