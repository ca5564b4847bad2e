"""`align table`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from align.errors import StageError
from pts.cli.output import AsJson, show

BEGINS = {
    "md": r"\| ",
    "json": r'\{\s*"(rows|measure)":',
    "csv": r"(stage|arms?),",
    "parquet": "PAR1",
}
"""How each form begins."""


def table(
    folder: Annotated[Path, typer.Argument(help="Folder of a run or of a sweep.")],
    form: Annotated[
        Literal["md", "json", "csv", "parquet"],
        typer.Option(
            "--format", help="md; json: all numbers; csv, parquet: a row a stage, arm or point."
        ),
    ] = "md",
    rows: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of a sweep's csv or parquet: arms, or contrasts."),
    ] = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File to write; standard output if not given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the table of a run, or of a sweep, or write it as CSV or Parquet."""
    from align.evaluation.forms import flat_rows, to_csv, write_parquet
    from pts.files import file_fault, replacing

    if output is not None and (
        fault := _of_a_sweep(output) or file_fault(output, BEGINS[form], f"table as {form}")
    ):
        raise StageError(f"--output: {output}: {fault}")
    markdown, data = _read(folder)
    lists = _lists(data)
    chosen = rows or next(iter(lists))
    if chosen not in lists:
        raise StageError(f"--rows: {folder} has no {chosen!r}; it has {', '.join(lists)}")
    if form == "parquet" and output is None:
        raise StageError("--format parquet: writes a file; name it with --output")
    if output is None:
        flat = to_csv(flat_rows(lists[chosen])) if form == "csv" else markdown
        show(data, flat.rstrip("\n"), as_json or form == "json")
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    if form == "parquet":
        write_parquet(flat_rows(lists[chosen]), output)
    else:
        with replacing(output) as file:
            if form == "csv":
                file.write(to_csv(flat_rows(lists[chosen])))
            else:
                file.write(markdown if form == "md" else json.dumps(data, indent=2) + "\n")
    show({"file": output, "format": form}, f"{output}: written", as_json)


def _of_a_sweep(file: Path) -> str:
    """The fault of a file that `align sweep` writes into its folder; empty for another one."""
    from align.run_folder import CELLS

    own = file.stem in ("table", "tuning") and file.suffix in (".md", ".json")
    if own and file.with_name(CELLS).is_dir():
        return f"the sweep in {file.parent} keeps a file of its own there; give another file"
    return ""


def _read(folder: Path) -> tuple[str, dict[str, Any]]:
    """The table as Markdown and as plain data: a run's is made of its evaluations, those of a sweep
    stand in its folder."""
    if (folder / "manifest.json").exists():
        from align.runs import open_run

        found = open_run(folder).table
        return found.to_markdown(), found.to_json()
    for name in ("table", "tuning"):
        if (folder / f"{name}.json").exists():
            texts = [(folder / f"{name}.{end}").read_text("utf-8") for end in ("md", "json")]
            return texts[0], json.loads(texts[1])
    raise StageError(f"{folder}: holds neither a run nor the tables of a sweep")


def _lists(data: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The lists of rows in a table's data, by name."""
    if "rows" in data:
        return {"stages": data["rows"]}
    if "contrasts" in data:
        return {"arms": data["arms"], "contrasts": data["contrasts"]}
    points = [{"arm": arm, **point} for arm, found in data["arms"].items() for point in found]
    return {"points": points}
