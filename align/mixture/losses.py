"""What is lost of the rows on the way to the trainer, counted by source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from align.data.chat import ChatIds, IdPair
from align.settings import LossLimits

DROPPED = ("faulty", "contaminated", "too_long", "fully_masked", "identical_sides")
KEPT = ("truncated", "lost_stop")
"""Losses, by what becomes of the row."""


@dataclass(slots=True)
class SourceCounts:
    """Rows of one source. A row that is drawn again is counted again."""

    rows: int = 0
    """In the source."""
    drawn: int = 0
    kept: int = 0
    """Drawn and not dropped."""
    faulty: int = 0
    contaminated: int = 0
    too_long: int = 0
    fully_masked: int = 0
    identical_sides: int = 0
    truncated: int = 0
    lost_stop: int = 0
    tokens: int = 0
    """Of the rows kept."""
    trained_tokens: int = 0
    """Of these, those that carry loss."""
    longest: int = 0
    """Tokens of the longest row drawn, before cutting."""

    def plain(self) -> dict[str, int]:
        """For the manifest."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Settled:
    """A row of ids as it will be trained on, and what was lost of it."""

    row: ChatIds | IdPair | None
    """None if it is dropped."""
    losses: tuple[str, ...]


def length(row: ChatIds | IdPair) -> int:
    """Tokens of the longest sequence that a row makes."""
    if isinstance(row, ChatIds):
        return len(row.ids)
    return len(row.prompt) + max(len(row.chosen), len(row.rejected))


def settle(
    row: ChatIds | IdPair, max_length: int, cut: bool, stop: int | None, first_tokens: int = 0
) -> Settled:
    """Drop a row, cut it, or leave it as it is.

    Args:
        row: ids; a pair's sides are cut at their ends, its prompt never.
        max_length: tokens of a sequence at most.
        cut: cut what is longer, instead of dropping it.
        stop: id of the end of turn.
        first_tokens: of a pair's sides, those that are taken, which is no loss; 0 takes all.
    """
    losses: tuple[str, ...] = ()
    if first_tokens and isinstance(row, IdPair):
        row = IdPair(row.prompt, row.chosen[:first_tokens], row.rejected[:first_tokens])
    if length(row) > max_length:
        if not cut:
            return Settled(None, ("too_long",))
        row, losses = _cut(row, max_length), ("truncated",)
    if isinstance(row, ChatIds):
        learnt = [token for token, flag in zip(row.ids, row.mask, strict=True) if flag]
        ends = learnt[-1:]
    else:
        if row.chosen and row.chosen == row.rejected:
            return Settled(None, (*losses, "identical_sides"))
        ends = [side[-1] for side in (row.chosen, row.rejected) if side]
        learnt = list(row.chosen) if row.rejected else []
    if not learnt:
        return Settled(None, (*losses, "fully_masked"))
    if not first_tokens and any(end != stop for end in ends):
        losses = (*losses, "lost_stop")
    return Settled(row, losses)


def _cut(row: ChatIds | IdPair, max_length: int) -> ChatIds | IdPair:
    if isinstance(row, ChatIds):
        return ChatIds(row.ids[:max_length], row.mask[:max_length])
    room = max(0, max_length - len(row.prompt))
    return IdPair(row.prompt, row.chosen[:room], row.rejected[:room])


def count(counts: SourceCounts, before: ChatIds | IdPair, settled: Settled) -> None:
    """Add a row that was drawn to its source's counts."""
    counts.longest = max(counts.longest, length(before))
    for loss in settled.losses:
        setattr(counts, loss, getattr(counts, loss) + 1)
    row = settled.row
    if row is None:
        return
    counts.kept += 1
    if isinstance(row, ChatIds):
        counts.tokens += len(row.ids)
        counts.trained_tokens += sum(row.mask)
    else:
        sides = len(row.chosen) + len(row.rejected)
        counts.tokens += 2 * len(row.prompt) + sides
        counts.trained_tokens += sides


def faults_of(counts: Mapping[str, SourceCounts], limits: LossLimits, keys: str) -> Iterator[str]:
    """A fault for each loss of each source above its limit; `keys` is the stage's name."""
    told: dict[str, Any] = limits.model_dump()
    for name, found in counts.items():
        for loss in (*DROPPED, *KEPT):
            share = getattr(found, loss) / max(1, found.drawn)
            if share > told[loss]:
                yield (
                    f"{name}: {getattr(found, loss):,} of {found.drawn:,} rows "
                    f"{WORDS[loss]} ({share:.1%}), above {keys}.losses.{loss} ({told[loss]:g}); "
                    f"{REMEDIES[loss]}, or raise the limit"
                )
    if counts and not any(found.kept for found in counts.values()):
        yield f"{keys}: no row is left to train on"


WORDS = {
    "faulty": "cannot be read",
    "too_long": "are too long and dropped",
    "fully_masked": "have no token to train on",
    "contaminated": "hold what an evaluation set asks",
    "identical_sides": "have two sides that are the same",
    "truncated": "are cut at max_length",
    "lost_stop": "do not end with the end of turn",
}
"""What happened to the rows of each loss."""
REMEDIES = {
    "faulty": "mend them",
    "too_long": "raise max_length",
    "fully_masked": "leave them out, or raise max_length",
    "contaminated": "look at them with align decontaminate",
    "identical_sides": "leave them out",
    "truncated": "raise max_length",
    "lost_stop": "raise max_length, or end the ids with the end of turn",
}
