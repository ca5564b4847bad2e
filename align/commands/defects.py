"""`align defects`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer

from align.commands.interruption import interruptible
from pts.cli.output import AsJson, show


def defects(
    model: Annotated[
        str, typer.Argument(help="Folder of a model or stage, or transformers:PATH, chat:URL, ...")
    ],
    prompts: Annotated[str, typer.Argument(help="File, folder of a dataset, or hf:NAME.")],
    judge: Annotated[str, typer.Option(help="{url: ..., model: ...} or {path: ...}, as a judge.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    labelled: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Replies with a person's severities, to measure the judge by."),
    ] = None,
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="key=value, e.g. threshold=3; may be repeated."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how often a policy's replies have severe defects, by a judge (Phi-4 report: DR-x)."""
    from align.defects.result import to_text
    from align.defects.run import measure_defects
    from align.defects.settings import DefectConfig
    from align.pipeline.overrides import read_settings

    config = read_settings(DefectConfig, None, [f"judge={judge}", *(settings or ())])
    with interruptible():
        result = measure_defects(
            model, prompts, output, config, labelled, partial(typer.echo, err=as_json),
            progress=not quiet,
        )  # fmt: skip
    where = f"Items, for align compare: {output}/samples_defects.jsonl"
    show(result.plain(), f"{to_text(result)}\n\n{where}", as_json)
