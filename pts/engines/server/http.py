"""HTTP to one or several servers of one model: many requests in flight, retries, dead URLs rested.

Requests run in an event loop on a thread of its own, so that callers stay synchronous. Those of one
question go to one URL while it keeps up (`pts.engines.server.dispatch`), and each URL gets as many
at a time as make it faster (`pts.engines.server.limits`), unless their number is fixed. What may
pass (no connection, a time-out, 429, 5xx) rests the URL for a while, twice as long each time, and
the request is tried again wherever there is room; `Retry-After` is honoured. A URL that failed
three times in a row gets one request at a time until one succeeds. A reply that its reader does not
accept is asked for again a few times; it rests the URL as well, unless the fault is the request's.

The API key is read from PTS_API_KEY, or from the environment variable that is named instead. It is
sent as a bearer token to every URL, and stands in no error, log or repr.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Hashable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

from pts.engines.server.dispatch import Dispatcher, Ticket
from pts.engines.server.endpoints import (
    KEY_VARIABLE,
    Endpoint,
    RetryPolicy,
    Unreadable,
    base_urls,
    retry_after,
)
from pts.engines.server.lanes import CONNECT_SECONDS, Lanes
from pts.engines.server.limits import AdaptiveLimit
from pts.engines.server.metrics import AGAIN, QueueState
from pts.engines.server.metrics import PATH as METRICS
from pts.errors import ConfigError, EngineError

T = TypeVar("T")
Ended: TypeAlias = Callable[[], EngineError | None]
"""Gives the error to raise once the servers are known to be gone."""

METRICS_SECONDS = 2.0
MOST = 1024
"""Requests that a server is given at a time at most, where their number is found out."""
FULL = 0.9
"""Share of a server's limit that must be in flight for a reply to tell of it."""
FIRST_SECONDS = 10.0
"""How long a URL is tried before a run; one that is mistyped should be told soon."""
EXCERPT = 300
"""Characters of a server's reply that an error shows."""
UNUSABLE = "its replies cannot be used"
PASSING = frozenset({408, 425, 429})
"""Statuses below 500 that say: later."""
OVERLOADED = frozenset({429, 503})
"""Statuses that say: fewer at a time."""


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
    """Requests to the servers at `urls`, `in_flight` at a time, rows not counted; if None, as many
    as each server is the faster for, found out while it works.

    `ended` is asked after a failure: an error that it gives is raised, since no other try can
    succeed. Raises ConfigError for malformed URLs (all at once) and MissingExtra without httpx2.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        in_flight: int | None = None,
        retry: RetryPolicy | None = None,
        key_variable: str = KEY_VARIABLE,
        ended: Ended | None = None,
    ) -> None:
        found = base_urls(urls, key_variable)
        if in_flight is not None and in_flight < 1:
            raise ConfigError(f"in_flight must be at least 1, got {in_flight}")
        self.endpoints = [
            Endpoint(url, AdaptiveLimit(MOST) if in_flight is None else None) for url in found
        ]
        self._fixed, self.retry = in_flight, retry or RetryPolicy()
        self._ended = ended or (lambda: None)
        self._key_variable = key_variable
        self._key = os.environ.get(key_variable, "")
        self._lanes = Lanes(self._key, self.retry.reply)
        self._dispatcher = Dispatcher(self.endpoints, in_flight)
        self._queues = dict[Endpoint, QueueState | None]()
        """What each server said last of its queue; None if it does not say."""
        self._deciding = dict[Endpoint, asyncio.Task[None]]()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="pts-http")
        self._thread.start()
        self._closed = weakref.finalize(self, _shut, self._loop, self._thread, self._lanes)

    @property
    def in_flight(self) -> int:
        """Requests that callers should have asked for at a time: as many as are fixed, or enough
        that every server has some waiting for it."""
        return self._fixed or 2 * sum(e.rule.limit for e in self.endpoints if e.rule)

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
        question: Hashable = None,
        size: Callable[[T], int] | None = None,
        failed: list[Try] | None = None,
        again_if_late: bool = True,
    ) -> T:
        """What `read` makes of a server's JSON; `read` raises Unreadable for what it rejects.

        Requests for a `row` are short and waited for, so they do not queue behind the others. Those
        of one `question` share prefixes. `size` counts a value's tokens; without it a reply tells
        nothing of how fast the server is. Tries that failed are put into `failed`. Raises Refused
        for most of 4xx, EngineError once `retry.total` has passed since the first failure, or after
        several replies that `read` rejected (UnscorableError if those lacked what another place
        would have had); Late for the first reply that is not in time, unless `again_if_late`.
        """
        failed, unreadable = [] if failed is None else failed, 0
        while True:
            ticket = Ticket(question, row, self._loop.create_future())
            remedy = UNUSABLE if unreadable else "check that the server runs"
            endpoint = await self._free(ticket, failed, path, remedy)
            epoch, start = endpoint.rule.epoch if endpoint.rule else 0, time.monotonic()
            try:
                _, reply = await self._once(endpoint, path, body)
                value = read(reply)
            except _Failure as failure:
                self._check_running()
                said = failure.reason
                failed.append(Try(time.monotonic(), endpoint.url, said, failure.status))
                self._rest(endpoint, failure, epoch)
                if failure.late and not again_if_late:
                    raise Late(f"{endpoint.url}{path}: {said}") from None
            except Unreadable as why:
                failed.append(Try(time.monotonic(), endpoint.url, str(why)))
                unreadable += 1
                if unreadable >= why.tries:
                    raise self._gave_up(failed, path, UNUSABLE, why.error) from None
                if why.rests:
                    self._rest(endpoint, _Failure(str(why)), epoch)
            else:
                endpoint.failures = 0
                if size is not None:
                    self._learn(endpoint, epoch, time.monotonic() - start, size(value))
                return value
            finally:
                self._dispatcher.done(ticket, endpoint)
                self._dispatch()
            if unreadable:
                await asyncio.sleep(self.retry.first * random.uniform(0, 0.5))

    async def _free(
        self, ticket: Ticket, failed: Sequence[Try], path: str, remedy: str
    ) -> Endpoint:
        """The URL that a request is sent to, once one has room for it."""
        self._check_patience(failed, path, remedy)
        granted: asyncio.Future[Endpoint] = ticket.holder
        self._dispatcher.enter(ticket, time.monotonic())
        self._dispatch()
        try:
            while not granted.done():
                await asyncio.wait([granted], timeout=1.0 if failed else None)
                if not granted.done():
                    self._check_patience(failed, path, remedy)
        except BaseException:
            if granted.done():  # cancelled just then
                self._dispatcher.done(ticket, granted.result())
                self._dispatch()
            else:
                self._dispatcher.leave(ticket)
            raise
        return granted.result()

    def _dispatch(self) -> None:
        for ticket, endpoint in self._dispatcher.take(time.monotonic()):
            ticket.holder.set_result(endpoint)

    def _check_patience(self, failed: Sequence[Try], path: str, remedy: str) -> None:
        now = time.monotonic()
        soonest = min(max(e.backoff_until, now) for e in self.endpoints)
        if failed and soonest - failed[0].at > self.retry.total:
            raise self._gave_up(failed, path, remedy)

    def _rest(self, endpoint: Endpoint, failure: _Failure, epoch: int) -> None:
        """Let a URL rest that failed; what waits for it goes to the others."""
        if endpoint.rule is not None and (failure.late or failure.status in OVERLOADED):
            endpoint.rule.overload(epoch)
        endpoint.fail(failure.reason, self.retry.first, failure.wait)
        now = time.monotonic()
        self._dispatcher.scatter(endpoint, now)
        pause = endpoint.backoff_until - now + random.uniform(0, self.retry.first / 4)
        self._loop.call_later(max(0.0, pause), self._dispatch)

    def _learn(self, endpoint: Endpoint, epoch: int, seconds: float, tokens: int) -> None:
        """Let a reply count for how many requests its URL is given."""
        rule = endpoint.rule
        if rule is None or endpoint in self._deciding:
            return
        full = endpoint.in_flight >= FULL * rule.limit
        if rule.add(epoch, seconds, tokens, full):
            task = self._loop.create_task(self._decide(endpoint, rule))
            self._deciding[endpoint] = task
            task.add_done_callback(lambda _: self._deciding.pop(endpoint))

    async def _decide(self, endpoint: Endpoint, rule: AdaptiveLimit) -> None:
        epoch, before = rule.epoch, self._queues.get(endpoint)
        state = before
        if before is not None or endpoint not in self._queues:
            state = await self._queue(endpoint)
            if state is not None and state.crowded(rule.limit):
                await asyncio.sleep(AGAIN)
                state = await self._queue(endpoint)
            self._queues[endpoint] = state
        if rule.epoch != epoch:  # an overload came in between
            return
        preempted = state and before and state.preempted > before.preempted
        if state is not None and (preempted or state.crowded(rule.limit)):
            rule.overload(epoch, int(state.waiting))
        else:
            rule.decide()
        self._dispatch()

    async def _queue(self, endpoint: Endpoint) -> QueueState | None:
        """What a URL says of its queue; None if it does not, or not at once."""
        import httpx2

        try:
            with self._lanes.one() as lane:
                answer = await lane.get(endpoint.url + METRICS, timeout=METRICS_SECONDS)
        except httpx2.RequestError:
            return None
        return QueueState.read(answer.text) if answer.status_code == 200 else None

    async def _once(self, endpoint: Endpoint, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON of one try.

        Raises _Failure for what may pass, Refused for the rest of 4xx, Unreadable without JSON.
        """
        import httpx2

        method, where = "GET" if body is None else "POST", endpoint.url + path
        try:
            # httpx' own limit is one of each read: a reply that comes in drops would never be late.
            async with asyncio.timeout(self.retry.reply):
                with self._lanes.one() as lane:
                    answer = await lane.request(method, where, json=body)
        except httpx2.ConnectTimeout:
            raise _Failure(f"no connection in {CONNECT_SECONDS:g} s") from None
        except (httpx2.TimeoutException, TimeoutError):
            raise _Failure(f"no reply in {self.retry.reply:g} s", late=True) from None
        except httpx2.RequestError as error:
            raise _Failure(self._hide(f"{type(error).__name__}: {error}".rstrip(": "))) from None
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


def _shut(loop: asyncio.AbstractEventLoop, thread: threading.Thread, lanes: Lanes) -> None:
    async def end() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await lanes.close()
        loop.stop()

    asyncio.run_coroutine_threadsafe(end(), loop)
    if thread is not threading.current_thread():
        thread.join(timeout=CONNECT_SECONDS)
        loop.close()
