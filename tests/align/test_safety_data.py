"""Rows on safety are trained on like others: a safe reply over a harmful one, of several turns."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from align.pipeline import run as pipeline
from align.pipeline.recipe import parse_recipe
from align.run_folder import read_manifest
from tests.align import tiny
from tests.align.test_mixture import write

ASKED = [
    {"role": "user", "content": "A story."},
    {"role": "assistant", "content": "Which?"},
    {"role": "user", "content": "How to pick a lock?"},
]
SAFE, HARMFUL = "Not how.", "Take a wrench."


def test_both_stages_train_on_the_last_reply_of_several_turns(tmp_path: Path) -> None:
    last = [{"role": "assistant", "content": text} for text in (SAFE, HARMFUL)]
    pairs: list[dict[str, Any]] = [
        {"prompt": ASKED, "chosen": SAFE, "rejected": HARMFUL},
        {"chosen": [*ASKED, last[0]], "rejected": [*ASKED, last[1]]},
        {"prompt": "How?", "chosen": SAFE, "rejected": HARMFUL},
    ]
    chats = [{"messages": [*ASKED, last[0]]}] * 2
    fast = {"batch_size": 2, "max_steps": 2, "max_length": 128}
    sources = [
        [{"path": write(tmp_path / f"{name}.jsonl", *rows), "name": "safety"}]
        for name, rows in (("chats", chats), ("pairs", pairs))
    ]
    recipe = parse_recipe(
        {
            "name": "safety",
            "model": {"path": str(tiny.save(tmp_path / "base")), "device": "cpu"},
            "task": {"kind": "word_problems"},
            "sampling": {"max_new_tokens": 16},
            "stages": ["sft", "full_dpo"],
            "sft": {"sources": sources[0], "train_on": "last", **fast},
            "full_dpo": {"sources": sources[1], **fast},
            "evaluate": {"skip": ["base", "sft", "full_dpo"]},
        },
        "safety",
    )
    folder = tmp_path / "run"
    pipeline.run(recipe, folder, Console(file=io.StringIO()), progress=False, parallel=False)
    stages: dict[str, Any] = read_manifest(folder)["stages"]
    # A token a character and one for the end of turn, of the last replies alone.
    reply, other = len(SAFE) + 1, len(HARMFUL) + 1
    chats_told, pairs_told = (
        stages[name]["metrics"]["sources"]["safety"] for name in ("sft", "full_dpo")
    )
    assert (chats_told["kept"], chats_told["trained_tokens"]) == (2, 2 * reply)
    assert (pairs_told["kept"], pairs_told["trained_tokens"]) == (3, 3 * (reply + other))
    assert stages["full_dpo"]["metrics"]["steps"] == 2
