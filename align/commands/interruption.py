"""Ctrl-C in a command that the same words continue: a line, and exit status 130."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def interruptible() -> Iterator[None]:
    """Context: a command that keeps what it has done."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\nStopped; the same command continues.", err=True)
        raise typer.Exit(130) from None
