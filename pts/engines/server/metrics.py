"""What a server's /metrics says of its queue, where it has such a page (vLLM; llama.cpp's by
--metrics)."""

from __future__ import annotations

import re
from dataclasses import dataclass

PATH = "/metrics"
WAITING = ("vllm:num_requests_waiting", "llamacpp:requests_deferred")
PREEMPTED = ("vllm:num_preemptions_total",)
QUEUED = 0.25
"""Requests that wait in a server, as a share of those that it is given: more is too many."""
AGAIN = 1.0
"""Seconds to a second look: many wait for the next step of the batch when many replies end."""
_SAMPLE = re.compile(r"^([a-z_:]+)(?:\{[^}]*\})? ([0-9.eE+-]+)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class QueueState:
    """A server's queue at one moment, over all its replicas and clients."""

    waiting: float
    """Requests that are not worked on yet."""
    preempted: float
    """Requests that lost their place in the batch for want of memory, since the server's start."""

    @classmethod
    def read(cls, text: str) -> QueueState | None:
        """From a page in Prometheus' text format; None if it tells nothing of a queue."""
        samples = [(name, float(value)) for name, value in _SAMPLE.findall(text)]
        waiting = [value for name, value in samples if name in WAITING]
        if not waiting:
            return None
        return cls(sum(waiting), sum(value for name, value in samples if name in PREEMPTED))

    def crowded(self, limit: int) -> bool:
        """Whether more waits than belongs to a batch of so many."""
        return self.waiting > QUEUED * limit + 1
