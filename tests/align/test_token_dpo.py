from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, TrainingArguments

from align.errors import StageError
from align.settings import LoRAConfig
from align.stages import token_dpo
from align.stages.token_dpo import TokenDPOConfig
from align.training import loop as training
from align.training import token_dpo as training_token
from align.training.token_dpo import TokenRow
from pts.data.pairs import write_pairs
from pts.engines.digest import model_digest
from pts.stats import jeffreys, newcombe
from pts.types import Ids, TokenPair
from tests.align import tiny
from tests.align.test_sft import kill_at

VOCAB = 29
STEPS = 5
BETA = 0.7


def random_rows(n: int, seed: int = 0, vocab: int = VOCAB) -> list[TokenRow]:
    """Pairs on few paths, so that prompts of a batch share prefixes."""
    rng = random.Random(seed)
    paths = [tuple(rng.randrange(5, vocab) for _ in range(14)) for _ in range(3)]
    rows = []
    for _ in range(n):
        chosen, rejected = rng.sample(range(5, vocab), 2)
        rows.append(TokenRow(rng.choice(paths)[: rng.randrange(3, 15)], chosen, rejected))
    return rows


def with_reference(rows: Sequence[TokenRow], reference: Any) -> list[TokenRow]:
    found = training_token.all_margins(reference, rows, 4)
    return [
        TokenRow(r.prompt, r.chosen, r.rejected, r.weight, m)
        for r, m in zip(rows, found, strict=True)
    ]


def plain_margin(model: Any, row: TokenRow) -> float:
    """By two forward passes of the whole sequences, log-probabilities subtracted."""

    def logp(token: int) -> float:
        logits = model(torch.tensor([[*row.prompt, token]])).logits
        return float(logits[0, -2].log_softmax(-1)[token])

    with torch.no_grad():
        return logp(row.chosen) - logp(row.rejected)


def test_margins_equal_two_plain_passes() -> None:
    model, rows = tiny.model(VOCAB), random_rows(9)
    found = training_token.all_margins(model, rows, 4)
    assert found == pytest.approx([plain_margin(model, row) for row in rows], abs=1e-5)


def test_prompts_on_one_path_share_its_row() -> None:
    prompts: list[Ids] = [(1, 2), (1, 2, 3), (1,), (2, 1), (1, 2, 4), (1, 2, 3)]
    paths, row_of = training_token.shared_paths(prompts)
    assert sorted(paths) == [(1, 2, 3), (1, 2, 4), (2, 1)]
    assert all(paths[row][: len(p)] == p for p, row in zip(prompts, row_of, strict=True))
    assert row_of[1] == row_of[5]


@pytest.mark.parametrize("seed", range(10))
def test_shared_paths_are_no_prefix_of_one_another(seed: int) -> None:
    rng = random.Random(seed)
    prompts = [tuple(rng.choices(range(2), k=rng.randrange(1, 6))) for _ in range(12)]
    paths, row_of = training_token.shared_paths(prompts)
    assert all(paths[row][: len(p)] == p for p, row in zip(prompts, row_of, strict=True))
    assert not [1 for a in paths for b in paths if a is not b and b[: len(a)] == a]


def trace(trainer: Any) -> list[tuple[float, dict[str, Tensor]]]:
    """Loss and gradients of each training step, as they reach the optimiser."""
    seen: list[tuple[float, dict[str, Tensor]]] = []
    step = trainer.training_step

    def training_step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = step(model, inputs, *args, **kwargs)
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        seen.append((float(loss), gradients))
        return loss

    trainer.training_step = training_step
    trainer.train()
    return seen


def trl_trace(policy: Any, reference: Any, rows: Sequence[TokenRow], folder: Path) -> Any:
    """The same training by TRL: its data collator, its forward passes, its loss."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class OnIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    data = {
        "prompt_ids": [list(row.prompt) for row in rows],
        "chosen_ids": [[row.chosen] for row in rows],
        "rejected_ids": [[row.rejected] for row in rows],
    }
    args = DPOConfig(**plain_arguments(folder), beta=BETA, max_length=None, bf16=False)
    return trace(
        OnIds(
            policy,
            reference,
            args,
            train_dataset=Dataset.from_dict(data),
            processing_class=tiny.tokenizer(),
            optimizers=sgd(policy),
        )
    )


def plain_arguments(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": STEPS,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "max_grad_norm": 0.5,
        "seed": 3,
    }


def sgd(model: Any) -> Any:
    """Plain gradient descent: Adam would turn rounding noise around zero into whole steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def test_loss_and_gradients_equal_trl(tmp_path: Path) -> None:
    policy, reference = tiny.model(VOCAB, seed=1), tiny.model(VOCAB, seed=2)
    rows = with_reference(random_rows(4 * STEPS), reference)
    theirs = trl_trace(copy.deepcopy(policy), reference, rows, tmp_path / "trl")
    args = TrainingArguments(**plain_arguments(tmp_path / "own"))
    trainer = training_token.TokenDPOTrainer(policy, args, rows, BETA, optimizers=sgd(policy))
    ours = trace(trainer)
    assert len(ours) == len(theirs) == STEPS
    assert abs(ours[0][0] - math.log(2)) > 0.01
    for (loss, gradients), (their_loss, their_gradients) in zip(ours, theirs, strict=True):
        assert loss == pytest.approx(their_loss, abs=1e-5)
        assert gradients.keys() == their_gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, their_gradients[name], atol=1e-5, rtol=0)
    assert ours[0][0] != pytest.approx(ours[-1][0], abs=1e-3)


def test_weights_and_anchor_enter_the_loss(tmp_path: Path) -> None:
    policy = tiny.model(VOCAB)
    rows = [
        TokenRow(r.prompt, r.chosen, r.rejected, weight, 0.3)
        for r, weight in zip(random_rows(4), (0.0, 1.0, 0.5, 2.5), strict=True)
    ]
    expected = 0.0
    for row in rows:
        gain = plain_margin(policy, row) - 0.3
        with torch.no_grad():
            logits = policy(torch.tensor([row.prompt])).logits[0, -1]
        nll = -float(logits.log_softmax(-1)[row.chosen])
        expected += row.weight * (math.log(1 + math.exp(-BETA * gain)) + 0.2 * nll) / 4
    args = TrainingArguments(**plain_arguments(tmp_path))
    trainer = training_token.TokenDPOTrainer(policy, args, rows, BETA, nll_weight=0.2)
    loss = trainer.compute_loss(policy, training_token.collate(rows))
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_models_that_change_their_logits_after_the_head_are_refused() -> None:
    model = tiny.model(VOCAB)
    training_token.check_head(model, random_rows(4))
    forward = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits / 8
        return output

    model.forward = scaled  # type: ignore[method-assign]
    with pytest.raises(StageError, match="changes its logits"):
        training_token.check_head(model, random_rows(4))


def test_a_head_with_an_adapter_is_refused() -> None:
    adapted = LoRAConfig(target_modules=("lm_head",))
    model = tiny.model(VOCAB)
    model = training.with_adapter(model, training.adapter(adapted, model), seed=0)
    with pytest.raises(StageError, match=r"lora\.target_modules"):
        training_token.head(model)


# The stage


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("base"))


def token_pairs(policy: str, n: int = 12) -> list[TokenPair]:
    rng = random.Random(5)
    vocab = len(tiny.tokenizer())
    return [
        TokenPair(
            f"q{index}",
            row.prompt,
            row.chosen,
            row.rejected,
            0.4,
            0.3,
            jeffreys(good := rng.randrange(30, 48), 48),
            jeffreys(bad := rng.randrange(0, 20), 48),
            newcombe(good, 48, bad, 48),
            0.001,
            0.3 * (good - bad) / 48,
            "path",
            policy,
        )
        for index, row in enumerate(random_rows(n, vocab=vocab))
    ]


@pytest.fixture(scope="module")
def pairs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    write_pairs(path, token_pairs(model_digest(base)))
    return path


SETTINGS: dict[str, Any] = {
    "batch_size": 4,
    "max_steps": 6,
    "learning_rate": 1e-2,
    "save_steps": 2,
    "weight_by": "expected_gain",
}


@pytest.fixture(scope="module")
def trained(base: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("token")
    return token_dpo.run(tiny.context(base, folder, pairs=pairs, token_dpo=SETTINGS))


def test_stage_learns_and_watches_third_tokens(trained: Any) -> None:
    import json

    lines = [json.loads(line) for line in trained.outputs[1].read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7))
    for line in lines:
        mass = line["prob_chosen"] + line["prob_rejected"] + line["prob_others"]
        assert mass == pytest.approx(1, abs=1e-5)
    assert lines[0]["gain"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["gain"] > 0.1
    assert lines[-1]["accuracy"] > lines[0]["accuracy"]
    assert trained.metrics["pairs"] == 12


def test_a_killed_run_ends_with_the_same_weights(
    base: Path, pairs: Path, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = tiny.context(base, tmp_path, pairs=pairs, token_dpo=SETTINGS)
    kill_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        token_dpo.run(context)
    monkeypatch.undo()
    result = token_dpo.run(context)
    assert result.model is not None
    assert tiny.same(result.model, trained.model)
    assert result.outputs[1].read_text() == trained.outputs[1].read_text()


def test_an_adapter_is_drawn_with_the_recipe_s_seed(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    """Whatever torch's generator did before, in this process or another."""
    settings = {**SETTINGS, "max_steps": 2, "lora": {"r": 2, "alpha": 8}}
    made = []
    for before in (1, 2):
        torch.manual_seed(before)
        context = tiny.context(base, tmp_path / str(before), pairs=pairs, token_dpo=settings)
        made.append(token_dpo.run(context).model)
    assert tiny.same(*made)  # type: ignore[arg-type]


def test_worth_that_is_nowhere_positive_cannot_weigh(base: Path) -> None:
    found = [replace(pair, expected_gain=0.0) for pair in token_pairs("policy")]
    with pytest.raises(StageError, match="none of 12 pairs has one above 0"):
        token_dpo.weights(found, TokenDPOConfig(weight_by="expected_gain"))


def test_pairs_of_another_policy_are_refused(base: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", token_pairs("another"))
    context = tiny.context(base, tmp_path / "a", pairs=tmp_path / "pairs.jsonl", token_dpo=SETTINGS)
    with pytest.raises(StageError, match="12 of 12 pairs were measured on another policy"):
        token_dpo.run(context)
    relaxed = {**SETTINGS, "strict": False, "max_steps": 1}
    context = tiny.context(base, tmp_path / "b", pairs=tmp_path / "pairs.jsonl", token_dpo=relaxed)
    with pytest.warns(UserWarning, match="another policy"):
        assert token_dpo.run(context).model is not None


def test_named_reference_enters_with_its_own_weights(
    base: Path, tmp_path: Path, pairs: Path
) -> None:
    other = tiny.save(tmp_path / "other", seed=7)
    settings = {**SETTINGS, "reference": str(other), "strict": False, "weight_by": "none"}
    settings |= {"max_steps": 1, "batch_size": 12, "beta": 0.5}
    context = tiny.context(base, tmp_path / "run", pairs=pairs, token_dpo=settings)
    with pytest.warns(UserWarning, match="another policy"):
        result = token_dpo.run(context)
    policy = AutoModelForCausalLM.from_pretrained(base)
    reference = AutoModelForCausalLM.from_pretrained(other)
    rows = random_rows(12, vocab=len(tiny.tokenizer()))
    gains = [plain_margin(policy, row) - plain_margin(reference, row) for row in rows]
    expected = sum(math.log(1 + math.exp(-0.5 * gain)) for gain in gains) / 12
    assert result.metrics["final_loss"] == pytest.approx(expected, abs=1e-5)


def test_stored_reference_margins_of_other_weights_are_refused(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    context = tiny.context(base, tmp_path, pairs=pairs, token_dpo=SETTINGS)
    rows = with_reference(random_rows(4, vocab=len(tiny.tokenizer())), tiny.model(261, seed=9))
    policy, _ = training.load_trainable(base, context.recipe.model, context.settings)
    with pytest.raises(StageError, match="margins differ from the reference's"):
        token_dpo.check_start(policy, rows)


def test_lora_is_merged(base: Path, pairs: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "lora": {"r": 4, "alpha": 8}}
    result = token_dpo.run(tiny.context(base, tmp_path, pairs=pairs, token_dpo=settings))
    before, after = tiny.weights(base), tiny.weights(result.model)  # type: ignore[arg-type]
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "proj" in name}


def test_pairs_of_highest_worth_are_kept() -> None:
    found = token_pairs("p")
    kept = token_dpo.select_pairs(found, TokenDPOConfig(max_pairs=5))
    least = min(pair.expected_gain for pair in kept)
    assert len(kept) == 5
    assert all(pair.expected_gain <= least for pair in found if pair not in kept)
    assert kept == [pair for pair in found if pair in kept]


def test_worth_weights_have_mean_one() -> None:
    found = token_pairs("p")
    weights = token_dpo.weights(found, TokenDPOConfig(weight_by="expected_gain"))
    assert sum(weights) == pytest.approx(len(found))
    assert weights[0] / weights[1] == pytest.approx(found[0].expected_gain / found[1].expected_gain)


def test_no_pairs(base: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="run the stage 'pts'"):
        token_dpo.run(tiny.context(base, tmp_path / "a", token_dpo=SETTINGS))
    write_pairs(tmp_path / "pairs.jsonl", [])
    with pytest.raises(StageError, match="holds no pairs"):
        token_dpo.run(
            tiny.context(base, tmp_path / "b", pairs=tmp_path / "pairs.jsonl", token_dpo=SETTINGS)
        )
