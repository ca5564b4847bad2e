"""The URLs of a model's servers: what may be given, how each fares, and how long is waited."""

from __future__ import annotations

import email.utils
import logging
import random
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pts.engines.server.limits import AdaptiveLimit
from pts.errors import ConfigError, EngineError, UnscorableError

KEY_VARIABLE = "PTS_API_KEY"
LONGEST_REST = 30.0
"""Seconds that a failing URL rests at most, unless its Retry-After says more."""
ALONE_AFTER = 3
"""Failures in a row after which a URL gets one request at a time."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long is waited, in seconds.

    `reply`: for one reply. `total`: for one request since its first failure. `first`: a URL's rest
    after its first failure.
    """

    reply: float = 600.0
    total: float = 300.0
    first: float = 0.5


@dataclass(eq=False, slots=True)
class Endpoint:
    """A base URL (without /v1) and how it fares."""

    url: str
    rule: AdaptiveLimit | None = None
    """Requests that it is given at a time; None where all servers share a fixed number."""
    slots: int | None = None
    """Requests that it can work on at a time, rows among them, if it says."""
    in_flight: int = 0
    """Rows left out."""
    rows: int = 0
    """Rows in flight."""
    failures: int = 0
    """In a row."""
    backoff_until: float = 0.0

    @property
    def busy(self) -> int:
        """Requests of both kinds in flight."""
        return self.in_flight + self.rows

    def bound(self, slots: int) -> None:
        """Give it no more than that at a time: its own queue is short, and drops connections."""
        self.slots = slots
        if self.rule is not None:
            self.rule = AdaptiveLimit(min(self.rule.most, slots))

    def open(self, now: float) -> bool:
        return now >= self.backoff_until and (self.failures < ALONE_AFTER or not self.busy)

    def fail(self, reason: str, first: float, asked: float) -> None:
        """Rest; what fails while the URL already rests tells nothing new."""
        now = time.monotonic()
        if now < self.backoff_until:
            return
        self.failures += 1
        rest = min(first * 2 ** (self.failures - 1), LONGEST_REST) * random.uniform(0.75, 1.25)
        self.backoff_until = now + max(rest, asked)
        _log.warning("%s: %s; rests for %.1f s", self.url, reason, self.backoff_until - now)


class Unreadable(Exception):
    """A reader's word that a reply cannot be used: what is wrong, and what could be done."""

    tries = 5
    """Replies to one request that may be rejected before it is given up."""
    error: type[EngineError] = EngineError
    """What is raised then."""
    rests = True
    """Whether its URL rests like one that failed, so that others are asked."""


class Unlisted(Unreadable):
    """A reply without a list of tokens, which another draw at the same place would have brought."""

    tries = 20
    rests = False  # a matter of the place that was asked about
    error = UnscorableError


def base_urls(urls: Sequence[str], key_variable: str = KEY_VARIABLE) -> list[str]:
    """Base URLs without a trailing / or /v1. Raises ConfigError for every fault."""
    faults, clean = [], []
    for url in urls:
        shown = url.partition("?")[0]  # without what may be secret: a key or a password
        shown = re.sub("//.*@", "//***@", shown)
        try:
            parts = urlsplit(url)
            sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # of the port, or of brackets
            sound = False
        if not sound:
            faults.append(f"{shown!r} is no base URL; give e.g. http://localhost:8000")
        elif "@" in parts.netloc or parts.query:
            faults.append(f"{shown!r}: keys belong into {key_variable}, not into a URL")
        clean.append(url.rstrip("/").removesuffix("/v1").rstrip("/"))
    if not clean:
        faults.append("no server URL was given; give e.g. http://localhost:8000")
    if len(set(clean)) < len(clean):
        faults.append("a server URL occurs twice; give each once")
    if faults:
        raise ConfigError(*faults)
    return clean


def retry_after(headers: Any) -> float:
    """Seconds that a Retry-After header asks for (a number or a date), 0 without one."""
    text = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(text))
    with suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0
