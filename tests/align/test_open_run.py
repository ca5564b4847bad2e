"""A run that is opened: by `align.open_run`, in the notebook of the docs, by `align table`."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import typer
from typer.testing import CliRunner

import align
from align.cli import app as align_app
from align.errors import ManifestError, StageError
from align.evaluation.forms import flat_rows
from align.sweep.publish import write_tables
from align.sweep.work import make_cells
from pts.cli.main import app as pts_app
from tests.align.runs import STAGES, write_run
from tests.align.test_sweep import work

NOTEBOOK = Path(__file__).parent.parent.parent / "docs" / "open-a-run.ipynb"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def said(app: typer.Typer, *words: object) -> str:
    done = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_a_run_gives_its_table_stages_metrics_and_pairs(run: Path) -> None:
    opened = align.open_run(run)
    assert [row.stage for row in opened.table.rows] == list(STAGES)
    assert [row.summary.greedy.mean for row in opened.table.rows] == [
        n / 40 for n in STAGES.values()
    ]
    assert list(opened.stages) == ["sft", "pts", "token_dpo", "full_dpo"]
    assert opened.stages["pts"].metrics["pairs"] == 212
    assert opened.stages["pts"].model is None
    # The last line of the file is still being written.
    assert [row["step"] for row in opened.metrics("token_dpo")] == list(range(1, 61))
    lines = (run / "pts" / "pairs.jsonl").read_text().splitlines()
    assert len(opened.pairs()) == len(opened.pairs("pts")) == len(lines)


def test_what_a_run_does_not_hold_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="give the folder of a run"):
        align.open_run(tmp_path)
    opened = align.open_run(run)
    with pytest.raises(StageError, match="no such file; did you mean 'sft'"):
        opened.metrics("sfd")
    (tmp_path / "manifest.json").write_text('{"stages": {}}')
    with pytest.raises(StageError, match="holds no search"):
        align.open_run(tmp_path).pairs()
    with pytest.raises(StageError, match="no policy is measured yet"):
        _ = align.open_run(tmp_path).table


def test_opening_a_run_imports_no_model_library(run: Path) -> None:
    code = (
        f"import sys, align; opened = align.open_run({str(run)!r}); opened.table.to_text();"
        "opened.pairs(); opened.metrics('sft'); opened.table._repr_html_();"
        "print(sorted({'torch', 'transformers', 'trl', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_table_is_html_and_a_data_frame(run: Path) -> None:
    table = align.open_run(run).table
    html = table._repr_html_()
    assert html.count("<table>") == len(table.blocks())
    assert "<th>+ token DPO</th>" in html
    assert "p&lt;0.001" in html
    frame = table.to_pandas()
    assert list(frame["stage"]) == list(STAGES)
    assert list(frame["summary.greedy.mean"]) == [n / 40 for n in STAGES.values()]


def test_the_cells_of_the_notebook_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in cells)
    monkeypatch.chdir(run.parent)
    place = 'FOLDER = "runs/phi-nano-seed0"'
    assert place in code[0]
    names: dict[str, object] = {}
    for text in code:
        exec(text.replace(place, f"FOLDER = {str(run)!r}"), names)
    assert isinstance(names["run"], align.Run)


def test_flat_rows_have_the_columns_of_all() -> None:
    rows = [{"a": 1, "b": {"c": 2.5, "d": [1, 2]}}, {"a": 3, "e": {}, "f": "x"}]
    assert flat_rows(rows) == [
        {"a": 1, "b.c": 2.5, "b.d": "[1, 2]", "f": None},
        {"a": 3, "b.c": None, "b.d": None, "f": "x"},
    ]


def test_the_table_of_a_run_as_markdown_json_csv_and_parquet(run: Path, tmp_path: Path) -> None:
    table = align.open_run(run).table
    assert said(align_app, "table", run) == table.to_markdown()
    data = json.loads(json.dumps(table.to_json()))
    assert json.loads(said(align_app, "table", run, "--json")) == data
    rows = list(csv.DictReader(io.StringIO(said(align_app, "table", run, "--format", "csv"))))
    wanted = flat_rows(table.to_json()["rows"])
    assert [list(row) for row in rows] == [list(row) for row in wanted]
    assert [float(row["summary.greedy.mean"]) for row in rows] == [n / 40 for n in STAGES.values()]
    assert rows[0]["steps.greedy.adjusted"] == ""
    file = tmp_path / "table.parquet"
    said(align_app, "table", run, "--format", "parquet", "--output", file)
    assert pyarrow.parquet.read_table(file).to_pylist() == wanted
    with pytest.raises(StageError, match="name it with --output"):
        said(align_app, "table", run, "--format", "parquet")


def test_the_tables_of_a_sweep(tmp_path: Path) -> None:
    asked = work(tmp_path, [0, 1, 2])
    make_cells(asked)
    write_tables(asked)
    data = json.loads((asked.output / "table.json").read_text())
    assert json.loads(said(align_app, "table", asked.output, "--json")) == data
    for name in ("arms", "contrasts"):
        text = said(align_app, "table", asked.output, "--format", "csv", "--rows", name)
        assert len(list(csv.DictReader(io.StringIO(text)))) == len(data[name])
    with pytest.raises(StageError, match=r"--rows: .* has no 'points'; it has arms, contrasts"):
        said(align_app, "table", asked.output, "--format", "csv", "--rows", "points")


def test_results_are_json_where_they_are_asked_for_so(run: Path, tmp_path: Path) -> None:
    """Everything that a command prints on standard output is one JSON text."""
    checked = json.loads(said(align_app, "check", "phi-nano", "--json"))
    assert checked["stages"] == ["sft", "rejection_sft", "pts", "token_dpo", "full_dpo"]
    file = tmp_path / "p.jsonl"
    written = json.loads(
        said(align_app, "problems", "phi-nano", "--count", 3, "--output", file, "--json")
    )
    assert written == {"file": str(file), "problems": 3, "split": "dev", "seed": 0}
    page = json.loads(said(align_app, "report", run, "--json"))
    assert page == {"report": str(run / "report.html")}
    questions = json.loads(said(pts_app, "inspect", run / "pts", "--json"))
    assert len(questions) == 3
    one = json.loads(said(pts_app, "inspect", run / "pts", questions[0]["problem_id"], "--json"))
    assert one["solved"] == questions[0]["solved"]
    pairs = json.loads(said(pts_app, "pairs", run / "pts", "--json"))
    assert pairs == [json.loads(line) for line in (run / "pts" / "pairs.jsonl").open()]
    out = tmp_path / "pairs.jsonl"
    told = json.loads(said(pts_app, "pairs", run / "pts", "--output", out, "--json"))
    assert told == {"pairs": len(pairs), "output": str(out)}


def test_every_command_that_prints_a_result_has_json() -> None:
    silent = {"pretrain", "chat"}
    """They have no result: one writes a model, one talks."""
    for app in (align_app, pts_app):
        group = typer.main.get_command(app)
        for name, command in group.commands.items():  # type: ignore[attr-defined]
            options = {option for param in command.params for option in param.opts}
            assert ("--json" in options) != (name in silent), name
