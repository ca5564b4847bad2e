from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from align.context import StageContext
from align.data.chat import ChatIds
from align.data.rollouts import right_answers_of
from align.errors import RecipeError, StageError
from align.pipeline.recipe import load_recipe
from align.stages import token_dpo
from align.training import losses
from align.training import token_dpo as training_token
from align.training.reference_kl import HeldRow, ReferenceKL, drawn, held_rows
from pts.config import SamplingConfig, SearchConfig
from pts.data.pairs import write_pairs
from pts.data.rollouts import ROLLOUTS
from pts.engines.digest import model_digest
from pts.engines.tabular import TabularEngine, TabularVerifier
from pts.runtime.search import search
from pts.testing.shapes import sparse
from tests.align import tiny
from tests.align.test_sft import kill_at
from tests.align.test_token_dpo import (
    BETA,
    SETTINGS,
    VOCAB,
    plain_arguments,
    random_rows,
    token_pairs,
    with_reference,
)


def answers(n: int, seed: int = 0, vocab: int = VOCAB) -> list[ChatIds]:
    """Prompts of 4 tokens and answers of 2 to 9."""
    rng = random.Random(seed)
    found = []
    for _ in range(n):
        length = rng.randrange(2, 10)
        ids = tuple(rng.randrange(5, vocab) for _ in range(4 + length))
        found.append(ChatIds(ids, (0,) * 4 + (1,) * length))
    return found


def test_kl_divergence_is_the_sum_over_the_vocabulary() -> None:
    reference, policy = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.25, 0.6, 0.15]])
    expected = sum(p * (p / q).log() for p, q in zip(reference[0], policy[0], strict=True))
    found = losses.kl_divergence(reference.log() + 3, policy.log() - 1)
    assert found.tolist() == pytest.approx([float(expected)])  # type: ignore[arg-type]
    assert losses.kl_divergence(reference.log(), reference.log()).item() == pytest.approx(0)


def test_pivotal_positions_and_prompts_are_not_held() -> None:
    answer = ChatIds((7, 8, 9, 10, 11), (0, 0, 1, 1, 1))
    # Token t is drawn at position t - 1; the pair's prompt (7, 8, 9) ends before token 3.
    assert held_rows([answer], {(7, 8, 9)}) == [HeldRow((7, 8, 9, 10), (1, 3))]
    assert held_rows([answer], {(7, 8, 9, 10)}) == [HeldRow((7, 8, 9), (1, 2))]
    assert held_rows([answer], {(7, 8), (7, 8, 9), (7, 8, 9, 10)}) == []


@pytest.mark.parametrize(("rows", "size"), [(7, 3), (3, 7), (5, 5), (1, 2)])
def test_every_row_is_drawn_once_before_one_comes_twice(rows: int, size: int) -> None:
    stream = [row for number in range(rows) for row in drawn(rows, size, 4, number)]
    assert len(stream) == rows * size
    for start in range(0, len(stream), rows):
        assert sorted(stream[start : start + rows]) == list(range(rows))
    assert len({tuple(drawn(40, 40, seed, 0)) for seed in range(5)}) == 5


def plain_kl(reference: Any, policy: Any, row: HeldRow) -> list[float]:
    """Both distributions whole, from a pass over the row alone."""
    with torch.no_grad():
        ids = torch.tensor([row.ids])
        p, q = (model(ids).logits[0].double().log_softmax(-1) for model in (reference, policy))
    return [float((p[i].exp() * (p[i] - q[i])).sum()) for i in row.positions]


def test_kl_equals_two_plain_passes_a_row() -> None:
    reference, policy = tiny.model(VOCAB, seed=1), tiny.model(VOCAB, seed=2)
    rows = held_rows(answers(9), {answers(9)[0].ids[:6]})
    held = ReferenceKL(reference, rows, 4, seed=0)
    for number in range(5):
        expected = [plain_kl(reference, policy, rows[k]) for k in drawn(9, 4, 0, number)]
        flat = [value for values in expected for value in values]
        assert held(policy, number).tolist() == pytest.approx(flat, abs=1e-5)
        assert held(reference, number).tolist() == pytest.approx([0.0] * len(flat), abs=1e-6)


def test_the_reference_may_be_trained_afterwards() -> None:
    model, rows = tiny.model(VOCAB, seed=1, tied=True), held_rows(answers(3), set())
    held = ReferenceKL(model, rows, 3, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    expected = [plain_kl(tiny.model(VOCAB, 1, True), model, rows[k]) for k in drawn(3, 3, 0, 0)]
    flat = [value for values in expected for value in values]
    assert held(model, 0).tolist() == pytest.approx(flat, abs=1e-5)


def test_the_term_enters_the_loss_with_its_weight(tmp_path: Path) -> None:
    reference, policy = tiny.model(VOCAB, seed=1), tiny.model(VOCAB, seed=2)
    rows, held_to = with_reference(random_rows(4), reference), held_rows(answers(6), set())
    args = TrainingArguments(**plain_arguments(tmp_path))
    held = ReferenceKL(reference, held_to, 6, seed=0)
    alone = training_token.TokenDPOTrainer(policy, args, rows, BETA)
    both = training_token.TokenDPOTrainer(policy, args, rows, BETA, kl_weight=0.4, held=held)
    batch = training_token.collate(rows)
    kl = [value for row in held_to for value in plain_kl(reference, policy, row)]
    expected = alone.compute_loss(policy, batch).item() + 0.4 * sum(kl) / len(kl)
    assert both.compute_loss(policy, batch).item() == pytest.approx(expected, abs=1e-5)


# The stage


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("base"))


@pytest.fixture
def pairs(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pairs, and a search whose right answers are told."""
    path = tmp_path / "pts" / "pairs.jsonl"
    path.parent.mkdir()
    write_pairs(path, token_pairs(model_digest(base)))
    told = answers(10, seed=3, vocab=len(tiny.tokenizer()))
    monkeypatch.setattr("align.data.rollouts.right_answers_of", lambda file, _: told)
    return path


def held_context(base: Path, folder: Path, pairs: Path, settings: dict[str, Any]) -> StageContext:
    """The stage's context, with the rollouts of the search that made the pairs."""
    context = tiny.context(base, folder, pairs=pairs, token_dpo=settings)
    return dataclasses.replace(context, rollouts=pairs.parent / ROLLOUTS)


HELD: dict[str, Any] = {**SETTINGS, "kl_weight": 20.0, "kl_batch_size": 4}


def test_positions_are_counted_as_often_as_they_are_drawn() -> None:
    rows = held_rows(answers(5), set())
    held = ReferenceKL(tiny.model(VOCAB, seed=1, tied=True), rows, 5, seed=0)
    once = sum(len(row.positions) for row in rows)
    assert [held.positions(draws) for draws in (0, 1, 3)] == [0, once, 3 * once]


def test_a_held_policy_moves_less_where_no_pair_asks(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    moved = {}
    for weight in (1e-9, 20.0):
        settings = {**HELD, "kl_weight": weight}
        context = held_context(base, tmp_path / str(weight), pairs, settings)
        result = token_dpo.run(context)
        lines = training_lines(result)
        assert lines[0]["kl"] == pytest.approx(0, abs=1e-6)
        assert lines[-1]["gain"] > 0
        moved[weight] = lines[-1]["kl"]
        assert result.metrics["held_answers"] == 10
        assert result.metrics["trained_tokens"] > 2 * result.metrics["steps"]
        assert result.metrics["held_positions"] == sum(
            sum(answer.mask) for answer in answers(10, seed=3, vocab=len(tiny.tokenizer()))
        )
    assert moved[20.0] < moved[1e-9]


def training_lines(result: Any) -> list[dict[str, float]]:
    import json

    return [json.loads(line) for line in result.outputs[1].read_text().splitlines()]


def test_a_killed_run_ends_with_the_same_weights(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**HELD, "gradient_accumulation": 2, "batch_size": 2}
    made = []
    for name in ("whole", "killed"):
        context = held_context(base, tmp_path / name, pairs, settings)
        if name == "killed":
            with monkeypatch.context() as patch:
                kill_at(3, patch)
                with pytest.raises(KeyboardInterrupt):
                    token_dpo.run(context)
        made.append(token_dpo.run(context))
    assert tiny.same(made[0].model, made[1].model)  # type: ignore[arg-type]
    assert made[0].outputs[1].read_text() == made[1].outputs[1].read_text()


def test_a_search_without_right_answers_cannot_hold(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("align.data.rollouts.right_answers_of", lambda *_: [])
    with pytest.raises(StageError, match=r"no right answer of the filter to hold .* set it to 0"):
        token_dpo.run(held_context(base, tmp_path / "run", pairs, HELD))


def test_right_answers_of_a_search_are_its_passed_filter_rollouts(tmp_path: Path) -> None:
    import numpy as np

    machines = [sparse(np.random.default_rng(seed), 20).machine for seed in range(3)]
    engine = TabularEngine(machines, SamplingConfig(max_new_tokens=48))
    run = search(engine.problems(), engine, TabularVerifier(), SearchConfig(), output=tmp_path)
    found = right_answers_of(tmp_path, ("filter",))
    assert len(set(found)) == len(found) > 0
    results = list(run.results)
    for row in found:
        prompt = row.ids[: row.mask.index(1)]
        assert set(row.mask[len(prompt) :]) == {1}
        assert prompt in {result.prompt_ids for result in results}
    # The searched path is the first filter rollout.
    for result in results:
        for path in result.paths:
            right = (*result.prompt_ids, *path.ids) in {row.ids for row in found}
            assert right == (path.verdict == "pass")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["token_dpo.rollouts=pst"], "token_dpo.rollouts: no stage 'pst' before this one"),
        (["pts.search.keep=none"], "pts.search.keep: got 'none', but token_dpo trains on its"),
        (["pts.pairs_from=uncertain"], "token_dpo.rollouts: pts.pairs_from is a control arm"),
    ],
)
def test_what_cannot_hold_a_policy_is_told(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("phi-nano", ["token_dpo.kl_weight=10", *changes])
    assert message in str(caught.value)
