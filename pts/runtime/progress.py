"""Shows how a run is doing: a live line on a terminal, else a log line every half minute."""

from __future__ import annotations

import logging
import shutil
import sys
import time

from pts.runtime.scheduler import Progress

LOG_SECONDS = 30.0

_log = logging.getLogger(__name__)


class ProgressReporter:
    """A context that is called with the runner's `Progress`.

    `total` is the number of questions, if known. `live` draws a line on standard error when that
    is a terminal; otherwise, and with `live` off, a line is logged every `LOG_SECONDS`.
    """

    def __init__(self, total: int | None, live: bool = True) -> None:
        self._total, self._live = total, live and sys.stderr.isatty()
        self._start = self._logged = self._drawn = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._live and now - self._drawn >= 0.2:
            self._draw(describe(progress, self._total, now - self._start))
            self._drawn = now
        elif not self._live and now - self._logged >= LOG_SECONDS:
            _log.info("%s", describe(progress, self._total, now - self._start))
            self._logged = now

    def _draw(self, text: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\x1b[2K{text[:width]}")
        sys.stderr.flush()

    def __enter__(self) -> ProgressReporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._draw("")


def describe(progress: Progress, total: int | None, seconds: float) -> str:
    """One line: questions, rollouts, tokens, rate and, with a total, the time that remains."""
    done = progress.questions
    parts = [f"{done}/{total} questions" if total is not None else f"{done} questions"]
    parts.append(f"{progress.rollouts:,} rollouts")
    if progress.replayed:
        parts.append(f"{progress.replayed:,} from the journal")
    rate = progress.tokens / seconds if seconds > 0 else 0.0
    parts.append(f"{progress.tokens:,} tokens ({rate:,.0f}/s)")
    if total is not None and 0 < done < total:
        parts.append(f"{duration(seconds / done * (total - done))} left")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as 12s, 3m05s or 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
