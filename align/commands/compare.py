"""`align compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from align.errors import CompareError
from pts.cli.output import AsJson, show


def compare(
    a: Annotated[
        Path,
        typer.Argument(
            help="Results of one model: RUN/eval/STAGE, samples_*.jsonl of lm-evaluation-harness, "
            "a log of inspect_ai, or a folder of such files."
        ),
    ],
    b: Annotated[Path, typer.Argument(help="Those of the other, on the same items.")],
    measure: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Compare this measure only; may be repeated."),
    ] = None,
    task: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Compare this task only; may be repeated."),
    ] = None,
    as_json: AsJson = False,
    html: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Also write a page with a picture here."),
    ] = None,
) -> None:
    """Compare two models on the items that both answered: paired tests, Holm over the rows."""
    from align.compare.pairing import compare as compare_readings
    from align.compare.readers import read_results
    from align.compare.table import to_json, to_text, write_page
    from pts.files import file_fault

    if html is not None:
        if html.resolve() in (a.resolve(), b.resolve()) and html.is_file():
            raise CompareError(f"--html: {html}: is what is compared; name another file")
        if fault := file_fault(html):
            raise CompareError(f"--html: {html}: {fault}")
    names = (str(a), str(b))
    found = compare_readings(read_results(a), read_results(b), names, measure or (), task or ())
    show(to_json(found), to_text(found), as_json)
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        write_page(found, html)
        typer.echo(f"\nPage: {html}", err=as_json)
