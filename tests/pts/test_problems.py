"""Loading problems: columns, messages, and every fault at once with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pts.data.problems import load_problems
from pts.data.rows import SHOWN
from pts.errors import ConfigError, DataError
from pts.types import Message, Problem


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "problems.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_columns_are_mapped_and_the_rest_is_metadata(tmp_path: Path) -> None:
    path = write(tmp_path, {"name": 7, "question": "1+1?", "answer": 2, "level": "easy"}, "")
    columns = {"id": "name", "prompt": "question", "reference": "answer"}
    assert list(load_problems(path, columns)) == [Problem("7", "1+1?", "2", {"level": "easy"})]


def test_prompts_are_text_a_user_turn_or_messages(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    path = write(tmp_path, *({"prompt": p, "reference": "2"} for p in ("1+1?", turns)))
    messages = tuple(Message(t["role"], t["content"]) for t in turns)
    assert [p.prompt for p in load_problems(path)] == ["1+1?", messages]
    chat = [p.prompt for p in load_problems(path, chat=True)]
    assert chat == [(Message("user", "1+1?"),), messages]


def test_line_numbers_are_the_ids_where_there_are_none(tmp_path: Path) -> None:
    row = {"prompt": "1+1?", "reference": "2"}
    assert [p.id for p in load_problems(write(tmp_path, row, "", row))] == ["1", "3"]


def test_every_fault_is_told_with_its_line(tmp_path: Path) -> None:
    good = {"id": "a", "prompt": "1+1?", "reference": "2"}
    rows = {
        2: ("{not json", "not JSON"),
        3: ([1], "an object is needed, not [1]"),
        4: (good, "id 'a' was used on line 1"),
        5: (good | {"id": "b", "prompt": ""}, 'text or messages with role and content are needed'),
        6: (good | {"id": "c", "prompt": [{"role": "user"}]}, "not [{"),
        7: (good | {"id": "d", "reference": None}, "column 'reference' (the reference) is null"),
        8: (good | {"id": "e", "reference": True}, "reference: text or a number is needed"),
        9: ({"id": "f", "promt": "x", "reference": "2"}, "did you mean 'promt'?"),
        10: ({"id": "g"}, "column 'prompt' (the prompt) is missing; it has 'id'"),
        11: ('{"id": "h", "prompt": "\\ud83d", "reference": "2"}', "half a surrogate pair"),
    }  # fmt: skip
    with pytest.raises(DataError) as caught:
        load_problems(write(tmp_path, good, *(row for row, _ in rows.values())))
    message = str(caught.value)
    for line, (_, said) in rows.items():
        assert any(f"line {line}: " in m and said in m for m in message.splitlines()), (line, said)


def test_long_lists_of_faults_are_cut(tmp_path: Path) -> None:
    path = write(tmp_path, *["{"] * (SHOWN + 5))
    with pytest.raises(DataError) as caught:
        load_problems(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == SHOWN + 1
    assert lines[-1] == f"{path}: … and 5 more"


def test_a_check_of_the_caller_is_told_with_its_line(tmp_path: Path) -> None:
    rows = [{"id": name, "prompt": "1+1?", "reference": name} for name in "aZ"]
    path = write(tmp_path, *rows, "{")
    with pytest.raises(DataError) as caught:
        load_problems(path, check=lambda p: f"{p.id} is late" if p.reference == "Z" else None)
    first, second = str(caught.value).splitlines()
    assert first == f"{path}, line 2: Z is late"
    assert second.startswith(f"{path}, line 3: not JSON")


def test_a_named_id_column_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "1+1?", "reference": "2"})
    with pytest.raises(DataError, match=r"column 'name' \(the id\) is missing"):
        load_problems(path, {"id": "name"})


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_problems(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no problems"):
        load_problems(write(tmp_path))


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'referense'; did you mean 'reference'\?"):
        load_problems("x.jsonl", {"referense": "answer"})
