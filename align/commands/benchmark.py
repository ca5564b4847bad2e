"""`align benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from align.commands.interruption import interruptible
from pts.cli.output import AsJson, show


def benchmark(
    model: Annotated[Path, typer.Argument(help="Folder of a model, or of a stage of a run.")],
    benchmarks: Annotated[
        list[str], typer.Argument(help="Names (arc-easy, gsm8k, ...), .yaml files, lm-eval:TASK.")
    ],
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="key=value for all of them, e.g. limit=200; may be repeated."),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="transformers, vllm, or {kind: server, ...}, as in a recipe.")
    ] = "transformers",
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of the results; runs/benchmarks/RUN-STAGE if not given."),
    ] = None,
    include: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of task files of lm-evaluation-harness."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model on standard benchmarks; the same command goes on where it ended."""
    from align.benchmarks.command import measure

    with interruptible():
        found, text = measure(model, benchmarks, settings or [], output, include, not quiet, engine)
    show(found, text, as_json)
