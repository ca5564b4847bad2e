"""`align decontaminate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from align.commands.interruption import interruptible
from pts.cli.output import AsJson, show


def decontaminate(
    train: Annotated[list[str], typer.Argument(help="Files, folders of datasets, or hf:NAME.")],
    against: Annotated[
        list[str], typer.Option(help="An evaluation set, in the same forms; may be repeated.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    columns: Annotated[
        str, typer.Option(help="Columns of TRAIN that are looked at, e.g. prompt,answer.")
    ] = "",
    eval_columns: Annotated[
        str, typer.Option(help="Columns of evaluation sets that are looked for.")
    ] = "",
    allow_list: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A text file whose 13-grams are no evidence."),
    ] = None,
    allow_from: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A source from which common 13-grams are learnt; may be repeated."),
    ] = None,
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="key=value, e.g. contaminated_ratio=0.8; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take rows out of training data that hold what evaluation sets ask (Phi-4 report, App. B)."""
    from align.decontamination.report import summary_text
    from align.decontamination.run import Request, decontaminate
    from align.pipeline.overrides import read_settings
    from align.settings import DecontaminationConfig

    request = Request(
        tuple(train), tuple(against),
        columns=tuple(filter(None, columns.split(","))),
        eval_columns=tuple(filter(None, eval_columns.split(","))),
        allow_list=str(allow_list) if allow_list else None,
        allow_from=tuple(allow_from or ()),
    )  # fmt: skip
    with interruptible():
        config = read_settings(DecontaminationConfig, None, settings or ())
        summary = decontaminate(request, output, config)
    where = f"Clean rows: {output}/clean; what went, and why: {output}/removed.jsonl"
    show(summary, f"{summary_text(summary)}\n\n{where}", as_json)
