"""The evaluation stage with a real (random, tiny) model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from align.context import StageContext, StageResult
from align.evaluation import policy as evaluate
from align.evaluation.records import read_evaluation
from align.models.load import load_policy
from pts.config import SamplingConfig
from pts.engines.text import stop_ids_of
from pts.types import Problem
from tests.align import tiny

SETTINGS = {"problems": 12, "samples": 4}


def measured(context: StageContext, name: str, before: Path | None) -> StageResult:
    """Measure the context's policy as `name`."""
    return evaluate.measure(
        context.recipe, context.task, name, context.policy, context.folder, before
    )


class FewShotParity(tiny.ParityTask):
    """Few-shot prompts get another id and a text, as tasks are free to do."""

    def few_shot(self, problem: Problem) -> Problem:
        question = problem.prompt[-1].content  # type: ignore[union-attr]
        text = f"Question: 1+1\nAnswer: 2\n\nQuestion: {question}\nAnswer:"
        return Problem(f"{problem.id}/few-shot", text, problem.reference)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("other"), seed=1)


def test_entropy_and_kl_agree_with_a_plain_forward(base: Path, other: Path, tmp_path: Path) -> None:
    sampling = {"temperature": 0.5, "max_new_tokens": 6}
    context = tiny.context(base, tmp_path, tiny.ParityTask(), evaluate=SETTINGS, sampling=sampling)
    result = measured(context, "sft", other)
    summary = read_evaluation(tmp_path).summary
    assert summary.kl is not None
    expected = _by_hand(context.task.problems("test", 12, 0), base, other, tmp_path, 0.5)
    assert (summary.entropy.mean, summary.kl.mean) == pytest.approx(expected, rel=1e-5)
    assert result.metrics["KL to the stage before"] == summary.kl.mean
    assert [path.name for path in result.outputs] == ["items.jsonl", "summary.json"]


def _by_hand(
    problems: list[Problem], base: Path, other: Path, folder: Path, temperature: float
) -> tuple[float, float]:
    """Entropy and KL a token over the first journalled completion of each problem."""
    rows = map(json.loads, (folder / "sampled" / "journal.jsonl").read_text().splitlines()[1:])
    ids = {row["q"]: row["o"][0][2:] for row in rows if "o" in row}
    policies = [AutoModelForCausalLM.from_pretrained(path) for path in (base, other)]
    tokenizer = tiny.tokenizer()
    entropy = kl = tokens = 0.0
    for problem in problems:
        turns = [{"role": "user", "content": problem.prompt[-1].content}]  # type: ignore[union-attr]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        both = torch.tensor([prompt + ids[problem.id]])
        with torch.no_grad():
            logits = [policy(both).logits[0, len(prompt) - 1 : -1].double() for policy in policies]
        p, q = (torch.log_softmax(each / temperature, -1) for each in logits)
        entropy -= float((p.exp() * p).sum())
        kl += float((p.exp() * (p - q)).sum())
        tokens += len(ids[problem.id])
    return entropy / tokens, kl / tokens


def test_a_policy_does_not_diverge_from_itself(base: Path, tmp_path: Path) -> None:
    context = tiny.context(base, tmp_path, tiny.ParityTask(), evaluate=SETTINGS)
    measured(context, "sft", base)
    kl = read_evaluation(tmp_path).summary.kl
    assert kl is not None
    assert (kl.low, kl.mean, kl.high) == (0, 0, 0)


def test_the_base_is_asked_by_few_shot_under_the_same_ids(base: Path, tmp_path: Path) -> None:
    items = {}
    for name in ("base", "sft"):
        context = tiny.context(base, tmp_path / name, FewShotParity(), evaluate=SETTINGS)
        measured(context, name, None)
        items[name] = read_evaluation(tmp_path / name).items
    assert [item.id for item in items["base"]] == [item.id for item in items["sft"]]
    assert [item.question for item in items["base"]] == [item.question for item in items["sft"]]
    assert [i.greedy_text for i in items["base"]] != [i.greedy_text for i in items["sft"]]


def test_a_base_that_chats_is_asked_as_the_others_are(base: Path, tmp_path: Path) -> None:
    for name in ("base", "sft"):
        context = tiny.context(
            base,
            tmp_path / name,
            FewShotParity(),
            evaluate=SETTINGS,
            model={"path": str(base), "device": "cpu", "few_shot_base": False},
        )
        measured(context, name, None)
    first, second = (read_evaluation(tmp_path / name) for name in ("base", "sft"))
    assert first.items == second.items


def test_a_base_stops_where_it_begins_a_question_of_its_own(base: Path, tmp_path: Path) -> None:
    recipe = tiny.recipe(base)
    model, tokenizer = load_policy(base, recipe.model)
    plain = stop_ids_of(model, tokenizer)
    # One token a byte: no single token means "Question", so nothing is added.
    assert evaluate.loader(base, recipe.model, few_shot=True)(recipe.sampling).stop_ids == plain
    tokenizer.add_tokens(["Question"])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    load = evaluate.loader(tmp_path, recipe.model, few_shot=True)
    question = tokenizer.convert_tokens_to_ids("Question")
    assert load(recipe.sampling).stop_ids == plain | {question}
    assert evaluate.loader(tmp_path, recipe.model)(recipe.sampling).stop_ids == plain


def test_one_set_of_weights_serves_all_samplings(base: Path) -> None:
    load = evaluate.loader(base, tiny.recipe(base).model)
    first, second = load(SamplingConfig(temperature=0)), load(SamplingConfig(temperature=1))
    assert first.model is second.model
    assert (first.policy_digest, second.sampling.temperature) == (second.policy_digest, 1)


def test_a_killed_evaluation_continues(base: Path, tmp_path: Path) -> None:
    context = tiny.context(base, tmp_path / "a", tiny.ParityTask(), evaluate=SETTINGS)
    measured(context, "sft", None)
    half = tmp_path / "b"
    (half / "sampled").mkdir(parents=True)
    lines = (tmp_path / "a" / "sampled" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (half / "sampled" / "journal.jsonl").write_bytes(b"".join(lines[:9]) + lines[9][:7])
    measured(dataclasses.replace(context, folder=half), "sft", None)
    assert read_evaluation(half) == read_evaluation(tmp_path / "a")
