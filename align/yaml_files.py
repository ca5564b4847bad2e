"""Files of the commands: keys and values, told apart by keys that only one of them has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.errors import RecipeError
from pts.errors import ConfigError
from pts.plain_text import read_keys

KEYS_OF = {
    "align run": ("task", "evaluate", "launch"),
    "align sweep": ("recipe", "extends", "arms"),
    "align benchmark": ("source", "prompt", "score"),
    "align pretrain": ("tokenizer", "textbook", "training"),
}
"""Keys that files of a command have and those of the others do not."""


def read_file(path: Path, command: str) -> dict[str, Any]:
    """The keys and values of a file that is given to a command.

    Raises:
        RecipeError: there is no such file, it is no YAML, or it is one of another command.
    """
    try:
        data = read_keys(path)
    except ConfigError as error:
        raise RecipeError(*error.problems) from None
    of = {other: [key for key in keys if key in data] for other, keys in KEYS_OF.items()}
    likely = max(of, key=lambda other: len(of[other]))
    if of[likely] and not of[command]:
        keys = ", ".join(of[likely])
        raise RecipeError(f"{path}: {keys} belong into files of {likely}, not of {command}")
    return data
