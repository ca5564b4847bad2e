"""HTTP to one or several servers of one model: many requests in flight, retries, dead URLs rested.

Requests run in an event loop on a thread of its own, so that callers stay synchronous. A request
goes to the URL with the fewest requests in flight. What may pass (no connection, a time-out, 429,
5xx) rests the URL for a while, twice as long each time, and the request is tried again wherever
there is room; `Retry-After` is honoured. A URL that failed three times in a row gets one request at
a time until one succeeds. A reply that its reader does not accept is asked for again a few times.

The API key is read from PTS_API_KEY, or from the environment variable that is named instead. It is
sent as a bearer token to every URL, and stands in no error, log or repr.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from pts.engines.server.endpoints import (
    KEY_VARIABLE,
    Endpoint,
    RetryPolicy,
    Unreadable,
    base_urls,
    retry_after,
)
from pts.errors import ConfigError, EngineError, MissingExtra

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")
Ended: TypeAlias = Callable[[], EngineError | None]
"""Gives the error to raise once the servers are known to be gone."""

CONNECT_SECONDS = 10.0
ROWS_IN_FLIGHT = 64
LANE = 16
"""Requests that share one connection pool. For each request httpx looks at all connections of its
pool: with 2,000 in flight one pool took 9.9 ms of CPU a request, pools of 16 took 1.6 ms."""
FIRST_SECONDS = 10.0
"""How long a URL is tried before a run; one that is mistyped should be told soon."""
EXCERPT = 300
"""Characters of a server's reply that an error shows."""
PASSING = frozenset({408, 425, 429})
"""Statuses below 500 that say: later."""


class Refused(EngineError):
    """The server will not answer this request however often it is asked (most of 4xx)."""

    def __init__(self, message: str, status: int, body: str) -> None:
        super().__init__(message)
        self.status, self.body = status, body


class Late(EngineError):
    """No reply came in time, and the request was to be tried once."""


@dataclass(slots=True)
class _Failure(Exception):
    """Why one try failed. `wait` is what the server asked for, in seconds."""

    reason: str
    wait: float = 0.0
    status: int = 0
    """The HTTP status, 0 where there was no reply."""
    late: bool = False
    """The reply did not come in time."""


class Try(NamedTuple):
    """A try of a request that failed: when, where, what was said, and the HTTP status (or 0)."""

    at: float
    url: str
    reason: str
    status: int = 0


class Client:
    """Requests to the servers at `urls`; at most `in_flight` at a time, rows not counted.

    `ended` is asked after a failure: an error that it gives is raised, since no other try can
    succeed. Raises ConfigError for malformed URLs (all at once) and MissingExtra without httpx2.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        in_flight: int = 512,
        retry: RetryPolicy | None = None,
        key_variable: str = KEY_VARIABLE,
        ended: Ended | None = None,
    ) -> None:
        self.endpoints = [Endpoint(url) for url in base_urls(urls, key_variable)]
        if in_flight < 1:
            raise ConfigError(f"in_flight must be at least 1, got {in_flight}")
        self.in_flight, self.retry = in_flight, retry or RetryPolicy()
        self._ended = ended or (lambda: None)
        self._key_variable = key_variable
        self._key = os.environ.get(key_variable, "")
        try:
            import httpx2
        except ImportError:
            raise MissingExtra("httpx2", "server") from None
        most = in_flight + ROWS_IN_FLIGHT + len(self.endpoints)
        verify = httpx2.create_ssl_context()
        lanes = [
            httpx2.AsyncClient(
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
                timeout=httpx2.Timeout(self.retry.reply, connect=CONNECT_SECONDS, pool=None),
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=LANE),
                verify=verify,
            )
            for _ in range(math.ceil(most / LANE))
        ]
        self._free_lanes = [lane for lane in lanes for _ in range(LANE)]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="pts-http")
        self._thread.start()
        self._slots = asyncio.Semaphore(in_flight)
        self._row_slots = asyncio.Semaphore(ROWS_IN_FLIGHT)
        self._closed = weakref.finalize(self, _shut, self._loop, self._thread, lanes)

    def limit(self, in_flight: int) -> None:
        """Ask no more at a time than that, rows among them, even if `in_flight` was larger."""
        self.in_flight = min(self.in_flight, in_flight)
        self._slots = self._row_slots = asyncio.Semaphore(self.in_flight)

    def __repr__(self) -> str:
        return f"Client({[endpoint.url for endpoint in self.endpoints]})"

    def close(self) -> None:
        """Drop what is in flight and end the thread. Further calls do nothing."""
        self._closed()

    def submit(self, task: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the client's loop."""
        if not self._closed.alive:
            task.close()
            raise EngineError(f"{self!r} is closed; connect again")
        return asyncio.run_coroutine_threadsafe(task, self._loop)

    def wait(self, task: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the client's loop and return its value."""
        future = self.submit(task)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def ask(self, endpoint: Endpoint, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of one endpoint; 404 is an answer like another, without JSON.

        A GET without a body, a POST with one. For use before a run: tried for FIRST_SECONDS only.
        Raises EngineError when the endpoint cannot be reached, Refused when it wants another key.
        """
        failed, rest = list[Try](), self.retry.first
        while True:
            try:
                return await self._once(endpoint, path, body)
            except Refused as refused:
                if refused.status in (401, 403):
                    raise
                return refused.status, None
            except _Failure as failure:
                self._check_running()
                failed.append(Try(time.monotonic(), endpoint.url, failure.reason))
                rest = max(rest, failure.wait)
            except Unreadable as why:
                failed.append(Try(time.monotonic(), endpoint.url, str(why)))
            if time.monotonic() + rest - failed[0].at > min(FIRST_SECONDS, self.retry.total):
                raise self._gave_up(failed, path, "check the URL and that the server runs")
            await asyncio.sleep(rest)
            rest *= 2

    async def post(
        self,
        path: str,
        body: Any,
        read: Callable[[Any], T],
        *,
        row: bool = False,
        failed: list[Try] | None = None,
        again_if_late: bool = True,
    ) -> T:
        """What `read` makes of a server's JSON; `read` raises Unreadable for what it rejects.

        Requests for a `row` are short and waited for, so they do not queue behind the others. Tries
        that failed are put into `failed`. Raises Refused for most of 4xx, EngineError once
        `retry.total` has passed since the first failure, or after several replies that `read`
        rejected (UnscorableError if those lacked what another place would have had); Late for the
        first reply that is not in time, unless `again_if_late`.
        """
        failed, unreadable = [] if failed is None else failed, 0
        while True:
            async with self._row_slots if row else self._slots:
                endpoint = await self._free(failed, path)
                endpoint.in_flight += 1
                try:
                    _, reply = await self._once(endpoint, path, body)
                    value = read(reply)
                except _Failure as failure:
                    self._check_running()
                    now, said = time.monotonic(), failure.reason
                    failed.append(Try(now, endpoint.url, said, failure.status))
                    endpoint.fail(said, self.retry.first, failure.wait)
                    if failure.late and not again_if_late:
                        raise Late(f"{endpoint.url}{path}: {said}") from None
                except Unreadable as why:
                    failed.append(Try(time.monotonic(), endpoint.url, str(why)))
                    unreadable += 1
                    if unreadable >= why.tries:
                        remedy = "its replies cannot be used"
                        raise self._gave_up(failed, path, remedy, why.error) from None
                else:
                    endpoint.failures = 0
                    return value
                finally:
                    endpoint.in_flight -= 1
            if unreadable:
                await asyncio.sleep(self.retry.first * random.uniform(0, 0.5))

    async def _free(self, failed: Sequence[Try], path: str) -> Endpoint:
        """The least busy URL that is open, once there is one."""
        while True:
            now = time.monotonic()
            soonest = min(max(e.backoff_until, now) for e in self.endpoints)
            if failed and soonest - failed[0].at > self.retry.total:
                raise self._gave_up(failed, path, "check that the server runs")
            free = [endpoint for endpoint in self.endpoints if endpoint.open(now)]
            if free:
                return min(free, key=lambda e: (e.in_flight, random.random()))
            pause = min(soonest - now, 1.0) or self.retry.first / 4
            await asyncio.sleep(pause + random.uniform(0, self.retry.first / 4))

    async def _once(self, endpoint: Endpoint, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of one try.

        Raises _Failure for what may pass, Refused for the rest of 4xx, Unreadable without JSON.
        """
        import httpx2

        method, where = "GET" if body is None else "POST", endpoint.url + path
        lane = self._free_lanes.pop()
        try:
            answer = await lane.request(method, where, json=body)
        except httpx2.ConnectTimeout:
            raise _Failure(f"no connection in {CONNECT_SECONDS:g} s") from None
        except httpx2.TimeoutException:
            raise _Failure(f"no reply in {self.retry.reply:g} s", late=True) from None
        except httpx2.RequestError as error:
            raise _Failure(self._hide(f"{type(error).__name__}: {error}".rstrip(": "))) from None
        finally:
            self._free_lanes.append(lane)
        status = answer.status_code
        if status < 400:
            with suppress(ValueError):
                return status, answer.json()
        said = self._hide(f"HTTP {status}: {' '.join(answer.text.split())[:EXCERPT]!r}")
        if status < 400:
            raise Unreadable(f"{said} is not JSON")
        if status in PASSING or status >= 500:
            raise _Failure(said, retry_after(answer.headers), status)
        if status in (401, 403):
            found = "was not accepted" if self._key else "is not set"
            held = f"{self._key_variable} {found}" if self._key_variable else "no variable is named"
            said += f"; the server wants an API key, and {held}"
        raise Refused(f"{where}: {said}", status, self._hide(answer.text))

    def _check_running(self) -> None:
        error = self._ended()
        if error is not None:
            raise error from None

    def _gave_up(
        self,
        failed: Sequence[Try],
        path: str,
        remedy: str,
        error: type[EngineError] = EngineError,
    ) -> EngineError:
        where = ", ".join(url + path for url in sorted({one.url for one in failed}))
        return error(
            f"{where}: given up after {len(failed)} tries in "
            f"{time.monotonic() - failed[0].at:.0f} s; the last one said: {failed[-1].reason}; "
            f"{remedy}"
        )

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _shut(
    loop: asyncio.AbstractEventLoop, thread: threading.Thread, lanes: list[httpx2.AsyncClient]
) -> None:
    async def end() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.gather(*(lane.aclose() for lane in lanes), return_exceptions=True)
        loop.stop()

    asyncio.run_coroutine_threadsafe(end(), loop)
    if thread is not threading.current_thread():
        thread.join(timeout=CONNECT_SECONDS)
        loop.close()
