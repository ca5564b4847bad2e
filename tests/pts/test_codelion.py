"""Files of codelion/pts: which records become pairs, with which ids, and what is not made up."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pts.data.codelion import is_codelion, read_codelion
from pts.data.pairs import read_pairs, write_pairs
from pts.errors import DataError
from pts.types import Estimate, TokenPair

VOCAB = {token: i for i, token in enumerate(["<stop>", *"0123456789+=ab", "ab", "Ġ"])}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Single characters, "ab" as one token and <stop>."""
    core = Tokenizer(models.BPE(vocab=VOCAB, merges=[("a", "b")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<stop>")


def ids(text: str) -> tuple[int, ...]:
    return tuple(VOCAB[character] for character in text)


PIVOT: dict[str, Any] = {
    "model_id": "Qwen/Qwen3-0.6B",
    "query": "1+1=",
    "pivot_context": "1+1=",
    "pivot_token": "2",
    "pivot_token_id": VOCAB["2"],
    "prob_before": 0.5,
    "prob_after": 0.9,
    "prob_delta": 0.4,
    "is_positive": True,
    "task_type": "math",
    "dataset_id": "sums",
    "dataset_item_id": "7",
    "rejected_token": "3",
    "rejected_token_id": VOCAB["3"],
}
HARMFUL = PIVOT | {"pivot_token": "4", "pivot_token_id": VOCAB["4"]}
HARMFUL |= {"prob_after": 0.1, "prob_delta": -0.4, "is_positive": False, "rejected_token": "2"}
HARMFUL |= {"rejected_token_id": VOCAB["2"]}
EVENT = {
    "schema_version": "2.0",
    "event_type": "pivotal_token",
    "model_id": "m",
    "query": "1+1=",
    "context": "1+1=",
    "label": "2",
    "token_id": VOCAB["2"],
    "prob_before": 0.5,
    "prob_after": 0.9,
    "prob_delta": 0.4,
    "metadata": {"rejected_token": "5", "rejected_prob": 0.2},
}
PAIR = {
    "prompt": "1+1=",
    "chosen": "2",
    "rejected": "6",
    "metadata": {"original_query": "1+1=", "prob_chosen": 0.9, "prob_rejected": 0.3},
}


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "published.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(folder: Path, tokenizer: Any, *rows: Any) -> list[TokenPair]:
    return read_codelion(write(folder, *rows), tokenizer)


def test_the_three_kinds_of_records_become_pairs(tmp_path: Path, tokenizer: Any) -> None:
    pairs = read(tmp_path, tokenizer, PIVOT, HARMFUL, EVENT, PAIR)
    assert {pair.prompt_ids for pair in pairs} == {ids("1+1=")}
    tokens = [(pair.chosen, pair.rejected) for pair in pairs]
    assert tokens == [ids(t) for t in ("23", "24", "25", "26")]
    assert [pair.problem_id for pair in pairs[:2]] == ["sums:7", "sums:7"]
    assert pairs[2].problem_id == pairs[3].problem_id != "sums:7", "both asked the same question"
    assert [p.policy_digest for p in pairs[1:3]] == [
        "codelion/pts:Qwen/Qwen3-0.6B",
        "codelion/pts:m",
    ]
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    assert read_pairs(tmp_path / "pairs.jsonl") == pairs


def test_nothing_is_claimed_that_the_file_does_not_tell(tmp_path: Path, tokenizer: Any) -> None:
    pivot, harmful, event, pair = read(tmp_path, tokenizer, PIVOT, HARMFUL, EVENT, PAIR)
    unknown = Estimate(0.5, 0.0, 1.0, 0, "unknown")

    def reported(p: float) -> Estimate:
        return Estimate(p, 0.0, 1.0, 0, "reported")

    assert (pivot.p_chosen, pivot.p_rejected) == (reported(0.9), unknown)
    assert (harmful.p_chosen, harmful.p_rejected) == (unknown, reported(0.1))
    assert (event.p_chosen, event.p_rejected) == (reported(0.9), reported(0.2))
    assert pivot.gap == Estimate(0.4, -1.0, 1.0, 0, "reported against the prefix")
    assert harmful.gap == pivot.gap
    assert pair.gap == Estimate(pytest.approx(0.6), -1.0, 1.0, 0, "reported")
    for found in (pivot, harmful, event, pair):
        assert (found.pvalue, found.expected_gain, found.chosen_prob, found.rejected_prob) == (
            1,
            0,
            0,
            0,
        )


def test_what_cannot_be_rebuilt_is_dropped_and_counted(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        PIVOT,
        PIVOT | {"prob_after": 0.8},
        PIVOT | {"rejected_token": None},
        EVENT | {"event_type": "thought_anchor"},
        PIVOT | {"rejected_token": "33", "rejected_token_id": None},
        PIVOT | {"rejected_token": "2", "rejected_token_id": None},
        PIVOT | {"pivot_context": "1?"},
    ]
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path, tokenizer, *rows)) == 1
    (message,) = caplog.messages
    assert "token ids were rebuilt from text" in message
    assert "1 of 7 records became pairs, none confirmed" in message
    for said in (
        "2 dropped: no alternative token",
        "1 dropped: repeats an earlier record",
        "1 dropped: chosen or rejected is not exactly one token",
        "1 dropped: chosen and rejected are the same token",
        "1 dropped: the context does not survive encoding",
    ):
        assert said in message


def test_ids_are_the_recorded_ones_or_those_of_the_text_in_its_place(
    tmp_path: Path, tokenizer: Any
) -> None:
    stranger = PIVOT | {"pivot_token_id": 9, "rejected_token_id": 10**6}  # another tokenizer's
    (pair,) = read(tmp_path, tokenizer, stranger)
    assert (pair.chosen, pair.rejected) == ids("23")
    merged = PIVOT | {"pivot_context": "a", "pivot_token": "b", "pivot_token_id": None}
    (pair,) = read(tmp_path, tokenizer, merged)
    assert (*pair.prompt_ids, pair.chosen) == ids("ab"), "although encoding would merge the two"
    (pair,) = read(tmp_path, tokenizer, PIVOT | {"pivot_context": "ab=<stop>"})
    assert pair.prompt_ids == (VOCAB["ab"], VOCAB["="], VOCAB["<stop>"])


def test_every_row_that_is_no_record_is_told(tmp_path: Path, tokenizer: Any) -> None:
    rows = [PIVOT, {"prompt": "x"}, PIVOT | {"pivot_context": 7}, PAIR | {"rejected": None}]
    rows += [PIVOT | {"prob_delta": "much"}]
    with pytest.raises(DataError) as caught:
        read(tmp_path, tokenizer, *rows)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    said = ("no record of codelion/pts; its columns are 'prompt'", "'pivot_context': text is")
    said += ("'rejected': text is needed, not null", "'prob_delta': a number is needed")
    for number, (line, what) in enumerate(zip(lines, said, strict=True), 2):
        assert f"line {number}: " in line
        assert what in line
    with pytest.raises(DataError, match="holds no records"):
        read(tmp_path, tokenizer)


def test_its_files_are_told_from_ours(tmp_path: Path, tokenizer: Any) -> None:
    for row in (PIVOT, EVENT, PAIR):
        assert is_codelion(write(tmp_path, row))
    pairs = read(tmp_path, tokenizer, PIVOT)
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    assert not is_codelion(tmp_path / "pairs.jsonl")
    write_pairs(tmp_path / "pairs.jsonl", [])
    assert not is_codelion(tmp_path / "pairs.jsonl")
