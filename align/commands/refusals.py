"""`align refusals`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from pts.cli.output import AsJson, show


def refusals(
    results: Annotated[Path, typer.Argument(help="What align benchmark wrote for a benchmark.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="key=value, e.g. sometimes=0.2; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make rows and pairs that teach to refuse, of what a model knows (Phi-4 report, App. A)."""
    from align.pipeline.overrides import read_settings
    from align.refusals.run import make_refusals, summary_text
    from align.refusals.settings import RefusalConfig

    config = read_settings(RefusalConfig, None, settings or ())
    result = make_refusals(results, output, config)
    where = f"A source of sft: {output}/sft.jsonl; of full_dpo: {output}/pairs.jsonl"
    show(result, f"{summary_text(result)}\n\n{where}", as_json)
