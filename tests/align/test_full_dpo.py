from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.data.chat import answer_row
from align.data.preferences import PreferencePair, read_preferences
from align.errors import StageError
from align.stages import full_dpo, pivotal_tokens, rejection_sft, sft
from align.training import loop
from align.training.monitors import METRICS
from pts.config import SearchConfig
from pts.data.pairs import read_pairs
from pts.engines.digest import model_digest
from pts.runtime.sample import read_samples
from pts.types import Ids, TokenDistribution
from tests.align import tiny
from tests.align.test_sft import kill_at

SETTINGS: dict[str, Any] = {
    "num_problems": 12,
    "samples": 4,
    "batch_size": 4,
    "epochs": 2,
    "learning_rate": 1e-2,
    "save_steps": 2,
    "beta": 0.5,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that answers with one to five letters and then ends its turn."""
    folder = tmp_path_factory.mktemp("base")
    settings = {"num_examples": 320, "batch_size": 8, "learning_rate": 1e-2}
    result = sft.run(context(tiny.save(folder / "raw"), folder / "sft", sft=settings))
    assert result.model is not None
    return result.model


def context(base: Path, folder: Path, **stages: Any) -> Any:
    return tiny.context(base, folder, tiny.ParityTask(), **stages)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return full_dpo.run(context(base, tmp_path_factory.mktemp("full"), full_dpo=SETTINGS))


def metrics(result: Any) -> list[dict[str, float]]:
    file = result.model.parent / METRICS
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_pair_is_trained_and_counted(trained: Any, base: Path) -> None:
    pairs = read_preferences(trained.model.parent / "pairs.jsonl")
    metrics = trained.metrics
    kinds = ("questions_mixed", "questions_all_right", "questions_all_wrong", "questions_unscored")
    assert sum(metrics[kind] for kind in kinds) == metrics["questions"] == 12
    assert metrics["pairs"] == len(pairs) == metrics["questions_mixed"]
    assert metrics["steps"] == 2 * math.ceil(len(pairs) / 4)
    digest = model_digest(base)
    assert {pair.policy_digest for pair in pairs} == {digest}


def test_pairs_hold_the_ids_that_were_sampled_stop_id_included(trained: Any, base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    stops = {0, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    for pair in read_preferences(trained.model.parent / "pairs.jsonl"):
        assert tokenizer.decode(pair.prompt_ids).endswith("<|im_start|>assistant<|im_sep|>")
        assert pair.chosen_ids[-1] in stops
        assert pair.rejected_truncated == (pair.rejected_ids[-1] not in stops)
        text = tokenizer.decode(pair.chosen_ids, skip_special_tokens=True)
        assert len(text) % 2 == 0


def test_policy_starts_as_its_reference_and_learns(trained: Any) -> None:
    lines = metrics(trained)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["rewards/margins"] > 0.1


def plain_logp(model: Any, prompt: Any, completion: Any) -> float:
    with torch.no_grad():
        logps = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
    start = len(prompt) - 1
    return sum(float(logps[start + k, token]) for k, token in enumerate(completion))


def margin(model: Any, pair: PreferencePair) -> float:
    chosen = plain_logp(model, pair.prompt_ids, pair.chosen_ids)
    return chosen - plain_logp(model, pair.prompt_ids, pair.rejected_ids)


def test_first_loss_against_a_named_reference(base: Path, tmp_path: Path) -> None:
    other = tiny.save(tmp_path / "other", seed=4)
    settings = {**SETTINGS, "reference": str(other), "strict": False}
    settings |= {"max_steps": 1, "batch_size": 64}
    with pytest.warns(UserWarning, match="another policy"):
        result = full_dpo.run(context(base, tmp_path / "run", full_dpo=settings))
    policy, reference = (AutoModelForCausalLM.from_pretrained(path) for path in (base, other))
    pairs = read_preferences(tmp_path / "run" / "pairs.jsonl")
    gains = [margin(policy, pair) - margin(reference, pair) for pair in pairs]
    expected = sum(math.log(1 + math.exp(-0.5 * gain)) for gain in gains) / len(pairs)
    assert metrics(result)[0]["loss"] == pytest.approx(expected, abs=1e-4)


def test_the_anchor_adds_the_mean_nll_of_the_chosen_tokens(base: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "nll_weight": 0.7, "max_steps": 1, "batch_size": 64}
    result = full_dpo.run(context(base, tmp_path, full_dpo=settings))
    policy = AutoModelForCausalLM.from_pretrained(base)
    pairs = read_preferences(tmp_path / "pairs.jsonl")
    nll = -sum(plain_logp(policy, pair.prompt_ids, pair.chosen_ids) for pair in pairs)
    tokens = sum(len(pair.chosen_ids) for pair in pairs)
    expected = math.log(2) + 0.7 * nll / tokens
    assert metrics(result)[0]["loss"] == pytest.approx(expected, abs=1e-4)


def test_another_reference_is_refused_before_sampling(base: Path, tmp_path: Path) -> None:
    other = tiny.save(tmp_path / "other", seed=4)
    settings = {**SETTINGS, "reference": str(other)}
    with pytest.raises(StageError, match="another policy than"):
        full_dpo.run(context(base, tmp_path / "run", full_dpo=settings))
    assert not (tmp_path / "run" / "answers" / "journal.jsonl").exists()


def test_a_killed_run_ends_with_the_same_weights(
    base: Path, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = context(base, tmp_path, full_dpo=SETTINGS)
    kill_at(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        full_dpo.run(asked)
    monkeypatch.undo()
    journal = (tmp_path / "answers" / "journal.jsonl").read_text()
    result = full_dpo.run(asked)
    assert (tmp_path / "answers" / "journal.jsonl").read_text() == journal
    assert tiny.same(result.model, trained.model)  # type: ignore[arg-type]
    assert result.metrics == trained.metrics


def test_no_mixed_question_is_an_error_with_the_counts(base: Path, tmp_path: Path) -> None:
    asked = tiny.context(base, tmp_path, tiny.NeverTask(), full_dpo=SETTINGS)
    with pytest.raises(StageError, match=r"none of 12 questions .* \(0 all right, 12 all wrong\)"):
        full_dpo.run(asked)


def test_lora_is_merged(base: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "lora": {"r": 4, "alpha": 8}, "max_steps": 3}
    result = full_dpo.run(context(base, tmp_path, full_dpo=settings))
    before, after = tiny.weights(base), tiny.weights(result.model)  # type: ignore[arg-type]
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "proj" in name}
    assert metrics(result)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


# Rejection sampling and the search stage share the sampling


def test_rejection_sft_trains_on_right_answers_as_sampled(base: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "max_length": 64, "epochs": 1}
    settings.pop("beta")
    result = rejection_sft.run(context(base, tmp_path, rejection_sft=settings))
    assert result.model is not None
    assert 12 < result.metrics["rows"] <= 48
    assert result.metrics["rows_other_stop"] == 0
    assert result.metrics["questions"] == 12
    assert result.metrics["steps"] == math.ceil(result.metrics["rows"] / 4)


def test_right_answers_and_their_duplicates_are_counted(base: Path, tmp_path: Path) -> None:
    settings = {"num_problems": 12, "samples": 8, "batch_size": 4, "max_steps": 1}
    counted = {}
    for which in ("right", "all"):
        asked = context(base, tmp_path / which, rejection_sft={**settings, "answers": which})
        counted[which] = rejection_sft.run(asked).metrics
    answers = [*read_samples(tmp_path / "all" / "answers" / "samples.jsonl")]
    right = sum(r.success for a in answers for r in a.rollouts)
    every = sum(len(a.rollouts) for a in answers)
    for which, kept in (("right", right), ("all", every)):
        metrics = counted[which]
        assert metrics["right_answers"] == right
        rows = metrics["rows"] + metrics["rows_other_stop"] + metrics["rows_too_long"]
        assert rows + metrics["duplicates"] == kept
        assert metrics["duplicates"] > 0


def test_right_answers_that_all_stopped_with_another_token_are_told(
    base: Path, tmp_path: Path
) -> None:
    asked = context(base, tmp_path, rejection_sft={"batch_size": 2})
    policy, tokenizer = loop.load_trainable(base, asked.recipe.model, asked.settings)
    rows = [answer_row((1, 9, 10), (20, 21, 0))] * 7
    with pytest.raises(
        StageError,
        match=r"rejection_sft: none of 7 right answers ended with <\|im_end\|>, the end of turn of "
        r"model\.chat_template, but 7 with <\|endoftext\|>; .* give the template that the policy",
    ):
        rejection_sft.train(asked, policy, tokenizer, rows, {})


def test_self_sft_trains_on_wrong_answers_too(base: Path, tmp_path: Path) -> None:
    """The control of rejection sampling: as many tokens, nothing left out for being wrong."""
    settings = {**SETTINGS, "max_length": 64, "max_steps": 1}
    settings.pop("beta")
    rows = {}
    for which in ("right", "all"):
        asked = context(base, tmp_path / which, rejection_sft={**settings, "answers": which})
        rows[which] = rejection_sft.run(asked).metrics
    answers = [*read_samples(tmp_path / "all" / "answers" / "samples.jsonl")]
    distinct = sum(len({r.ids for r in a.rollouts if not r.truncated}) for a in answers)
    assert rows["all"]["rows"] == distinct > rows["right"]["rows"]
    assert rows["all"]["generated_tokens"] == rows["right"]["generated_tokens"]


@pytest.mark.parametrize("source", ["search", "uncertain", "uniform", "coin", "cliffs"])
def test_pairs_of_search_and_control_arms(base: Path, tmp_path: Path, source: str) -> None:
    search = {"filter_rollouts": 8, "confirm_rollouts": 12, "max_rollouts": 40, "fdr": 0.5}
    asked = context(base, tmp_path, pts={"num_problems": 8, "pairs_from": source, "search": search})
    result = pivotal_tokens.run(asked)
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    assert result.model is None
    assert result.metrics["pairs"] == len(pairs)
    assert len({pair.prompt_ids for pair in pairs}) <= len(pairs)
    digest = model_digest(base)
    assert {pair.policy_digest for pair in pairs} <= {digest}
    if source in ("uncertain", "uniform"):
        dropped = result.metrics["ties_dropped"] + result.metrics["questions_without_position"]
        assert len(pairs) + dropped == 8
        assert all(pair.gap.mean > 0 for pair in pairs)
    if source == "coin":
        assert all(pair.expected_gain == 0 and pair.gap.n == 0 for pair in pairs)
        assert result.metrics["rollouts"] == 8
    if source == "cliffs":
        assert result.metrics["rollouts"] > 8 * 64
    again = pivotal_tokens.run(asked)
    assert again.metrics == result.metrics
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs


def test_generated_tokens_are_matched_and_counted(base: Path, tmp_path: Path) -> None:
    asked = context(base, tmp_path, full_dpo={**SETTINGS, "match": ["pts"], "max_steps": 1})
    result = full_dpo.run(dataclasses.replace(asked, budget=1500))
    metrics = result.metrics
    answers = [*read_samples(tmp_path / "answers" / "samples.jsonl")]
    assert metrics["questions"] == metrics["distinct_questions"] == len(answers)
    assert metrics["generated_tokens"] == sum(r.length for a in answers for r in a.rollouts)
    assert abs(metrics["generated_tokens"] - 1500) <= 0.02 * 1500
    whole = [not r.truncated for a in answers for r in a.rollouts]
    assert metrics["verifier_calls"] == sum(whole)
    pairs = read_preferences(tmp_path / "pairs.jsonl")
    tokens = sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
    # One step of the epoch's ceil(pairs / 4).
    assert metrics["trained_tokens"] == pytest.approx(tokens / math.ceil(len(pairs) / 4), abs=1)


@pytest.mark.parametrize(("source", "budget"), [("search", 800), ("uncertain", 2500)])
def test_a_pts_stage_matches_too(base: Path, tmp_path: Path, source: str, budget: int) -> None:
    # Three filter rollouts never pass half of the time: the search costs its filter alone.
    search = {"filter_rollouts": 3, "p_min": 0.45, "p_max": 0.55, "confirm_rollouts": 4}
    asked = context(base, tmp_path, pts={"pairs_from": source, "search": search})
    matching = asked.settings.model_copy(update={"match": ("other",)})
    entry = dataclasses.replace(asked.entry, settings=matching)
    result = pivotal_tokens.run(dataclasses.replace(asked, entry=entry, budget=budget))
    assert abs(result.metrics["generated_tokens"] - budget) <= 0.02 * budget


def test_siblings_come_from_uncertain_positions_without_the_sampled_token() -> None:
    import numpy as np

    from align.controls.drawn import draw_position, draw_siblings
    from align.controls.pairs import Siblings

    def drawn_at(
        ids: Ids, rows: Sequence[TokenDistribution], least: float, seed: int
    ) -> Siblings | None:
        rng = random.Random(seed)
        at = draw_position(ids, rows, least, rng)
        return None if at is None else draw_siblings(ids, at, rows[at], rng)

    sure = TokenDistribution(np.array([3, 4]), np.array([0.9, 0.1]))
    open_row = TokenDistribution(np.array([7, 8, 9]), np.array([0.5, 0.4, 0.1]))
    drawn = [
        drawn_at((3, 7, 3), [sure, open_row, sure], SearchConfig().p_gap, seed)
        for seed in range(400)
    ]
    found = [siblings for siblings in drawn if siblings is not None]
    assert len(found) == 400
    assert {siblings.prefix for siblings in found} == {(3,)}
    assert all(siblings.tokens[0] == 7 and siblings.probs[0] == 0.5 for siblings in found)
    share = sum(siblings.tokens[1] == 8 for siblings in found) / 400
    assert share == pytest.approx(0.8, abs=0.06)
    assert drawn_at((3,), [sure], 0.2, 0) is None
    # Without a bound every position counts where there is another token to take.
    alone = TokenDistribution(np.array([3, 4]), np.array([1.0, 0.0]))
    anywhere = [drawn_at((3, 7, 3), [sure, open_row, alone], 0.0, seed) for seed in range(400)]
    prefixes = [len(siblings.prefix) for siblings in anywhere if siblings is not None]
    assert set(prefixes) == {0, 1}
    assert prefixes.count(0) / 400 == pytest.approx(0.5, abs=0.1)
