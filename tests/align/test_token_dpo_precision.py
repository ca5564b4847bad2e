"""Token DPO in 16 bits: which heads are refused, and what is computed in which precision."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainingArguments

from align.errors import StageError
from align.settings import ModelConfig
from align.stages import token_dpo
from align.training import loop as training
from align.training.reference_kl import ReferenceKL, held_rows
from align.training.token_dpo import (
    TokenDPOTrainer,
    TokenRow,
    all_margins,
    check_head,
    collate,
)
from pts.data.pairs import write_pairs
from pts.engines.digest import model_digest
from tests.align import tiny
from tests.align.test_reference_kl import answers
from tests.align.test_token_dpo import (
    BETA,
    SETTINGS,
    VOCAB,
    plain_arguments,
    random_rows,
    token_pairs,
    with_reference,
)

# The head


def unlike_rows(seed: int, vocab: int = VOCAB) -> list[TokenRow]:
    """Prompts of unlike length, which go through the body in several groups."""
    rng = random.Random(seed)
    lengths = [rng.choice([20, 40, 200, 230]) for _ in range(8)]
    return [TokenRow(tuple(rng.randrange(5, vocab) for _ in range(n)), 1, 2) for n in lengths]


def in_16_bits(largest: float) -> Any:
    """A model in bfloat16 whose logits reach about as far as a trained model's."""
    model = tiny.model(VOCAB, hidden_size=128)
    with torch.no_grad():
        found = model(torch.tensor([row.prompt[:20] for row in unlike_rows(0)])).logits
        model.lm_head.weight *= largest / found.abs().max()
    return model.to(torch.bfloat16)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(12))
def test_rounding_in_16_bits_is_no_change_after_the_head(seed: int) -> None:
    check_head(in_16_bits(20.0), unlike_rows(seed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "change",
    [lambda logits: logits * 0.9, lambda logits: 30 * torch.tanh(logits / 30)],
    ids=["scale", "soft cap"],
)
def test_what_changes_logits_is_refused_in_16_bits_too(
    change: Callable[[Tensor], Tensor], seed: int
) -> None:
    model = in_16_bits(20.0)
    forward = model.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = change(output.logits)
        return output

    model.forward = changed
    with pytest.raises(StageError, match="changes its logits"):
        check_head(model, unlike_rows(seed))


# Mixed precision: weights in float32, products in bfloat16


def arguments(folder: Path, mixed: bool = True) -> TrainingArguments:
    return TrainingArguments(**{**plain_arguments(folder), "max_steps": 1}, bf16=mixed)


def types_in(model: Any) -> set[tuple[str, torch.dtype]]:
    """Filled with the types of what body and head give."""
    seen: set[tuple[str, torch.dtype]] = set()
    for name, module in (("body", model.model.layers[0].mlp.down_proj), ("head", model.lm_head)):
        module.register_forward_hook(lambda _, __, out, name=name: seen.add((name, out.dtype)))
    return seen


@pytest.mark.parametrize("kl_weight", [0.0, 1.0])
@pytest.mark.parametrize("mixed", [True, False])
def test_body_and_head_are_in_the_trainer_s_precision(
    mixed: bool, kl_weight: float, tmp_path: Path
) -> None:
    policy = tiny.model(VOCAB)
    rows = with_reference(random_rows(4), policy)
    held = ReferenceKL(policy, held_rows(answers(4), set()), 4, seed=0) if kl_weight else None
    seen = types_in(policy)
    trainer = TokenDPOTrainer(
        policy, arguments(tmp_path, mixed), rows, BETA, kl_weight=kl_weight, held=held
    )
    trainer.train()
    kind = torch.bfloat16 if mixed else torch.float32
    assert seen == {("body", kind), ("head", kind)}
    assert trainer.compute_loss(policy, collate(rows)).dtype == torch.float32


def test_the_head_learns_from_the_kl_in_mixed_precision(tmp_path: Path) -> None:
    """What is only watched casts the head without a gradient; that cast must not be used again."""
    policy, reference = tiny.model(VOCAB, seed=1), tiny.model(VOCAB, seed=2)
    rows, held_to = with_reference(random_rows(4), reference), held_rows(answers(6), set())
    gradients = []
    for mixed in (True, False):
        policy.zero_grad()
        held = ReferenceKL(reference, held_to, 6, seed=0)
        trainer = TokenDPOTrainer(
            policy, arguments(tmp_path, mixed), rows, BETA, kl_weight=1.0, held=held
        )
        trainer.compute_loss(policy, collate(rows)).backward()
        assert policy.lm_head.weight.grad is not None
        gradients.append(policy.lm_head.weight.grad.clone())
    ours, whole = gradients
    assert float((ours - whole).norm() / whole.norm()) < 0.05


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("base"))


def test_a_stage_in_mixed_precision_starts_at_its_reference(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU with model.dtype bfloat16; here on the CPU."""
    monkeypatch.setattr(training, "mixed", lambda context: True)
    pairs = tmp_path / "pairs.jsonl"
    write_pairs(pairs, token_pairs(model_digest(base)))
    context = tiny.context(base, tmp_path / "run", pairs=pairs, token_dpo=SETTINGS)
    token_dpo.run(context)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["gain"] == pytest.approx(0, abs=2e-2)
    known = json.loads((tmp_path / "run" / "reference.json").read_text())["margins"]
    policy, _ = training.load_trainable(base, context.recipe.model, context.settings)
    rows = [TokenRow(p.prompt_ids, p.chosen, p.rejected) for p in token_pairs("")]
    with torch.autocast("cpu", torch.bfloat16):
        assert known == pytest.approx(all_margins(policy, rows, 4), abs=1e-6)
    assert known != pytest.approx(all_margins(policy, rows, 4), abs=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_only_16_bits_on_a_gpu_are_mixed(
    dtype: Any, device: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "device_of", lambda model: model.device)
    context = tiny.context(base, tmp_path, sft={})
    model = ModelConfig(path=str(base), dtype=dtype, device=device)
    recipe = context.recipe.model_copy(update={"model": model})
    found = training.mixed(dataclasses.replace(context, recipe=recipe))
    assert found == (dtype == "bfloat16" and device == "cuda")
