"""Folders and files of others are never written over; outputs are looked at before a model is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pts import SamplingConfig, sample, search
from pts.cli.inputs import read_inputs
from pts.cli.options import SearchOptions
from pts.cli.pairs import Found, write_form
from pts.engines.tabular import TabularEngine, TabularVerifier
from pts.errors import ConfigError, DataError, JournalError
from pts.files import context_length, output_fault
from pts.runtime.export import export_dataset
from tests.pts.engine_mutants import MACHINES, PROBLEMS
from tests.pts.test_export import PAIR, SHORT

PAIRS = [PAIR, SHORT]


def test_what_a_folder_may_hold(tmp_path: Path) -> None:
    assert output_fault(tmp_path / "new" / "er", "mark") == ""
    assert output_fault(tmp_path, "mark") == ""
    (tmp_path / ".lock").touch()
    assert output_fault(tmp_path, "mark") == ""
    (tmp_path / "notes.txt").touch()
    assert "it holds notes.txt but no mark" in output_fault(tmp_path, "mark")
    assert output_fault(tmp_path, "mark", ["report.html"]) == ""
    (tmp_path / "report.html").touch()
    assert "it holds report.html but no mark" in output_fault(tmp_path, "mark", ["report.html"])
    (tmp_path / "mark").touch()
    assert output_fault(tmp_path, "mark", ["report.html"]) == ""
    assert "notes.txt is a file" in output_fault(tmp_path / "notes.txt" / "run", "mark")


def options(folder: Path, **changes: object) -> SearchOptions:
    given = {
        "model": folder / "none",
        "problems": str(folder / "none.jsonl"),
        "verifier": "choice",
        "output": folder / "run",
        **changes,
    }
    return SearchOptions(**given)  # type: ignore[arg-type]


def test_misfits_are_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"text_config": {"max_position_embeddings": 32}}')
    assert context_length(model) == 32
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").touch()
    settings = ["temperature=0", "paths=0", "max_new_tokens=33"]
    with pytest.raises(ConfigError) as caught:
        read_inputs(options(tmp_path, model=model, settings=settings))
    for fault in (
        "temperature: got 0, with which all rollouts are one",
        "paths: got 0, which searches given completions alone",
        f"max_new_tokens: got 33, but the context of {model} is 32 tokens",
        "it holds report.html but no journal.jsonl",
    ):
        assert fault in str(caught.value)


def test_files_that_hold_no_pairs_stay(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# Mine\n")
    for form in ("jsonl", "text"):
        with pytest.raises(ConfigError, match="it is not written over"):
            write_form(Found(PAIRS, None, str), form, readme)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"it holds README\.md but no data"):
        export_dataset(PAIRS, tmp_path)
    assert readme.read_text() == "# Mine\n"
    for name, form in (("pairs.jsonl", "jsonl"), ("pairs.txt", "text")):
        for _ in range(2):
            write_form(Found(PAIRS, None, str), form, tmp_path / name)  # type: ignore[arg-type]
    for _ in range(2):
        export_dataset(PAIRS, tmp_path / "hf")


def test_a_search_does_not_take_the_folder_of_another_command(tmp_path: Path) -> None:
    engine = TabularEngine(MACHINES, SamplingConfig())
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(JournalError, match=r"holds manifest\.json but no journal"):
        search(PROBLEMS, engine, TabularVerifier(), output=tmp_path)
    (tmp_path / "samples.jsonl").touch()
    with pytest.raises(JournalError, match=r"holds samples\.jsonl but no journal"):
        sample(PROBLEMS, engine, TabularVerifier(), n=1, output=tmp_path)
