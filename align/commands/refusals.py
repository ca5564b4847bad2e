"""`align refusals`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer


def refusals(
    results: Annotated[Path, typer.Argument(help="What align benchmark wrote for a benchmark.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="key=value, e.g. sometimes=0.2; may be repeated."),
    ] = None,
) -> None:
    """Make rows and pairs that teach to refuse, of what a model knows (Phi-4 report, App. A)."""
    from align.pipeline.overrides import read_settings
    from align.refusals.run import make_refusals, summary_text
    from align.refusals.settings import RefusalConfig

    config = read_settings(RefusalConfig, None, settings or ())
    typer.echo(summary_text(make_refusals(results, output, config)))
    typer.echo(f"\nA source of sft: {output}/sft.jsonl; of full_dpo: {output}/pairs.jsonl")
