"""The base recipe, the tokenizer, the pretraining loop, and the weights that ship."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.pretraining.loop import batch, loss_of, pretrain, rate
from align.pretraining.nano import (
    CHAT_TOKENS,
    PAD,
    BaseRecipe,
    build_model,
    build_tokenizer,
    load_base_recipe,
)
from align.tasks.word_problems.task import WordProblems
from align.tasks.word_problems.textbook import documents
from pts.errors import ConfigError
from pts.types import Problem, Verdict

RECIPE = Path(__file__).parents[2] / "recipes" / "phi-nano" / "base.yaml"
BASE = RECIPE.parent / "base"

SMALL = BaseRecipe.model_validate(
    {
        "tokenizer": {"vocab_size": 400, "documents": 200},
        "model": {"hidden": 16, "layers": 1, "heads": 2, "feed_forward": 32},
        "training": {
            "phases": [{"steps": 60, "drill_steps": 10}, {"steps": 40, "learning_rate": 0.001}],
            "rows": 4,
            "row_tokens": 32,
        },
    }
)


def test_unknown_keys_are_all_named_with_a_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "base.yaml"
    phase = "{step: 3, solutions: {carefull: 1}}"
    path.write_text(f"seeds: 1\ntraining: {{phases: [{phase}], row: 1}}\n")
    with pytest.raises(ConfigError) as caught:
        load_base_recipe(path)
    message = str(caught.value)
    for pair in (
        ("seeds:", "'seed'"),
        ("training.phases.0.step:", "'steps'"),
        ("training.phases.0.solutions.carefull:", "'careful'"),
        ("training.row:", "'rows'"),
    ):
        assert any(all(word in line for word in pair) for line in message.splitlines())
    assert len(caught.value.problems) == 4


def test_the_digest_follows_the_content() -> None:
    assert SMALL.digest == SMALL.model_copy().digest
    assert SMALL.digest != SMALL.model_copy(update={"seed": 5}).digest


def test_the_tokenizer_splits_digits_and_keeps_special_tokens_whole(tmp_path: Path) -> None:
    build_tokenizer(SMALL).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    for token in (*CHAT_TOKENS, PAD, "<|endoftext|>"):
        assert len(tokenizer(token)["input_ids"]) == 1
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    text = " Grüße, 7+8=15\n\t<|im_start|>user<|im_sep|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_what_is_given_weighs_less_than_what_can_be_learnt() -> None:
    tokenizer = build_tokenizer(SMALL)
    drill = batch(SMALL, tokenizer, 9)
    assert drill.ids.shape == (4, 16)
    mix = SMALL.training.phases[0].solutions
    first = next(documents(SMALL.textbook.drills_alone(0.9), mix, f"{SMALL.seed}/9"))
    ids, weights = [], []
    for part in first:
        piece = tokenizer(part.text)["input_ids"]
        ids += piece
        weights += [1.0 if part.learnt else SMALL.training.given_weight] * len(piece)
    seen = min(len(ids), 16)
    assert set(weights[:seen]) == {1.0, SMALL.training.given_weight}
    assert drill.ids[0].tolist()[:seen] == ids[:seen]
    assert drill.weights[0].tolist()[:seen] == pytest.approx(weights[:seen])


def test_long_rows_hold_as_many_tokens_as_short_ones() -> None:
    tokenizer = build_tokenizer(SMALL)
    assert batch(SMALL, tokenizer, 12).ids.shape == (1, 128)
    assert batch(SMALL, tokenizer, 13).ids.shape == (4, 32)


def test_the_loss_is_the_weighted_mean_cross_entropy() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(SMALL)
    model = build_model(SMALL, tokenizer)
    drawn = batch(SMALL, tokenizer, 20)
    logps = model(input_ids=drawn.ids).logits.log_softmax(-1).detach()
    total = weight = 0.0
    for row, (ids, weights) in enumerate(zip(drawn.ids, drawn.weights, strict=True)):
        for t in range(1, len(ids)):
            total -= float(weights[t] * logps[row, t - 1, ids[t]])
            weight += float(weights[t])
    assert float(loss_of(model, drawn).detach()) == pytest.approx(total / weight, rel=1e-4)


def test_the_learning_rate_rises_and_falls_in_straight_lines_in_each_phase() -> None:
    first, second = (phase.learning_rate for phase in SMALL.training.phases)
    rates = [rate(SMALL.training, step) for step in range(100)]
    assert rates[:3] == pytest.approx([first * k / 3 for k in (1, 2, 3)])
    assert rates[3:60] == pytest.approx([first * (60 - k) / 57 for k in range(3, 60)])
    assert rates[60:62] == pytest.approx([second / 2, second])
    assert rates[62:] == pytest.approx([second * (40 - k) / 38 for k in range(2, 40)])


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    training = SMALL.training.model_copy(update={"checkpoint_seconds": 1e-6})
    recipe = SMALL.model_copy(update={"training": training})
    pretrain(recipe, tmp_path / "whole", lambda line: None)

    def kill(line: str) -> None:
        if line.startswith("step 100/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, tmp_path / "truncated", kill)
    seen: list[str] = []
    pretrain(recipe, tmp_path / "truncated", seen.append)
    assert [line.split()[1] for line in seen] == ["100/100"]
    whole, cut = (tmp_path / name / "model.safetensors" for name in ("whole", "truncated"))
    assert whole.read_bytes() == cut.read_bytes()
    assert sorted(p.name for p in (tmp_path / "truncated").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    training = SMALL.training.model_copy(update={"checkpoint_seconds": 1e-6})
    recipe = SMALL.model_copy(update={"training": training})

    def kill(line: str) -> None:
        if line.startswith("step 100/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(recipe, tmp_path, kill)
    with pytest.raises(ConfigError, match="belongs to recipe"):
        pretrain(recipe.model_copy(update={"seed": 9}), tmp_path, lambda line: None)


def test_the_shipped_files_belong_to_the_shipped_recipe() -> None:
    recipe = load_base_recipe(RECIPE)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE)
    card = (BASE / "README.md").read_text(encoding="utf-8")
    assert recipe.digest in card
    assert f"{model.num_parameters():,} parameters" in card
    assert tokenizer.get_vocab() == build_tokenizer(recipe).get_vocab()
    config = model.config
    assert (config.model_type, config.sliding_window) == ("phi3", None)
    assert config.tie_word_embeddings
    assert config.vocab_size == len(tokenizer)
    assert model.dtype == torch.float32
    assert sum(p.stat().st_size for p in BASE.iterdir()) <= 8_000_000
    log = json.loads((BASE / "training_log.json").read_text(encoding="utf-8"))
    assert log[-1]["step"] == recipe.training.steps


def _successes(n: int, begun: bool) -> int:
    """Greedy few-shot successes of the shipped base model on the first n dev problems.

    `begun` puts the first quantity after `Answer:`, so that the model does not answer at once.
    """
    tokenizer = AutoTokenizer.from_pretrained(BASE, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(BASE).eval()
    task = WordProblems()
    problems = task.problems("dev", n, 0)
    prompts = [_prompt(task, problem, begun) for problem in problems]
    encoded = tokenizer(prompts, return_tensors="pt", padding=True)
    sampled = model.generate(**encoded, do_sample=False, max_new_tokens=110)
    texts = tokenizer.batch_decode(sampled[:, encoded.input_ids.shape[1] :])
    verdicts = [
        task.verifier(problem, text.split("<|endoftext|>")[0]).verdict
        for problem, text in zip(problems, texts, strict=True)
    ]
    return verdicts.count(Verdict.PASS)


def _prompt(task: WordProblems, problem: Problem, begun: bool) -> str:
    prompt = str(task.few_shot(problem).prompt)
    if not begun:
        return prompt
    metrics = re.findall(r"\d+", prompt.rpartition("Question:")[2])
    return f"{prompt} {metrics[1] if problem.metadata['family'] == 'boxes' else metrics[0]}"


def _stated(row: str) -> float:
    """An accuracy of the model card."""
    card = (BASE / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in card.splitlines() if line.startswith(f"| {row} |")]
    return float(line.split("|")[2])


@pytest.mark.parametrize("n", [100, pytest.param(600, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("row", "begun"),
    [("few-shot, greedy", False), ("few-shot, working begun, greedy", True)],
)
def test_the_weights_reach_the_accuracy_that_the_card_states(row: str, begun: bool, n: int) -> None:
    stated = _stated(row)
    tolerance = 3 * (max(stated * (1 - stated), 0.02) / n) ** 0.5 + 0.01
    assert abs(_successes(n, begun) / n - stated) < tolerance
