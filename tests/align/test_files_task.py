"""Recipes on a user's own files: all faults at once, splits kept apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.data.files import FileTask
from align.errors import RecipeError
from align.recipe import FilesTask
from pts.types import Verdict

CHAT = {
    "messages": [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "The answer is 2."},
    ]
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


def config(tmp_path: Path, *chats: Any, **splits: Path) -> FilesTask:
    return FilesTask(
        kind="files",
        problems=splits,
        chats=write(tmp_path / "chats.jsonl", *(chats or (CHAT,))),
        verifier=r"exact:(-?\d+)",
    )


def problem(name: str, prompt: str = "2+3?") -> dict[str, str]:
    return {"id": name, "prompt": prompt, "reference": "5"}


def test_problems_chats_and_verifier(tmp_path: Path) -> None:
    task = FileTask(config(tmp_path, test=write(tmp_path / "t.jsonl", problem("a"))))
    (only,) = task.problems("test", 10, seed=0)
    assert task.verifier(only, "It is 5").verdict is Verdict.PASS
    assert task.verifier(only, "It is 6").verdict is Verdict.FAIL
    assert task.few_shot(only).prompt == (
        "Question: 1+1?\nAnswer: The answer is 2.\n\nQuestion: 2+3?\nAnswer:"
    )
    assert task.demonstrations(5, seed=0)[0][-1].content == "The answer is 2."


def test_every_fault_names_its_line(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", problem("a"), "{\n", {"id": "b", "reference": "1"})
    wrong_role = {"messages": [{"role": "tool", "content": "x"}]}
    open_turn = {"messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(RecipeError) as caught:
        FileTask(config(tmp_path, wrong_role, open_turn, train=train))
    faults = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    assert "train.jsonl:2: not valid JSON" in faults
    assert "train.jsonl:3: has no 'prompt'" in faults
    assert "chats.jsonl:1: role must be one of" in faults
    assert "chats.jsonl:2: messages must end with the assistant's turn" in faults


def test_a_question_in_two_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'b' of split test stands in train too"):
        FileTask(
            config(
                tmp_path,
                train=write(tmp_path / "train.jsonl", problem("a")),
                test=write(tmp_path / "test.jsonl", problem("b")),
            )
        )
