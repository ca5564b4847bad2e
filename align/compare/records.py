"""What every format is read into: scores of items, by task and measure.

    readings = read_results(Path("out/model-a"))      # align.compare.readers
    readings[("gsm8k", "exact_match")].items["7"].scores

An item is one question of a task. Several scores of it are several samples of one model.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from typing import TypeAlias

Key: TypeAlias = tuple[str, str]
"""Task and measure."""


@dataclass(frozen=True, slots=True)
class ScoredItem:
    """The scores of one item."""

    scores: tuple[float, ...]
    """One a sample, at least one."""
    content: str
    """Stands for question and target: items of one id must have the same on both sides."""
    place: str
    """Where it was read, for messages."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One measure of one task, as one file has it."""

    source: str
    items: dict[str, ScoredItem] = field(default_factory=dict)
    unscored: int = 0
    """Samples without a score of this measure, which are left out."""
    remark: str = ""
    """What is to be told of the file beside the table, such as that a log is not finished."""


Readings: TypeAlias = dict[Key, Reading]


def score_of(value: object) -> float | None:
    """A number or a verdict as a score; None for all else, and for what no float can hold."""
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def digest(*parts: object) -> str:
    """Sixteen hex digits that stand for a question and its target."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
