"""Which server gets a request: the one that has its question's prefixes cached, while it keeps up.

A question's home is the server with the least to do when its first request comes. Its requests wait
in that server's line. A server falls behind when its line is longer than a quarter (`BEHIND`) of
what it is given at a time: a server with room and no line of its own then takes the oldest request
of the one furthest behind, and becomes the home of that question. A server that rests after a
failure is behind with everything.

Rows go first, and up to `ROWS_IN_FLIGHT` of them do not count as requests in flight: they are short
and waited for. A server with slots (llama.cpp) has these for both.
"""

from __future__ import annotations

import math
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from pts.engines.server.endpoints import Endpoint

BEHIND = 0.25
"""Waiting requests over those in flight above which a server's questions may move."""
ROWS_IN_FLIGHT = 64
HOMES = 4096
"""Questions whose home is remembered, the latest ones."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A request that waits for a server."""

    question: Hashable
    """None if it is all the same which server answers."""
    row: bool
    holder: Any = None
    """The caller's."""


class Dispatcher:
    """The lines before the servers of one model.

    Each server is given as many requests as its `rule` says; without rules, all of them together
    get `most`, shared evenly among those that do not rest.
    """

    def __init__(self, endpoints: Sequence[Endpoint], most: int | None) -> None:
        self.endpoints, self.most = endpoints, most
        self._homes = OrderedDict[Hashable, Endpoint]()
        self._lines: dict[bool, dict[Endpoint, deque[Ticket]]]
        self._lines = {row: {e: deque() for e in endpoints} for row in (True, False)}

    def enter(self, ticket: Ticket, now: float) -> None:
        """Put a request into the line of its home."""
        home = self._homes.get(ticket.question)
        if home is None or not home.open(now):
            home = self._lightest(now)
        self._settle(ticket, home)
        self._lines[ticket.row][home].append(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Take a request out of its line."""
        for line in self._lines[ticket.row].values():
            if ticket in line:
                line.remove(ticket)

    def scatter(self, endpoint: Endpoint, now: float) -> None:
        """Spread the line of a server that failed over the others."""
        for lines in self._lines.values():
            tickets = list(lines[endpoint])
            lines[endpoint].clear()
            for ticket in tickets:
                self.enter(ticket, now)

    def take(self, now: float) -> list[tuple[Ticket, Endpoint]]:
        """The requests that can be sent now, and where; `done` is to be called for each later."""
        found = []
        for row, lines in self._lines.items():
            for endpoint, line in lines.items():
                while line and self._room(endpoint, row, now):
                    found.append(self._given(line.popleft(), endpoint))
            for endpoint in self.endpoints:
                while self._room(endpoint, row, now):
                    other = self._behind(row, now)
                    if other is None or other is endpoint:
                        break
                    ticket = lines[other].popleft()
                    self._settle(ticket, endpoint)
                    found.append(self._given(ticket, endpoint))
        return found

    def done(self, ticket: Ticket, endpoint: Endpoint) -> None:
        """A request that was sent has ended, whatever became of it."""
        if ticket.row:
            endpoint.rows -= 1
        else:
            endpoint.in_flight -= 1

    def limit(self, endpoint: Endpoint, now: float) -> int:
        """Requests that a server is given at a time, rows left out."""
        if endpoint.rule is not None:
            return endpoint.rule.limit
        assert self.most is not None
        working = sum(now >= other.backoff_until for other in self.endpoints)
        return min(math.ceil(self.most / max(1, working)), endpoint.slots or self.most)

    def _given(self, ticket: Ticket, endpoint: Endpoint) -> tuple[Ticket, Endpoint]:
        if ticket.row:
            endpoint.rows += 1
        else:
            endpoint.in_flight += 1
        return ticket, endpoint

    def _room(self, endpoint: Endpoint, row: bool, now: float) -> bool:
        if not endpoint.open(now):
            return False
        if endpoint.slots is not None and endpoint.busy >= endpoint.slots:
            return False
        if row:
            return endpoint.slots is not None or endpoint.rows < ROWS_IN_FLIGHT
        if self.most is not None and sum(e.in_flight for e in self.endpoints) >= self.most:
            return False
        return endpoint.in_flight < self.limit(endpoint, now)

    def _behind(self, row: bool, now: float) -> Endpoint | None:
        """The server whose line is the longest for what it is given at a time, if it is too long
        for it; one that takes nothing first."""

        def share(endpoint: Endpoint) -> float:
            line = len(self._lines[row][endpoint])
            if line and not endpoint.open(now):
                return math.inf
            return line / (endpoint.slots or ROWS_IN_FLIGHT if row else self.limit(endpoint, now))

        worst = max(self.endpoints, key=share)
        return worst if share(worst) > BEHIND else None

    def _lightest(self, now: float) -> Endpoint:
        """The server with the least to do, of those that do not rest; of equal ones that with the
        fewest questions."""
        homes = Counter(self._homes.values())

        def load(endpoint: Endpoint) -> tuple[float, int, float]:
            waiting = sum(len(lines[endpoint]) for lines in self._lines.values())
            share = (waiting + endpoint.busy) / self.limit(endpoint, now)
            return share, homes[endpoint], random.random()

        resting = [e for e in self.endpoints if not e.open(now)]
        return min([e for e in self.endpoints if e not in resting] or resting, key=load)

    def _settle(self, ticket: Ticket, home: Endpoint) -> None:
        if ticket.question is None:
            return
        self._homes[ticket.question] = home
        self._homes.move_to_end(ticket.question)
        while len(self._homes) > HOMES:
            self._homes.popitem(last=False)
