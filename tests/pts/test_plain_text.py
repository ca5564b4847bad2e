"""YAML and JSON do not pass over keys that stand twice, nor expand without end."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from pts.cli.settings import load_settings
from pts.data.problems import load_problems
from pts.errors import ConfigError, DataError
from pts.plain_text import read_json, read_yaml

LETTERS = "abcdefghi"
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n" for before, after in pairwise(LETTERS)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "'a' stands twice"),
        ("x:\n  y: {b: 1, b: 1}", "line 2: 'b' stands twice"),
        (BOMB, "more than 100,000 values"),
        ("a: &x [*x]", "more than 100,000 values"),
        ("[" * 5000, "nested too deeply"),
        ("a: 2020-99-99", "month"),
        ("a: [", "expected"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_yaml(text)


def test_yaml_that_is_read() -> None:
    assert read_yaml("a: &b {c: 1}\nd: {<<: *b, c: 2}\ne: *b") == {
        "a": {"c": 1},
        "d": {"c": 2},
        "e": {"c": 1},
    }
    assert read_yaml("") is None


def test_json_keys_stand_once() -> None:
    assert read_json('{"a": {"b": 1}, "c": [{"b": 2}]}') == {"a": {"b": 1}, "c": [{"b": 2}]}
    with pytest.raises(ValueError, match="'b' stands twice"):
        read_json('{"a": {"b": 1, "b": 2}}')


def test_files_with_keys_that_stand_twice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text("p_gap: 0.2\np_gap: 0.3\n")
    with pytest.raises(ConfigError, match=r"yaml: not valid YAML: line 1: 'p_gap' stands twice"):
        load_settings(tmp_path / "search.yaml", ())
    row = json.dumps({"prompt": "1", "reference": "2"})
    (tmp_path / "rows.jsonl").write_text(f'{row}\n{row[:-1]}, "reference": "3"}}\n')
    with pytest.raises(DataError, match=r"line 2: not JSON .the key 'reference' stands twice"):
        load_problems(str(tmp_path / "rows.jsonl"))
