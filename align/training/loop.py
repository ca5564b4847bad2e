"""What all training stages share: arguments, adapters, checkpoints, metrics, the final save.

    result = begin(context, config)              # not None: it was killed after its last write
    policy, tokenizer = load_trainable(context.policy, recipe.model, config)
    trainer = SomeTrainer(policy, args=arguments(context, config, "sft"), ...)
    fit(trainer, context, tokenizer, tokens)     # continues from the last whole checkpoint
    finish(context, trainer.model, tokenizer, metrics)

The trainers themselves are in `align.training.token_dpo` (token-level DPO on transformers' Trainer)
and `align.training.trl` (SFT and full-length DPO on TRL's trainers). These three files are the
only ones that touch TRL, PEFT and accelerate. One process, one device:
sharded training over several GPUs is not covered.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import warnings
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

from align.context import StageContext, StageResult
from align.errors import StageError
from align.models.load import device_of, load_policy, save_policy
from align.settings import LoRAConfig, ModelConfig, TrainingConfig
from align.training.checkpoints import MEASURED, CheckpointChoice, on_dev
from pts.files import write_json

CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
_SETTINGS = "settings.json"
_FINISHED = "finished.json"
disable_progress_bar()  # type: ignore[no-untyped-call]
_LARGE = 1_000_000_000
"""Parameters from which activations are recomputed to save memory."""


def load_trainable(path: str | Path, model: ModelConfig, config: TrainingConfig) -> tuple[Any, Any]:
    """Policy and tokenizer to train.

    Weights that are all trained are held in float32, whatever the recipe's dtype: updates of
    1e-6 vanish in bfloat16. `finish` saves them in the recipe's dtype again. Under LoRA the frozen
    weights keep the recipe's dtype, and PEFT holds the adapter in float32.
    """
    dtype = model.dtype if config.lora else "float32"
    return load_policy(path, model.model_copy(update={"dtype": dtype}))


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
        return kind(
            **_arguments(context, config, seed, device),
            gradient_checkpointing=device != "cpu" and _is_large(policy),
            **more,
        )


def _arguments(
    context: StageContext, config: TrainingConfig, seed: str, device: str
) -> dict[str, Any]:
    return {
        "output_dir": str(context.folder / CHECKPOINTS),
        "learning_rate": config.learning_rate,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "warmup_steps": config.warmup_ratio,
        "lr_scheduler_type": config.schedule,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "logging_steps": 1,
        "save_steps": config.save_steps,
        "save_total_limit": 2,
        "seed": context.seed(seed),
        "use_cpu": device == "cpu",
        "bf16": device == "cuda" and context.recipe.model.dtype == "bfloat16",
        "dataloader_pin_memory": device == "cuda",
        "disable_tqdm": True,
        "report_to": "none",
        "logging_nan_inf_filter": False,
    }


def _is_large(model: Any) -> bool:
    size: int = sum(p.numel() for p in model.parameters())
    return size >= _LARGE


def switch_off_dropout(model: Any) -> None:
    """Set every dropout rate to 0: a margin must not depend on the draw of a mask."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def adapter(config: LoRAConfig | None, model: Any, new_tokens: Sequence[int] = ()) -> Any:
    """PEFT's description of the adapter, or None to train all weights.

    Rows of new tokens are trained as well, in the input embedding and in an untied head.
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
    archives = [checkpoint / name for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")]
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        for path in weights:
            with safe_open(path, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return bool(weights) and all(zipfile.is_zipfile(path) for path in archives)


def fit(
    trainer: Trainer, context: StageContext, tokenizer: Any, loss_tokens: int
) -> dict[str, Any]:
    """Train to the end, from the last whole checkpoint if there is one; with `checkpoint_problems`
    the best checkpoint is in `trainer.model` then.

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
    trainer.add_callback(MetricsLogger(context.folder / METRICS))
    if context.progress:
        trainer.add_callback(ProgressBar(context.folder.name))
    choice = None
    if context.settings.checkpoint_problems:
        choice = CheckpointChoice(context.folder, on_dev(context, tokenizer))
        trainer.add_callback(choice)
    checkpoint = last_checkpoint(context.folder / CHECKPOINTS)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
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


class MetricsLogger(TrainerCallback):
    """Writes what a trainer logs to metrics.jsonl, one step a line, and stops on NaN."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop the lines after the checkpoint that is continued: they are made again."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n")]
        kept = [line for line in kept if json.loads(line)["step"] <= state.global_step]
        self.path.write_text("".join(kept), encoding="utf-8")

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Append a line."""
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise StageError(
                f"{self.path.parent.name}: the loss is {logs['loss']} at step {state.global_step}; "
                "lower learning_rate or max_grad_norm"
            )
        with self.path.open("a", encoding="utf-8") as file:
            # TRL counts tokens from 0 again when a run is continued.
            kept = {name: value for name, value in logs.items() if name != "num_tokens"}
            file.write(json.dumps({"step": state.global_step, **kept}) + "\n")


class ProgressBar(TrainerCallback):
    """Steps done, steps a second, time left and the loss, on standard error."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar where training begins or continues."""
        pause = 0.5 if sys.stderr.isatty() else 20.0
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.name,
            unit="step",
            mininterval=pause,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move on."""
        self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Show the loss."""
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.4g}", refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the full bar behind."""
        self.bar.close()


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
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model = model.to(getattr(torch, context.recipe.model.dtype))
    model.config.use_cache = True
    temporary, folder = context.folder / ".model.tmp", context.folder / "model"
    shutil.rmtree(temporary, ignore_errors=True)
    save_policy(model, tokenizer, temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    own = [METRICS, *([MEASURED] if (context.folder / MEASURED).exists() else [])]
    write_json(context.folder / _FINISHED, {"metrics": metrics, "files": [*files, *own]})
    shutil.rmtree(context.folder / CHECKPOINTS, ignore_errors=True)
    result = _finished(context)
    assert result is not None
    return result


def read_stored(file: Path) -> dict[str, Any]:
    """What a stage has left for itself in a JSON file.

    Raises:
        StageError: the file is damaged.
    """
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise StageError(
            f"{file}: damaged ({error}); delete this stage's folder to start the stage anew"
        ) from None


def begin(context: StageContext, config: TrainingConfig) -> StageResult | None:
    """Claim the stage's folder; the result if all but the return was done before.

    Raises:
        StageError: the folder holds the beginnings of the stage with other settings.
    """
    recipe = context.recipe
    settings = {
        "stage": config.model_dump(mode="json"),
        "seed": recipe.seed,
        "model": recipe.model.model_dump(mode="json", exclude={"path"}),
        "task": recipe.task.model_dump(mode="json"),
        "sampling": recipe.sampling.model_dump(mode="json"),
        **context.digests,
    }
    file = context.folder / _SETTINGS
    context.folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        write_json(file, settings)
    elif (old := read_stored(file)) != settings:
        keys = sorted(old.keys() | settings.keys())
        changed = ", ".join(key for key in keys if old.get(key) != settings.get(key))
        raise StageError(
            f"{context.folder}: begun with other settings or files ({changed}); "
            "restore them, or delete this folder to start the stage anew"
        )
    return _finished(context)


def _finished(context: StageContext) -> StageResult | None:
    record = context.folder / _FINISHED
    model = context.folder / "model"
    if not record.is_file() or not model.is_dir():
        return None
    data = read_stored(record)
    shutil.rmtree(context.folder / CHECKPOINTS, ignore_errors=True)
    files = tuple(context.folder / name for name in data["files"])
    return StageResult(model=model, metrics=data["metrics"], outputs=(model, *files))
