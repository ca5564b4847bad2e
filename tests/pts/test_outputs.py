"""Folders and files of others are never written over; outputs are looked at before a model is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pts import SamplingConfig, sample, search
from pts.cli.inputs import read_inputs
from pts.cli.options import SearchOptions
from pts.cli.pairs import Found, write_form
from pts.engines.tabular import TabularEngine, TabularVerifier
from pts.errors import ConfigError, DataError, JournalError
from pts.files import context_length, file_fault, output_fault
from pts.runtime.export import export_dataset
from tests.pts.engine_mutants import MACHINES, PROBLEMS
from tests.pts.scripted import ScriptedEngine, judge_odd, problems
from tests.pts.slow_search import CONFIG
from tests.pts.test_cli import pts
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


def test_what_a_file_may_hold(tmp_path: Path) -> None:
    page, rows = tmp_path / "page.html", tmp_path / "rows.jsonl"
    assert file_fault(page) == ""
    page.touch()
    assert file_fault(page) == "", "an empty file has nothing to lose"
    page.write_text("\n<!DOCTYPE html>\n")
    assert file_fault(page) == ""
    rows.write_text('{"id": "a"}\n')
    assert f"{rows} exists and holds no page; it is not written over" in file_fault(rows)
    assert file_fault(rows, r'\{"id"', "rows") == ""
    assert file_fault(tmp_path) == "it is a folder; name a file"
    os.mkfifo(tmp_path / "pipe")
    assert "is neither a file nor a folder" in file_fault(tmp_path / "pipe")


@pytest.mark.parametrize("mark", ["journal.jsonl", "manifest.json"])
def test_a_run_keeps_its_own_files(tmp_path: Path, mark: str) -> None:
    pairs = tmp_path / "pairs.jsonl"
    assert file_fault(pairs, ".") == ""
    (tmp_path / mark).write_text("{}")
    assert "keeps a file of its own there; give another file" in file_fault(pairs, ".")
    assert "keeps a file of its own there" in file_fault(tmp_path / mark, ".")
    assert file_fault(tmp_path / "wide.jsonl", ".") == ""


def test_a_link_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "scratch").symlink_to("/nonexistent/disk")
    (tmp_path / "loop").symlink_to("loop")
    said = f"{tmp_path}/scratch is a link to /nonexistent/disk, which is not there"
    for inside in ("scratch", "scratch/run", "scratch/a/b"):
        assert said in output_fault(tmp_path / inside, "mark")
        assert said in file_fault(tmp_path / inside)
    assert "loop is a link to loop" in output_fault(tmp_path / "loop", "mark")
    (tmp_path / "scratch").unlink()
    (tmp_path / "scratch").symlink_to(tmp_path / "there")
    (tmp_path / "there").mkdir()
    assert output_fault(tmp_path / "scratch" / "run", "mark") == ""
    assert file_fault(tmp_path / "scratch" / "page.html") == ""


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    search(problems(6), ScriptedEngine(8), judge_odd, CONFIG, output=folder, progress=False)
    return folder


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["report"], "results.jsonl"),
        (["rollouts"], "rollouts.jsonl"),
        (["pairs", "--p-gap", "0.5"], "pairs.jsonl"),
        (["pairs", "--format", "text"], "journal.jsonl"),
    ],
)
def test_no_output_goes_over_the_run_that_is_read(
    searched: Path, capsys: pytest.CaptureFixture[str], words: list[str], name: str
) -> None:
    command, *options = words
    before = (searched / name).read_bytes()
    said = pts(command, searched, *options, "--output", searched / name, status=2, capsys=capsys)
    assert f"--output: {searched / name}: the run in {searched} keeps" in said
    assert (searched / name).read_bytes() == before


def test_an_output_is_written_again_and_no_other_kind_over_it(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = {
        "report": [["report", searched]],
        "rollouts": [
            ["rollouts", searched, "--what", what]
            for what in ("right", "wrong", "pairs", "values", "all")
        ],
        "pairs": [["pairs", searched]],
        "text": [["pairs", searched, "--format", "text"]],
    }
    for kind, commands in kinds.items():
        for command in (*commands, *commands):
            pts(*command, "--output", tmp_path / f"{kind}.jsonl", capsys=capsys)
    for kind in kinds:
        file = tmp_path / f"{kind}.jsonl"
        held = file.read_bytes()
        assert held
        for commands in (commands for other, commands in kinds.items() if other != kind):
            said = pts(*commands[0], "--output", file, status=2, capsys=capsys)
            assert f"{file} exists and holds no " in said
        assert file.read_bytes() == held
    pts("report", searched, "--output", searched / "report.html", capsys=capsys)
    copy = tmp_path / "pairs.jsonl"
    said = pts("pairs", copy, "--output", copy, status=2, capsys=capsys)
    assert f"--output: {copy} is the file that is read" in said
