"""Connections to servers, in pools that are small."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pts.errors import MissingExtra

if TYPE_CHECKING:
    import httpx2

CONNECT_SECONDS = 10.0
LANE = 16
"""Requests that share one connection pool. For each request httpx looks at all connections of its
pool: with 2,000 in flight one pool took 9.9 ms of CPU a request, pools of 16 took 1.6 ms."""


class Lanes:
    """HTTP clients, as many as the requests in flight need."""

    def __init__(self, key: str, reply_seconds: float) -> None:
        """`key` is sent as a bearer token unless empty. Raises MissingExtra without httpx2."""
        try:
            import httpx2
        except ImportError:
            raise MissingExtra("httpx2", "server") from None
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = httpx2.Timeout(reply_seconds, connect=CONNECT_SECONDS, pool=None)
        self._verify = httpx2.create_ssl_context()
        self._all = list[httpx2.AsyncClient]()
        self._free = list[httpx2.AsyncClient]()

    @contextmanager
    def one(self) -> Iterator[httpx2.AsyncClient]:
        """A client for one request."""
        import httpx2

        if not self._free:
            lane = httpx2.AsyncClient(
                headers=self._headers,
                timeout=self._timeout,
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=LANE),
                verify=self._verify,
            )
            self._all.append(lane)
            self._free += [lane] * LANE
        lane = self._free.pop()
        try:
            yield lane
        finally:
            self._free.append(lane)

    async def close(self) -> None:
        """End all connections."""
        await asyncio.gather(*(lane.aclose() for lane in self._all), return_exceptions=True)
