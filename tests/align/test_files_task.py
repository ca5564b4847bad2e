"""Recipes on a user's own files: all faults at once, splits kept apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.check import check_recipe
from align.errors import RecipeError
from align.recipe import FilesTask, Recipe, parse_recipe
from align.tasks.files import SHOWN, FileTask
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


def config(
    tmp_path: Path, *chats: Any, verifier: str = r"exact:(-?\d+)", **splits: Path
) -> FilesTask:
    return FilesTask(
        kind="files",
        problems=splits,
        chats=write(tmp_path / "chats.jsonl", *(chats or (CHAT,))),
        verifier=verifier,
    )


def faults_of(tmp_path: Path, *rows: Any, verifier: str = r"exact:(-?\d+)") -> list[str]:
    """The faults of a file of test problems, without its folder."""
    with pytest.raises(RecipeError) as caught:
        FileTask(config(tmp_path, verifier=verifier, test=write(tmp_path / "t.jsonl", *rows)))
    return [fault.removeprefix(f"{tmp_path}/") for fault in caught.value.problems]


def faults_in_check(task: FilesTask, *overrides: str) -> list[str]:
    data = {"name": "own", "model": {"path": "builtin:phi-nano"}, "task": task.model_dump()}
    recipe: Recipe = parse_recipe(data, "own.yaml", overrides)
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe)
    return list(caught.value.problems)


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


def test_ids_are_unique_within_a_file(tmp_path: Path) -> None:
    rows = [problem("1"), {**problem("1"), "id": 1}, {**problem("1"), "id": None}]
    assert faults_of(tmp_path, *rows) == [
        "t.jsonl:2: id '1' stands in line 1 too; ids must be unique",
        "t.jsonl:3: id must be text or a number, got null",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": []}, "prompt must be text or a list of messages, got an empty list"),
        ({"prompt": None}, "prompt must be text or a list of messages, got NoneType"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "\ud83d"}, "prompt holds '\\ud83d', half of a surrogate pair"),
        ({"reference": None}, "reference must be text or a number, got null"),
        ({"reference": ["1"]}, 'reference must be text or a number, got ["1"]'),
        ({"reference": True}, "reference must be text or a number, got true"),
        ({"reference": float("nan")}, "reference must be text or a number, got NaN"),
    ],
)
def test_a_row_that_no_stage_could_use_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (fault,) = faults_of(tmp_path, problem("a") | change)
    assert fault.startswith(f"t.jsonl:1: {message}")


def test_numbers_become_text(tmp_path: Path) -> None:
    rows = [{"id": 7, "prompt": "a", "reference": 42.0}, {"id": 8, "prompt": "b", "reference": 0.5}]
    task = FileTask(config(tmp_path, test=write(tmp_path / "t.jsonl", *rows)))
    found = {p.id: p.reference for p in task.problems("test", 2, seed=0)}
    assert found == {"7": "42", "8": "0.5"}


@pytest.mark.parametrize("verifier", ["choice", "code"])
def test_a_reference_that_the_verifier_cannot_read_is_refused(
    tmp_path: Path, verifier: str
) -> None:
    (fault,) = faults_of(tmp_path, {**problem("a"), "reference": "rub bish"}, verifier=verifier)
    assert fault.startswith("t.jsonl:1: reference of a: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "café"}\n'.encode("latin-1"), ":1: byte 0xe9 is not UTF-8"),
        (b"\n\x1f\x8b\x08", ":2: byte 0x8b is not UTF-8"),
        (b"[" * 200_000, ":1: brackets are nested too deeply"),
    ],
)
def test_a_file_of_another_kind_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        FileTask(config(tmp_path, test=path))
    (fault,) = caught.value.problems
    assert fault.startswith(f"{path}{message}")


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", problem("a"))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(FileTask(config(tmp_path, test=path)).problems("test", 5, seed=0)) == 1


def test_faults_of_one_file_are_listed_up_to_a_number(tmp_path: Path) -> None:
    found = faults_of(tmp_path, "a,b,c\n" * (SHOWN + 1234))
    assert len(found) == SHOWN + 1
    assert found[-1] == "t.jsonl: … and 1,234 more"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "t.jsonl", problem("a"))
    task = FileTask(config(tmp_path, test=Path("~/t.jsonl")))
    assert len(task.problems("test", 5, seed=0)) == 1


def test_check_tells_what_the_stages_will_not_find(tmp_path: Path) -> None:
    write(tmp_path / "none.jsonl")
    task = config(tmp_path, "", train=tmp_path / "none.jsonl")
    absent = "task.problems: no {0!r} problems; name a file that holds some as task.problems.{0}"
    assert faults_in_check(task, "evaluate.temperatures=[0.5]") == [
        absent.format("train") + " (needed by pts, full_dpo)",
        "task.chats: holds no chats; name a file that holds some (needed by sft)",
        absent.format("test") + " (needed by evaluate.split, model.few_shot_base)",
        absent.format("dev") + " (needed by evaluate.temperatures)",
    ]


def test_check_asks_for_an_interval_and_for_shots(tmp_path: Path) -> None:
    answer = {"messages": CHAT["messages"][1:]}
    task = config(tmp_path, answer, test=write(tmp_path / "t.jsonl", problem("a")))
    few, shots = faults_in_check(task, "stages=[sft]")
    assert few == "task.problems: 'test' has 1; give 2 problems or more (needed by evaluate.split)"
    assert shots.startswith("task.chats: no chat holds a question and its answer")


def test_check_asks_for_no_more_than_the_stages_do(tmp_path: Path) -> None:
    rows = [problem("a"), problem("b", "1+4?")]
    task = config(tmp_path, test=write(tmp_path / "t.jsonl", *rows))
    data = {"name": "own", "model": {"path": "builtin:phi-nano"}, "task": task.model_dump()}
    check_recipe(parse_recipe(data, "own.yaml", ["stages=[sft]"]))
