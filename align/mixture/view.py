"""What a person looks at before a stage trains on rows: counts, lengths, and rows as text.

Of each source a few rows are kept, chosen by a seed, and the first one of each kind of loss.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from align.data.chat import ChatIds
from align.mixture.encode import Encoder, Row
from align.mixture.losses import SourceCounts, faults_of, length

BINS = 12
"""Bins of a histogram up to max_length; one more holds what is longer."""

Piece: TypeAlias = tuple[str, bool]
"""A part of a row's text, and whether it is trained on."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A row as text."""

    place: str
    losses: tuple[str, ...]
    texts: tuple[tuple[str, tuple[Piece, ...]], ...]
    """Its sequences by name: one of a chat, two of a pair."""


@dataclass(slots=True)
class SourceView:
    """What is shown of one source."""

    lengths: list[int] = field(default_factory=lambda: [0] * (BINS + 1))
    """Rows by their tokens before cutting, in bins up to max_length and one above."""
    samples: list[Shown] = field(default_factory=list)
    lost: dict[str, Shown] = field(default_factory=dict)
    """The first row of each kind of loss."""


@dataclass(frozen=True, slots=True)
class StageView:
    """What is shown of one stage."""

    stage: str
    max_length: int
    counts: Mapping[str, SourceCounts]
    sources: Mapping[str, SourceView]
    faults: tuple[str, ...]
    """Losses above the recipe's limits."""

    def edges(self) -> list[int]:
        """Upper ends of the bins, the last but the open one being max_length."""
        return [self.max_length * (k + 1) // BINS for k in range(BINS)]


def look(
    encoder: Encoder, tokenizer: Any, stage: str, max_length: int, samples: int, seed: int
) -> StageView:
    """Encode all rows of a stage and keep what is shown of them.

    Args:
        encoder: of the stage's rows.
        tokenizer: that encodes them.
        stage: its name.
        max_length: of its rows.
        samples: rows to show of each source.
        seed: chooses them.

    Raises:
        StageError, DataError: as `Encoder.rows`.
    """
    views = {name: SourceView() for name in encoder.counts}
    seen = dict.fromkeys(views, 0)
    draws = {name: random.Random(f"{seed}|{name}") for name in views}
    for row in encoder.rows():
        name = row.example.source
        view = views[name]
        tokens = length(row.ids)
        position = BINS if tokens > max_length else max(0, (tokens * BINS - 1) // max_length)
        view.lengths[position] += 1
        for loss in row.settled.losses:
            if loss not in view.lost:
                view.lost[loss] = shown(row, tokenizer)
        if row.settled.row is None:
            continue
        seen[name] += 1  # a reservoir: each row kept is among the samples equally likely
        if len(view.samples) < samples:
            view.samples.append(shown(row, tokenizer))
        elif (place := draws[name].randrange(seen[name])) < samples:
            view.samples[place] = shown(row, tokenizer)
    faults = faults_of(encoder.counts, encoder.mixture.config.losses, stage)
    return StageView(stage, max_length, encoder.counts, views, tuple(faults))


def shown(row: Row, tokenizer: Any) -> Shown:
    """A row as text, as it is trained on; as it was where it is dropped."""
    ids = row.ids if row.settled.row is None else row.settled.row
    if isinstance(ids, ChatIds):
        texts = {"": ids}
    else:
        sides = {"chosen": ids.chosen, "rejected": ids.rejected}
        texts = {
            name: ChatIds(ids.prompt + side, (0,) * len(ids.prompt) + (1,) * len(side))
            for name, side in sides.items()
        }
    named = tuple((name, _pieces(tokenizer, told)) for name, told in texts.items())
    return Shown(row.example.place, row.settled.losses, named)


def _pieces(tokenizer: Any, row: ChatIds) -> tuple[Piece, ...]:
    """The text of each run of tokens that are all trained on, or all not."""
    found: list[Piece] = []
    start = 0
    for end in range(1, len(row.ids) + 1):
        if end == len(row.ids) or row.mask[end] != row.mask[start]:
            text = tokenizer.decode(row.ids[start:end], clean_up_tokenization_spaces=False)
            found.append((str(text), bool(row.mask[start])))
            start = end
    return tuple(found)
