"""Pretrain a base model from a recipe, on one core, in minutes.

    pretrain(load_base_recipe(path), Path("out"))

Batch k is a function of the recipe's seed and of k alone, and the network has no dropout, so a
checkpoint needs no generator state: weights, optimizer moments and the step number are enough to
go on exactly where a killed run stopped. The loss looks mainly at what can be learnt: answers
weigh 1, numbers drawn at random next to nothing.

Not covered: more than one process, GPUs, any text but the textbook.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import Phi3ForCausalLM, PreTrainedTokenizerFast

from align.pretraining.nano import (
    CHAT_TOKENS,
    BaseRecipe,
    PretrainingConfig,
    build_model,
    build_tokenizer,
)
from align.tasks.word_problems.textbook import Document, documents
from pts.errors import ConfigError
from pts.files import folder_fault

_STATE = "pretraining-state.safetensors"
_LOG_STEPS = 50

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids [B, T] (int64) and the loss weight of each token [B, T] (float32)."""

    ids: Tensor
    weights: Tensor


def pretrain(recipe: BaseRecipe, out: Path, report: Report = print) -> None:
    """Train the recipe's base model and save it, its tokenizer and its log under `out`.

    A run that was killed goes on from its last checkpoint. Raises `ConfigError` when `out` holds
    the checkpoint of another recipe, or a damaged one, or is no folder.
    """
    if fault := folder_fault(out):
        raise ConfigError(f"--output: {out}: {fault}")
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer(recipe)
    model = build_model(recipe, tokenizer)
    optimizer = _optimizer(model, recipe.training)
    log = _restore(out, recipe, model, optimizer)
    _train(recipe, tokenizer, model, optimizer, log, out, report)
    _open_chat_tokens(model, tokenizer)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "training_log.json").write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    (out / _STATE).unlink(missing_ok=True)


def batch(recipe: BaseRecipe, tokenizer: PreTrainedTokenizerFast, step: int) -> Batch:
    """The batch of one step."""
    training = recipe.training
    phase, within = training.phase(step)
    rows, length, text = training.rows, training.row_tokens, recipe.textbook
    if within < phase.drill_steps:
        length, text = length // 2, text.drills_alone(within / phase.drill_steps)
    elif step % training.long_every == 0:
        rows, length = rows // 4, length * 4
    drawn = documents(text, phase.solutions, f"{recipe.seed}/{step}")
    packed = [_row(drawn, tokenizer, length, training.given_weight) for _ in range(rows)]
    ids, weights = zip(*packed, strict=True)
    return Batch(torch.tensor(ids), torch.tensor(weights))


def _row(
    drawn: Iterator[Document],
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    given_weight: float,
) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    weights: list[float] = []
    while len(ids) < length:
        for part in next(drawn):
            piece = tokenizer.backend_tokenizer.encode(part.text).ids
            ids += piece
            weights += [1.0 if part.learnt else given_weight] * len(piece)
        ids.append(int(tokenizer.eos_token_id))
        weights.append(1.0)
    return ids[:length], weights[:length]


def loss_of(model: Phi3ForCausalLM, batch: Batch) -> Tensor:
    """Weighted mean cross-entropy of the next token, in nats."""
    logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
    )
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def rate(training: PretrainingConfig, step: int) -> float:
    """The learning rate of a step: in each phase linear up, then linear down to nought."""
    phase, within = training.phase(step)
    rise = max(1, round(training.warmup * phase.steps))
    fall = max(1, phase.steps - rise)
    return phase.learning_rate * min((within + 1) / rise, (phase.steps - within) / fall)


def _optimizer(model: Phi3ForCausalLM, training: PretrainingConfig) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)


def _train(
    recipe: BaseRecipe,
    tokenizer: PreTrainedTokenizerFast,
    model: Phi3ForCausalLM,
    optimizer: torch.optim.AdamW,
    log: list[dict[str, float]],
    out: Path,
    report: Report,
) -> None:
    training = recipe.training
    first = int(log[-1]["step"]) if log else 0
    seconds = log[-1]["seconds"] if log else 0.0
    start = saved = time.monotonic()
    losses: list[float] = []
    model.train()
    for step in range(first, training.steps):
        if training.phase(step)[1] == 0:
            optimizer = _optimizer(model, training)
        losses.append(_update(recipe, tokenizer, model, optimizer, step))
        done = step + 1
        if done % _LOG_STEPS and done < training.steps:
            continue
        spent = time.monotonic() - start
        mean = sum(losses) / len(losses)
        log.append({"step": done, "loss": round(mean, 4), "seconds": round(seconds + spent, 1)})
        losses.clear()
        left = spent / (done - first) * (training.steps - done)
        report(f"step {done}/{training.steps} loss {mean:.4f} {spent:.0f} s, {left:.0f} s to go")
        if time.monotonic() - saved > training.checkpoint_seconds:
            _save(out, recipe, model, optimizer, log)
            saved = time.monotonic()


def _update(
    recipe: BaseRecipe,
    tokenizer: PreTrainedTokenizerFast,
    model: Phi3ForCausalLM,
    optimizer: torch.optim.AdamW,
    step: int,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = rate(recipe.training, step)
    loss = loss_of(model, batch(recipe, tokenizer, step))
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.training.clip)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def _open_chat_tokens(model: Phi3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Give the chat tokens, which the text never shows, a start near the end of text.

    Left at their initial draw they are barely learnt in a short SFT. The smaller norm keeps the
    base model from preferring them to the end of text itself.
    """
    with torch.no_grad():
        table = model.get_parameter("model.embed_tokens.weight")
        for token in CHAT_TOKENS:
            table[tokenizer.convert_tokens_to_ids(token)] = 0.7 * table[tokenizer.eos_token_id]


def _save(
    out: Path,
    recipe: BaseRecipe,
    model: Phi3ForCausalLM,
    optimizer: torch.optim.AdamW,
    log: list[dict[str, float]],
) -> None:
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{key}": value.clone() for key, value in state.items()}
    unfinished = out / f"{_STATE}.part"
    save_file(tensors, unfinished, {"recipe": recipe.digest, "log": json.dumps(log)})
    os.replace(unfinished, out / _STATE)


def _restore(
    out: Path, recipe: BaseRecipe, model: Phi3ForCausalLM, optimizer: torch.optim.AdamW
) -> list[dict[str, float]]:
    path = out / _STATE
    if not path.exists():
        return []
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            held = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ConfigError(
            f"{path}: damaged ({error}); delete it, and the training starts again"
        ) from None
    if meta.get("recipe") != recipe.digest:
        raise ConfigError(
            f"{path} belongs to recipe {meta.get('recipe')}, this one is {recipe.digest}; "
            "choose another output folder, or delete the file to start again"
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(held[f"model.{name}"])
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in held.items():
        if key.startswith("adam."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    log: list[dict[str, float]] = json.loads(meta["log"])
    return log
