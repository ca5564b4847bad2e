"""Checks that do not depend on sampling settings: the live queue across calls, and the texts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from pts.engines.base import SampleRequest
from pts.testing.probes import ProbePath
from pts.testing.report import clipped
from pts.testing.rollouts import EngineHarness


def check_queue(harness: EngineHarness, path: ProbePath) -> None:
    """Requests in waves, an empty queue, and a call that is closed early."""
    keys, limit = count(1000), harness.limit

    def request(limit: int, n: int) -> SampleRequest:
        return SampleRequest(next(keys), path.prompt, (), limit, harness.seeds(n))

    harness.collect([request(1, 2)], [request(limit, 3), request(2, 1)], [request(3, 5)])
    if list(harness.engine.sample(iter([]))):
        cause = "answers of an earlier call are still in the engine"
        expected = "no answer to an empty queue"
        harness.notes.add("queue", harness.settings, expected, "answers", cause)
    answers = harness.engine.sample(iter([request(limit, 2) for _ in range(4)]))
    next(answers)
    close = getattr(answers, "close", None)
    if close is not None:
        close()
    harness.collect([request(limit, 2)])


def check_text(harness: EngineHarness, paths: Sequence[ProbePath]) -> None:
    """`decode` leaves special tokens out, `token_texts` shows every token by itself."""
    engine = harness.engine
    stop = min(engine.stop_ids)
    for path in paths:
        place = f"problem {path.name}"
        spoken = tuple(token for token in path.ids if token not in engine.stop_ids)
        texts, text = engine.token_texts((*spoken, stop)), engine.decode((*spoken, stop))
        if len(texts) != len(spoken) + 1 or not all(isinstance(piece, str) for piece in texts):
            observed = f"{len(texts)} texts of {len(spoken) + 1} tokens"
            cause = "special tokens are skipped, or ids are decoded together"
            harness.add("text", place, "one text a token, special ones shown", observed, cause)
        if text != engine.decode(spoken) or engine.decode((stop,)).strip():
            observed = f"the text ends in {clipped(text[-30:])}"
            cause = "decode shows special tokens (skip_special_tokens=False)"
            harness.add("text", place, "decode leaves stop ids out", observed, cause)
