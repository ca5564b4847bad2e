"""`align chat`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def chat(
    model: Annotated[Path, typer.Argument(help="Folder of a run, or of a model.")],
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
) -> None:
    """Talk to the result. An empty line or end of input leaves."""
    from align.chat import chat_loop

    chat_loop(model, temperature, max_new_tokens)
