"""The scripts of docs/other-trainers.md, run one after the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from align.data.preferences import PreferencePair, Scores, write_preferences
from align.training.token_dpo import TokenRow, all_margins
from pts.data.pairs import write_pairs
from tests.align import tiny
from tests.align.test_token_dpo import token_pairs
from tests.test_docs import ROOT, blocks


def test_the_scripts_train_token_pairs_and_write_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    tiny.save(tmp_path / "policy")
    pairs = token_pairs("policy")
    write_pairs(tmp_path / "pairs.jsonl", pairs)
    question = {"id": "q", "prompt": "1+1", "reference": "2"}
    (tmp_path / "problems.jsonl").write_text(json.dumps(question) + "\n")
    encode = tiny.tokenizer().encode
    sides = [(*encode(text), tiny.SPECIALS.index("<|im_end|>")) for text in ("= 2", "= 3")]
    score = Scores(5, 5)
    write_preferences(
        tmp_path / "full-pairs.jsonl",
        [PreferencePair("q", tuple(encode("1+1")), *sides, False, score, score, "policy")],
    )
    for text in blocks(ROOT / "docs" / "other-trainers.md", "python"):
        exec(compile(text, "other-trainers.md", "exec"), {"__name__": "docs"})
    rows = [TokenRow(pair.prompt_ids, pair.chosen, pair.rejected) for pair in pairs]
    before, after = (
        sum(all_margins(AutoModelForCausalLM.from_pretrained(tmp_path / folder), rows, 8))
        for folder in ("policy", "trained/model")
    )
    assert after > before
    line = json.loads((tmp_path / "preferences.jsonl").read_text())
    assert line == {"prompt": "1+1", "chosen": "= 2", "rejected": "= 3"}
