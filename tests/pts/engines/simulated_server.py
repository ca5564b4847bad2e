"""A batching server as a model of a few numbers, in simulated time: what a limit earns on it."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from pts.engines.server.limits import AdaptiveLimit


@dataclass
class SimulatedServer:
    """Up to `slots` requests share a batch; a step of b of them takes `step + each * b` seconds.

    Further requests wait in line, or are refused where the line is longer than `line`.
    """

    slots: int
    step: float = 0.02
    each: float = 0.0
    line: float = float("inf")
    now: float = 0.0
    _sent: dict[int, float] = field(default_factory=dict)
    _steps: float = 0.0
    _batch: list[tuple[float, int]] = field(default_factory=list)
    """Requests in the batch by the number of steps after which they end."""
    _waiting: deque[tuple[int, int]] = field(default_factory=deque)

    def rate(self, limit: int) -> float:
        """Tokens a second with a fixed limit, while nothing is refused."""
        busy = min(limit, self.slots)
        return busy / (self.step + self.each * busy)

    def send(self, key: int, tokens: int) -> bool:
        """Whether the request is taken."""
        if len(self._batch) < self.slots:
            heapq.heappush(self._batch, (self._steps + tokens, key))
        elif len(self._waiting) < self.line:
            self._waiting.append((key, tokens))
        else:
            return False
        self._sent[key] = self.now
        return True

    def next(self) -> tuple[int, float]:
        """The next request that ends, and the seconds that it took."""
        end, key = heapq.heappop(self._batch)
        self.now += (end - self._steps) * (self.step + self.each * (len(self._batch) + 1))
        self._steps = end
        if self._waiting and len(self._batch) < self.slots:
            other, tokens = self._waiting.popleft()
            heapq.heappush(self._batch, (self._steps + tokens, other))
        return key, self.now - self._sent.pop(key)


def drive(
    server: SimulatedServer,
    rule: AdaptiveLimit,
    replies: int,
    seed: int = 0,
    seen: Callable[[int, float], float] = lambda n, seconds: seconds,
) -> np.ndarray:
    """Keep a server as busy as the rule says; lengths of replies are spread as those of answers.

    `seen` may change what the rule is told of the n-th reply's seconds. Returns, after each reply,
    the time, the limit and the tokens so far, of shape (replies, 3).
    """
    lengths, asked, in_flight = _lengths(np.random.default_rng(seed)), {}, 0
    trace = np.zeros((replies, 3))
    tokens = key = 0
    for n in range(replies):
        while in_flight < rule.limit:
            length, key = next(lengths), key + 1
            if not server.send(key, length):
                rule.overload(rule.epoch)
                break
            asked[key] = rule.epoch, length
            in_flight += 1
        done, seconds = server.next()
        epoch, length = asked.pop(done)
        if rule.add(epoch, seen(n, seconds), length, full=in_flight >= 0.9 * rule.limit):
            rule.decide()
        in_flight -= 1
        tokens += length
        trace[n] = server.now, rule.limit, tokens
    return trace


def rate_of(trace: np.ndarray) -> float:
    """Tokens a second of a part of a trace."""
    return float((trace[-1, 2] - trace[0, 2]) / (trace[-1, 0] - trace[0, 0]))


def _lengths(rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from (1 + rng.gamma(2.0, 30.0, size=1024).astype(int)).tolist()
