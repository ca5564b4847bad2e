"""`align synthesize`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import typer

from align.commands.interruption import interruptible
from pts.cli.output import AsJson, show


def synthesize(
    sources: Annotated[list[str], typer.Argument(help="Files, folders of datasets, or hf:NAME.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    config: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A .yaml file of settings: step, engine, ..."),
    ] = None,
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="key=value over it, e.g. samples=16; may be repeated."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a model make training rows of texts: filter, rewrite, reverse, revise, refuse (Phi-4)."""
    from align.pipeline.overrides import read_settings
    from align.synthesis.run import summary_text
    from align.synthesis.run import synthesize as make
    from align.synthesis.settings import SynthesisConfig

    found = read_settings(SynthesisConfig, config, settings or ())
    with interruptible():
        say = partial(typer.echo, err=as_json)
        result = make(sources, output, found, say, progress=not quiet)
    files = [f"{output}/{file}: {rows:,} rows" for file, rows in result.written.items()]
    show(result, "\n".join([summary_text(result), *files]), as_json)
