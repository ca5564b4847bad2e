"""How many requests a server is given at a time, found from its replies while it works.

Batching makes replies slower as it makes a server faster, so that latency alone says little. The
rule follows the rate, tokens a second, as TCP's BBR does (Cardwell et al., 2016), and yields to an
overload as AIMD does. By Little's law the rate is the number of requests in flight over the seconds
a token takes. A probe changes the number by a factor and compares the rates: more stays if the rate
rose by enough, fewer stays unless it fell by as much. A probe that succeeded goes on the same way,
one that failed is taken back; after two failures, one each way, there is a pause, each time longer,
which ends early when the rate changes by itself. A probe that ends in an overload makes the next
step half as wide.

    rule = AdaptiveLimit(most=1024)
    epoch = rule.epoch  # when a request is sent
    if rule.add(epoch, seconds=2.5, tokens=100, full=True):
        rule.decide()

Pure: no clock and no random numbers.
"""

from __future__ import annotations

import math
from statistics import median

START = 32
STARTING_STEP = 2.0
"""Factor of a probe before the first one that failed."""
STEP = 1.5
"""Factor of a later probe."""
ENOUGH = 0.15
"""Least elasticity (relative growth of the rate over that of the number) that more is worth."""
SHRINK = 0.8
"""Factor after an overload."""
LEAST_REPLIES = 32
"""Replies that a rate is computed from at least; otherwise as many as are in flight."""
FIRST_PAUSE, LONGEST_PAUSE = 4, 32
"""Rates measured between two pairs of probes."""
CHANGED = 1.4
"""Factor between two rates of one limit that are not of the same server any more."""


class AdaptiveLimit:
    """Requests that one server is given at a time, between 1 and `most`."""

    def __init__(self, most: int, start: int = START) -> None:
        self.most = most
        self.limit = min(start, most)
        self.epoch = 0
        """Grows with each change, so that a reply can be told from one that was asked for before
        it."""
        self._paces = list[float]()
        """Seconds a token, of replies of this epoch."""
        self._base: tuple[int, float] | None = None
        """Number and rate before the probe that is under way."""
        self._upwards = True
        self._step = STARTING_STEP
        self._failed = 0
        """Probes in a row that failed."""
        self._pause, self._left = FIRST_PAUSE, 1
        self._usual = 0.0
        """Rate of the limit before the last probe, which was taken back; 0 before there is one."""

    def __repr__(self) -> str:
        return f"AdaptiveLimit({self.limit} of {self.most})"

    def add(self, epoch: int, seconds: float, tokens: int, full: bool) -> bool:
        """Count a reply; True once there are enough of them to `decide`.

        Args:
            epoch: `self.epoch` when the reply was asked for; one of another epoch is left out.
            seconds: from the question to the reply.
            tokens: of the reply.
            full: as many requests were in flight as may be; others tell nothing of this limit.
        """
        if epoch == self.epoch and full and tokens > 0:
            self._paces.append(seconds / tokens)
        return len(self._paces) >= max(LEAST_REPLIES, self.limit)

    def decide(self) -> None:
        """Take the rate of the replies since the last change, and keep, undo or begin a probe."""
        # The median, since one reply that hangs must not look like a slow server.
        rate = self.limit / max(median(self._paces), 1e-12)
        self._paces.clear()
        if self._base is None:
            self._left -= 1
            if self._usual and not 1 / CHANGED < rate / self._usual < CHANGED:
                self._left, self._pause, self._failed = 0, FIRST_PAUSE, 0
            if self._left <= 0:
                self._probe(rate)
            return
        before, rate_before = self._base
        elasticity = math.log(rate / rate_before) / math.log(self.limit / before)
        if (elasticity >= ENOUGH) == (self.limit > before):
            self._failed, self._pause, self._step = 0, FIRST_PAUSE, max(self._step, STEP)
            self._probe(rate)
        else:
            self._undo(before, rate_before)

    def overload(self, epoch: int, waiting: int = 0) -> None:
        """The server refused, queued or pushed aside a request of this epoch: give it fewer, at
        best by those that it says are `waiting`, at least half as many.

        One of an earlier epoch is left out: many failures at once are one overload.
        """
        if epoch != self.epoch:
            return
        if self._base is not None and self._base[0] < self.limit:
            step = (self.limit / self._base[0] + 1) / 2
            self._undo(*self._base)
            self._step = min(self._step, step)
        else:
            self._base, self._left, self._usual = None, self._pause, 0.0
            self._step = min(self._step, STEP)
            fewer = min(int(self.limit * SHRINK), self.limit - waiting)
            self._set(max(fewer, self.limit // 2))

    def _probe(self, rate: float) -> None:
        """Go on from here, the way that was not tried last."""
        before = self.limit
        step = self._step if self._upwards else 1 / self._step
        self._set(max(before + 1, round(before * step)) if self._upwards else int(before * step))
        if self.limit != before:
            self._base = before, rate
        else:  # at the end of this way
            self._undo(before, rate)

    def _undo(self, before: int, rate: float) -> None:
        """Return from a probe that failed; the next one goes the other way."""
        self._failed += 1
        self._usual = rate
        self._base, self._upwards = None, not self._upwards
        self._step = min(self._step, STEP)
        self._left = 1
        if self._failed > 1:
            self._left, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        self._set(before)

    def _set(self, limit: int) -> None:
        self.limit = max(1, min(limit, self.most))
        self.epoch += 1
        self._paces.clear()
