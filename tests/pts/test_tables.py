"""Problems from CSV, Parquet and datasets: the same problems, the same care with faults."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pts.data.problems import load_problems
from pts.data.rows import SHOWN
from pts.errors import DataError
from pts.types import Message, Problem

ROWS: list[dict[str, Any]] = [
    {"name": "a", "question": 'Say "1, 2"\nthen stop.', "answer": "3", "level": "easy"},
    {"name": "007", "question": "Grüße 🎈?", "answer": "x,y", "level": "hard"},
]
COLUMNS = {"id": "name", "prompt": "question", "reference": "answer"}
EXPECTED = [Problem(r["name"], r["question"], r["answer"], {"level": r["level"]}) for r in ROWS]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    """The rows as a file or folder of this kind."""
    path = folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            table.writeheader()
            table.writerows(rows)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    elif kind == "splits":
        datasets.DatasetDict(train=datasets.Dataset.from_list(rows)).save_to_disk(str(path))
    else:  # as a dataset lies on the Hub
        (path / "data").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), path / "data" / "train-00000.parquet")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "saved", "splits", "hub"])
def test_every_kind_of_table_gives_the_same_problems(tmp_path: Path, kind: str) -> None:
    problems = load_problems(write(tmp_path, kind, ROWS), COLUMNS)
    assert len(problems) == 2
    assert list(problems) == EXPECTED
    assert list(problems) == EXPECTED, "they can be iterated again"


@pytest.mark.parametrize("kind", ["csv", "parquet", "saved", "hub"])
def test_a_missing_column_is_one_fault_with_a_hint(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind, ROWS)
    with pytest.raises(DataError) as caught:
        load_problems(path, {"prompt": "qestion", "reference": "key", "id": "name"})
    assert str(caught.value).splitlines() == [
        f"{path}: column 'qestion' (the prompt) is missing; did you mean 'question'?",
        f"{path}: column 'key' (the reference) is missing; it has 'name', 'question', "
        "'answer', 'level'",
    ]


def test_a_column_that_no_jsonl_row_has_is_one_fault(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", ROWS * (SHOWN + 2))
    with pytest.raises(DataError) as caught:
        load_problems(path, COLUMNS | {"prompt": "qestion"})
    hint = "column 'qestion' (the prompt) is missing; did you mean 'question'?"
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: {hint} (in all 44 lines)"
    assert f"{path}, line 3: id 'a' was used on line 1" in lines, "other faults are told as well"


def test_faults_of_rows_carry_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'prompt,reference\n"1+\n1?",2\n2+2?\n,4\n\xff,5\n3+3?,\n')
    with pytest.raises(DataError) as caught:
        load_problems(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for line, number, said in zip(
        lines, (4, 5, 6, 7), ("1 cells under 2", "(the prompt) is null", "not UTF-8", "(the ref"),
        strict=True,
    ):  # fmt: skip
        assert f"line {number}: " in line
        assert said in line
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["x", None], "reference": ["1", "2"]}), path)
    with pytest.raises(DataError, match=r"row 2: column 'prompt' \(the prompt\) is null or empty"):
        load_problems(path)


def test_repeated_ids_are_told_with_both_places(tmp_path: Path) -> None:
    path = write(tmp_path, "parquet", [*ROWS, *ROWS[:1]])
    with pytest.raises(DataError, match=r"row 3: id 'a' was used on row 1"):
        load_problems(path, COLUMNS)


def test_numbers_of_columns_with_nulls_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    numbers = pa.array([1.0, 2.0]), pa.array([42.0, 2.5])
    pq.write_table(
        pa.table({"id": numbers[0], "prompt": ["x", "y"], "reference": numbers[1]}), path
    )
    assert [(p.id, p.reference) for p in load_problems(path)] == [("1", "42"), ("2", "2.5")]


def test_messages_of_parquet_may_have_columns_of_nulls(tmp_path: Path) -> None:
    turns = [
        [{"role": "user", "content": "x", "name": None}],
        [{"role": "user", "content": "y", "name": "Ada"}],
    ]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{"prompt": turns[0], "reference": "1"}]), path)
    assert [p.prompt for p in load_problems(path)] == [(Message("user", "x"),)]
    pq.write_table(pa.Table.from_pylist([{"prompt": turns[1], "reference": "1"}]), path)
    with pytest.raises(DataError, match="text or messages with role and content are needed"):
        load_problems(path)


def test_messages_spelt_as_text_are_not_taken_for_a_prompt(tmp_path: Path) -> None:
    row = {"prompt": json.dumps([{"role": "user", "content": "x"}]), "reference": "1"}
    with pytest.raises(DataError, match="messages are given as text"):
        load_problems(write(tmp_path, "csv", [row]))
    plain = {"prompt": "[1, 2] is a list with a role. True?", "reference": "1"}
    assert next(iter(load_problems(write(tmp_path, "csv", [plain])))).prompt == plain["prompt"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Rome", ("Rome",)),
        (["Rome", "Paris"], ("Rome", "Paris")),
        ([3, 1, 2], ((3, 1, 2),)),
        ([[3, 1], [2]], ((3, 1), (2,))),
        (None, ()),
        ([], ()),
    ],
)
def test_completions_are_texts_or_ids(tmp_path: Path, value: Any, expected: Any) -> None:
    path = write(tmp_path, "jsonl", [{"prompt": "x", "reference": "1", "answers": value}])
    (problem,) = load_problems(path, {"completions": "answers"})
    assert problem.completions == expected
    (problem,) = load_problems(path)
    assert problem.completions == ()
    assert problem.metadata == {"answers": value}


@pytest.mark.parametrize("value", [7, [True], [[-1]], [["x"]], {"a": 1}, [""]])
def test_other_completions_are_refused(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path, "jsonl", [{"prompt": "x", "reference": "1", "answers": value}])
    with pytest.raises(DataError, match="answers: texts, or lists of token ids, are needed"):
        load_problems(path, {"completions": "answers"})


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsnl", b"", r"unknown kind of file '.jsnl'; did you mean '.jsonl'\?"),
        ("x.json", b'[{"prompt": "x"}]', "holds a JSON array; write one object a line"),
        ("x.json", b'[\n{"prompt": "x"}]', "holds a JSON array"),
        ("x.csv", b"", "is empty; a header"),
        ("x.csv", b"prompt,prompt\n", "the header names 'prompt' twice"),
        ("x.csv", b'prompt,reference\n"x,1\n', "is a double quote left open"),
        ("x.csv", "prompt".encode("utf-16"), "is UTF-16"),
        ("x.parquet", b"nothing", "not Parquet"),
        ("folder", None, "no dataset here"),
    ],
)
def test_sources_that_are_no_table(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_problems(path)


def test_one_of_several_splits_has_to_be_named(tmp_path: Path) -> None:
    both = datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:1])
    )
    both.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match=r"holds the splits 'train', 'test'; .* e\.g\. .*/train"):
        load_problems(tmp_path / "saved", COLUMNS)
    assert len(load_problems(tmp_path / "saved" / "test", COLUMNS)) == 1


@pytest.mark.parametrize("source", ["hf:", "hf:name:", "hf:a:b:c:d"])
def test_names_of_the_hub_have_a_form(source: str) -> None:
    with pytest.raises(DataError, match="give hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT"):
        load_problems(source)


def test_without_the_hub_the_way_round_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"hf:none/such.* cannot be read: .*save_to_disk\(FOLDER\)"):
        load_problems("hf:none/such:train")


def test_the_hub_is_asked_for_name_config_and_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, config: str | None, split: str | None) -> Any:
        asked.append((name, config, split))
        table = datasets.Dataset.from_list(ROWS)
        return table if split else datasets.DatasetDict(train=table, test=table)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(load_problems("hf:openai/gsm8k:main:train", COLUMNS)) == EXPECTED
    assert list(load_problems("hf:gsm8k:test", COLUMNS)) == EXPECTED
    with pytest.raises(DataError, match=r"name one|give one of them, e\.g\. hf:gsm8k:train"):
        load_problems("hf:gsm8k", COLUMNS)
    assert asked == [
        ("openai/gsm8k", "main", "train"),
        ("gsm8k", None, "test"),
        ("gsm8k", None, None),
    ]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_memory_does_not_grow_with_the_number_of_questions(tmp_path: Path, kind: str) -> None:
    """A row holds 4,000 characters; 900 more rows may cost a twentieth of theirs."""

    def peak(count: int) -> int:
        rows = [{"id": f"q{k}", "prompt": f"{k:04000}", "reference": "1"} for k in range(count)]
        path = write(tmp_path, kind, rows)
        del rows
        tracemalloc.start()
        problems = load_problems(path)
        assert sum(1 for _ in problems) == len(problems) == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10)  # imports
    assert peak(1_200) - peak(300) < 900 * 4_000 / 20
