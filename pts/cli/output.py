"""What a command prints: text for a person, or with `--json` the same result as JSON.

    show(result, text_of(result), as_json)

The JSON is the result's own dataclass, or the plain data that its `to_json` makes. Faults go to
standard error either way, and so does with `--json` whatever else a command says.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import typer

from pts.errors import printable

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


class _Printable(logging.Formatter):
    """Messages alone; what a model, a verifier or a server said in them steers no terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def log_to_stderr(level: int = logging.WARNING) -> None:
    """Print what is logged at this level or above."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def show(result: Any, text: str, as_json: bool, err: bool = False) -> None:
    """Print a result; its `text` on standard error with `err`.

    Args:
        result: dataclasses, mappings, sequences, paths and plain values, nested; numbers that are
            not finite become null.
    """
    if as_json:
        from pydantic_core import to_json  # 50 ms that `--help` need not wait for

        said = to_json(result, indent=2, inf_nan_mode="null", fallback=_plain).decode()
        typer.echo(said, err=err)
    else:
        typer.echo(text, err=err)


def _plain(value: Any) -> Any:
    """A mapping that is no dict, or a number of numpy."""
    return dict(value) if isinstance(value, Mapping) else value.item()
