"""Pairs as a dataset folder: what `load_dataset` and TRL read from it, and what its card says."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from pts.errors import DataError
from pts.runtime.export import dataset_card, export_dataset
from pts.runtime.run_folder import RunFolder
from pts.runtime.search import search
from pts.types import Estimate, TokenPair

from ..test_docs import blocks
from .scripted import ScriptedEngine, judge_odd, problems
from .slow_search import CONFIG

DOCS = Path(__file__).parents[2] / "docs"
P = Estimate(0.5, 0.3, 0.7, 48, "jeffreys")
PAIR = TokenPair("q1", (1, 2, 3), 7, 8, 0.1, 0.3, P, P, P, 0.01, 0.2, "path", "digest")
SHORT = dataclasses.replace(PAIR, problem_id="q2", prompt_ids=(4,), chosen=9, criterion="fork")


@pytest.fixture
def exported(tmp_path: Path) -> datasets.Dataset:
    export_dataset([PAIR, SHORT], tmp_path / "pairs")
    cache = str(tmp_path / "cache")
    return datasets.load_dataset(str(tmp_path / "pairs"), split="train", cache_dir=cache)


def test_the_folder_is_a_dataset_of_ids(exported: datasets.Dataset) -> None:
    row, short = exported
    assert row == {
        "prompt_ids": [1, 2, 3],
        "chosen_ids": [7],
        "rejected_ids": [8],
        "problem_id": "q1",
        "criterion": "path",
        "gap": 0.5,
        "expected_gain": 0.2,
    }
    assert short["prompt_ids"] == [4]


@pytest.mark.slow  # imports trl
def test_trl_collates_its_rows(exported: datasets.Dataset) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    batch = DataCollatorForPreference(pad_token_id=0)(list(exported))
    # chosen of both rows, then rejected of both rows
    assert batch["input_ids"].tolist() == [[1, 2, 3, 7], [4, 9, 0, 0], [1, 2, 3, 8], [4, 8, 0, 0]]
    assert batch["completion_mask"].tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]] * 2


def test_writing_again_replaces_the_rows(tmp_path: Path) -> None:
    export_dataset([PAIR, SHORT], tmp_path)
    export_dataset([SHORT], tmp_path)
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert files == ["README.md", "data/train.parquet"]
    assert datasets.Dataset.from_parquet(
        str(tmp_path / "data" / "train.parquet"), cache_dir=str(tmp_path / "cache")
    )["prompt_ids"] == [[4]]


def test_no_pairs_make_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pair was selected"):
        export_dataset([], tmp_path / "pairs")
    assert not (tmp_path / "pairs").exists()


def test_the_card_tells_counts_policy_and_settings(tmp_path: Path) -> None:
    search(problems(6), ScriptedEngine(8), judge_odd, CONFIG, output=tmp_path)
    run = RunFolder(tmp_path)
    card = dataset_card(run.pairs, run)
    _, header, text = card.split("---\n", 2)
    (config,) = yaml.safe_load(header)["configs"]
    assert config["data_files"] == [{"split": "train", "path": "data/train.parquet"}]
    assert "license" not in header
    assert f"{len(run.pairs):,} preference pairs" in text
    assert "`scripted`" in text
    assert f"{CONFIG.confirm_rollouts} fresh rollouts on each side" in text
    for name, value in {**CONFIG.model_dump(), "temperature": 1.0, "seed": 0}.items():
        shown = list(value) if isinstance(value, tuple) else value
        assert f"| `{name}` | `{shown}` |" in text, name


def test_the_card_counts_by_hand_and_claims_no_confirmation_that_was_not() -> None:
    card = dataset_card([PAIR, SHORT, dataclasses.replace(SHORT, policy_digest="other|one")])
    assert "3 preference pairs of two next tokens (2 `fork`, 1 `path`), 2 questions" in card
    assert "`digest`, `other|one`" in card
    assert "Settings of the search" not in card
    reported = Estimate(0.5, 0.0, 1.0, 0, "reported")
    card = dataset_card([dataclasses.replace(PAIR, p_chosen=reported, p_rejected=reported)])
    assert "Confirmation: none" in card


@pytest.mark.slow  # imports trl
def test_the_trainer_of_the_docs_trains_on_it(exported: datasets.Dataset, tmp_path: Path) -> None:
    """At the first step the policy is the reference: the loss is ln 2, whatever the pairs."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import DPOConfig

    (snippet,) = [b for b in blocks(DOCS / "running-a-search.md", "python") if "trl" in b]
    names: dict[str, Any] = {}
    exec(snippet, names)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16, intermediate_size=8, **sizes))
    options = {"use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 1}
    options |= {"precompute_ref_log_probs": True, "logging_steps": 1, "disable_tqdm": True}
    trainer = names["PairTrainer"](
        model,
        args=DPOConfig(output_dir=str(tmp_path / "out"), **options),
        train_dataset=exported,
        processing_class=digits(),
    )
    trainer.train()
    (loss,) = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert loss == pytest.approx(math.log(2), abs=1e-5)


def digits() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate("0123456789")}, merges=[]))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="0", pad_token="0")
