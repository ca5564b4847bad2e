"""Checks that do not depend on sampling settings: the live queue across calls, and the texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from pts.engines.base import Wish
from pts.testing.probes import Path
from pts.testing.report import clipped
from pts.testing.rollouts import Desk
from pts.testing.sampling import Seeds


def check_queue(desk: Desk, path: Path, seeds: Seeds, limit: int) -> None:
    """Wishes in waves, an empty queue, and a call that is closed early."""
    keys = count(1000)

    def wish(limit: int, n: int) -> Wish:
        return Wish(next(keys), path.prompt, (), limit, seeds(n))

    desk.collect([wish(1, 2)], [wish(limit, 3), wish(2, 1)], [wish(3, 5)])
    if list(desk.engine.sample(iter([]))):
        cause = "answers of an earlier call are still in the engine"
        desk.notes.add("queue", desk.settings, "no answer to an empty queue", "answers", cause)
    answers = desk.engine.sample(iter([wish(limit, 2) for _ in range(4)]))
    next(answers)
    close = getattr(answers, "close", None)
    if close is not None:
        close()
    desk.collect([wish(limit, 2)])


def check_text(desk: Desk, paths: Sequence[Path]) -> None:
    """`decode` leaves special tokens out, `pieces` shows every token by itself."""
    engine = desk.engine
    stop = min(engine.stop_ids)
    for path in paths:
        where = f"{desk.settings}; problem {path.name}"
        spoken = tuple(token for token in path.ids if token not in engine.stop_ids)
        pieces, text = engine.pieces((*spoken, stop)), engine.decode((*spoken, stop))
        if len(pieces) != len(spoken) + 1 or not all(isinstance(piece, str) for piece in pieces):
            observed = f"{len(pieces)} pieces of {len(spoken) + 1} tokens"
            cause = "special tokens are skipped, or ids are decoded together"
            desk.notes.add("text", where, "one text a token, special ones shown", observed, cause)
        if text != engine.decode(spoken) or engine.decode((stop,)).strip():
            observed = f"the text ends in {clipped(text[-30:])}"
            cause = "decode shows special tokens (skip_special_tokens=False)"
            desk.notes.add("text", where, "decode leaves stop ids out", observed, cause)
