"""Recipes on a user's own files: all faults at once, splits kept apart."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from align.data.chat import render_chats
from align.errors import RecipeError
from align.models.load import base_path, load_tokenizer
from align.pipeline.check import check_recipe
from align.pipeline.recipe import Recipe, load_recipe, parse_recipe
from align.planning.assumptions import Assumed
from align.planning.task_rows import read_task
from align.run_folder import data_digests
from align.settings import FilesTask
from align.tasks.files import FileTask, _read_chats
from pts.data.rows import SHOWN
from pts.engines.text import encode_problem
from pts.errors import DataError, EngineError
from pts.types import Message, Problem, Verdict
from tests.align import tiny

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
    assert "train.jsonl, line 2: not JSON" in faults
    assert "train.jsonl, line 3: column 'prompt' (the prompt) is missing" in faults
    assert "chats.jsonl, line 1: role must be one of" in faults
    assert "chats.jsonl, line 2: messages must end with the assistant's turn" in faults


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
        "t.jsonl, line 2: id '1' was used on line 1",
        "t.jsonl, line 3: column 'id' (the id) is null or empty",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": []}, "prompt: text or messages with role and content are needed, not []"),
        ({"prompt": None}, "column 'prompt' (the prompt) is null or empty"),
        ({"prompt": ""}, 'prompt: text or messages with role and content are needed, not ""'),
        ({"prompt": [{"role": "user", "content": ""}]}, "prompt is empty"),
        ({"prompt": CHAT["messages"]}, "prompt must not end with the assistant's turn"),
        ({"prompt": "\ud83d"}, "holds half a surrogate pair"),
        ({"reference": None}, "column 'reference' (the reference) is null or empty"),
        ({"reference": ["1"]}, 'reference: text or a number is needed, not ["1"]'),
        ({"reference": True}, "reference: text or a number is needed, not true"),
        ({"reference": float("nan")}, "column 'reference' (the reference) is null or empty"),
    ],
)
def test_a_row_that_no_stage_could_use_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (fault,) = faults_of(tmp_path, problem("a") | change)
    assert fault.startswith(f"t.jsonl, line 1: {message}")


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
    assert fault.startswith("t.jsonl, line 1: reference of a: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": "café"}\n'.encode("latin-1"), ", line 1: not UTF-8 (byte 0xe9"),
        (b"\n\x1f\x8b\x08", ", line 2: not UTF-8 (byte 0x8b"),
        (b"[" * 200_000, ", line 1: not JSON that can be read (nested too deeply)"),
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


def test_an_empty_file_of_problems_is_told_by_its_name(tmp_path: Path) -> None:
    assert faults_in_check(config(tmp_path, train=write(tmp_path / "none.jsonl"))) == [
        f"{tmp_path}/none.jsonl: holds no problems"
    ]


def test_problems_and_chats_come_from_any_table(tmp_path: Path) -> None:
    """Text stays text, and every fault of either names its row."""
    table, chats = tmp_path / "t.csv", tmp_path / "chats.parquet"
    table.write_text("id,prompt,reference,level\n007,2+3?,18.,easy\n")
    pq.write_table(pa.Table.from_pylist([CHAT]), chats)
    task = FileTask(FilesTask(kind="files", problems={"test": table}, chats=chats))
    (only,) = task.problems("test", 5, seed=0)
    assert (only.id, only.reference, only.metadata) == ("007", "18.", {"level": "easy"})
    assert task.demonstrations(1, seed=0)[0][-1].content == "The answer is 2."
    pq.write_table(pa.table({"messages": ["x"]}), chats)
    table.write_text("id,prompt,reference\n007,2+3?\n")
    with pytest.raises(RecipeError) as caught:
        FileTask(FilesTask(kind="files", problems={"test": table}, chats=chats))
    first, second = caught.value.problems
    assert first.startswith(f"{table}, line 2: 2 cells under 3 columns")
    assert second == f'{chats}, row 1: messages: messages with role and content are needed, not "x"'


def test_check_tells_what_the_stages_will_not_find(tmp_path: Path) -> None:
    task = config(tmp_path, "")
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


def test_fewer_rows_than_a_stage_asks_for_are_told_and_planned(tmp_path: Path) -> None:
    rows = [problem(f"q{k}", f"{k}+4?") for k in range(5)]
    test = write(tmp_path / "t.jsonl", *rows[:2])
    train = write(tmp_path / "r.jsonl", *rows[2:])
    task = config(tmp_path, CHAT, CHAT, CHAT, test=test, train=train)
    data = {"name": "own", "model": {"path": "builtin:phi-nano"}, "task": task.model_dump()}
    stages = "stages=[{kind: sft, num_examples: 2}, pts, token_dpo]"
    recipe = parse_recipe(data, "own.yaml", [stages])
    said = [str(one) for one in check_recipe(recipe)]
    assert said == [
        "pts.num_problems: 256 wanted, 3 there",
        "evaluate.problems: 1,000 wanted, 2 there",
    ]
    planned, assumed, short = read_task(recipe)
    assert [str(one) for one in short] == said
    counts = (planned.settings("sft").num_examples, planned.settings("pts").num_problems)
    assert (*counts, planned.evaluate.problems) == (2, 3, 2)
    # The task's own lengths stand in the place of guesses, and say so.
    tokenizer = tiny_tokenizer(recipe)
    [row] = {row.ids: row for row in render_chats(tokenizer, [as_chat(CHAT)])}.values()
    assert assumed.common.chat_tokens == len(row.ids)
    assert assumed.common.loss_share == sum(row.mask) / len(row.ids)
    assert set(assumed.sources) == {"prompt_tokens", "chat_tokens", "loss_share"}


def tiny_tokenizer(recipe: Recipe) -> Any:
    return load_tokenizer(Path(base_path(recipe.model)), recipe.model)


def as_chat(row: dict[str, Any]) -> tuple[Message, ...]:
    return tuple(Message(turn["role"], turn["content"]) for turn in row["messages"])


def test_files_that_are_not_here_leave_a_plan_as_it_is() -> None:
    recipe = load_recipe("phi-4")
    assert read_task(recipe) == (recipe, Assumed(), [])


def test_folders_of_data_have_a_digest_as_files_do(tmp_path: Path) -> None:
    """So that a run goes on in its folder only with the same data."""
    Dataset.from_list([problem("a")]).save_to_disk(str(tmp_path / "train"))
    task = config(tmp_path, train=tmp_path / "train")
    data = {"name": "own", "model": {"path": "builtin:phi-nano"}, "task": task.model_dump()}
    digests = data_digests(parse_recipe(data, "own.yaml", []))
    assert set(digests) == {"task.chats", "task.train"}
    assert FileTask(task).problems("train", 1, seed=0)[0].id == "a"
    Dataset.from_list([problem("b")]).save_to_disk(str(tmp_path / "other"))
    other = parse_recipe(
        data | {"task": {**data["task"], "problems": {"train": str(tmp_path / "other")}}},
        "own.yaml",
        [],
    )
    assert data_digests(other)["task.train"] != digests["task.train"]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"loss": False}, "loss is false"),
        ({"weight": 0}, "weight is 0"),
        ({"tools": [{"name": "add"}]}, "tools is"),
        ({"train": False}, "train is false"),
    ],
)
def test_chats_that_forbid_what_would_be_done_are_refused(
    tmp_path: Path, row: dict[str, object], fault: str
) -> None:
    chat = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "2"}]
    for messages, keys, place in (
        (chat, row, ""),
        ([chat[0], {**chat[1], **row}], {}, "messages.1."),
    ):
        (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": messages, **keys}) + "\n")
        with pytest.raises(DataError, match=f"line 1: {re.escape(place + fault)}.*not honour"):
            _read_chats(str(tmp_path / "chats.jsonl"))
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": chat, "weight": 1}) + "\n")
    assert len(_read_chats(str(tmp_path / "chats.jsonl"))) == 1


def test_chats_that_cannot_be_trained_on_are_told_by_file_and_line(tmp_path: Path) -> None:
    rows = [problem(str(n), f"{n}+3?") for n in range(30)]
    splits = {name: rows[10 * i : 10 * i + 10] for i, name in enumerate(("train", "dev", "test"))}
    files = {name: write(tmp_path / f"{name}.jsonl", *rows) for name, rows in splits.items()}
    question, _ = CHAT["messages"]
    answer = {"role": "assistant", "content": "The answer is 2.<|im_end|>"}
    task = config(tmp_path, CHAT, CHAT, {"messages": [question, answer]}, **files)
    (fault,) = faults_in_check(task, "evaluate.problems=10", "evaluate.dev_problems=10")
    assert fault.startswith(f"{tmp_path}/chats.jsonl, line 3: the assistant's text holds")
    first = {"messages": [answer | {"content": "Hello!"}, *CHAT["messages"]]}
    task = config(tmp_path, CHAT, first, **files)
    (fault,) = faults_in_check(task, "evaluate.problems=10", "evaluate.dev_problems=10")
    assert fault.startswith(f"{tmp_path}/chats.jsonl, line 2: begins with the assistant's turn")


@pytest.mark.parametrize(
    ("turns", "fault"),
    [
        ([("user", "a <|im_end|> b")], "the user's text holds the special token <|im_end|>"),
        ([("system", "<|im_sep|>"), ("user", "a")], "the system's text holds the special token"),
        ([("user", "a"), ("assistant", "b")], "the prompt ends with the assistant's turn"),
    ],
)
def test_a_chat_that_would_be_another_one_as_ids_is_not_encoded(
    turns: list[tuple[str, str]], fault: str
) -> None:
    tokenizer = tiny.tokenizer()
    asked = Problem("a", tuple(Message(*turn) for turn in turns), "1")
    with pytest.raises(EngineError, match=re.escape(f"problem 'a': {fault}")):
        encode_problem(tokenizer, asked)
    plain = Problem("a", "".join(text for _, text in turns), "1")  # may spell a template's tokens
    ids = tokenizer(plain.prompt, add_special_tokens=False)["input_ids"]
    assert encode_problem(tokenizer, plain) == tuple(ids)
