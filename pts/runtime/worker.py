"""What a worker does: loads an engine, searches the questions it is leased, one pipe out.

The parent (`pts.runtime.leasing`) sends orders; the worker answers with messages, each a pair:

    ("ready", engine_info)    the engine is loaded
    ("next", None)            room for a question: the parent sends a `LeasedQuestion`
    ("line", (id, line))      of the journal, about a question
    ("done", (record, texts)) a question is finished, with texts of tokens not seen before
    ("progress", counts)      what was done since the last such message, as in `Progress`
    ("idle", None)            everything leased is finished; waits for an order
    ("answer", value)         of a method of `QuestionSearcher` that was ordered, as a `partial`
    ("failed", error)         the worker ends

A worker process ends by itself when its parent does, however that dies; Ray ends its actors.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, TypeAlias

from pts.engines.base import Engine
from pts.errors import EngineError
from pts.runtime.journal import RecordedRollouts, Recorder
from pts.runtime.scheduler import Progress
from pts.runtime.searcher import QuestionSearcher, SearchSpec
from pts.runtime.summary import used_ids
from pts.types import Problem

PROGRESS_SECONDS = 0.2
"""Between two messages about progress."""


LeasedQuestion: TypeAlias = tuple[Problem, RecordedRollouts] | None
"""A question to be searched, and what the journal holds of it; None when there is no other."""


@dataclass(frozen=True, slots=True)
class SearchOrder:
    """An order: search what can be leased, `window` questions at a time, for a journal or none.

    `window` is the worker's share of the questions that are left, where their number is known.
    """

    window: int
    journal: Path | None


def work(pipe: Connection, make_engine: Callable[[], Engine], spec: SearchSpec) -> None:
    """Serve orders until there is None; the whole life of a worker."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    line = _Line(pipe)
    try:
        _Worker(line, QuestionSearcher(make_engine(), spec)).serve()
    except Exception as error:
        line.send(("failed", portable(error)))


def _follow_parent() -> None:
    """SIGKILL this process when its parent has ended, whatever the main thread is at."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


class _Line:
    """The pipe to the parent. Without a parent nothing is left to do, so the process ends."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def send(self, message: tuple[str, Any]) -> None:
        data = ForkingPickler.dumps(message)
        try:
            self._pipe.send_bytes(data)
        except OSError:
            raise SystemExit(1) from None

    def recv(self) -> Any:
        try:
            data = self._pipe.recv_bytes()
        except (EOFError, OSError):
            raise SystemExit(1) from None
        return pickle.loads(data)


class _RemoteJournal(Recorder):
    """The parent's journal: what it holds of a question comes with the lease, lines go to it."""

    def __init__(self, path: Path, pipe: _Line) -> None:
        self.path, self._pipe = path, pipe
        self.leased: dict[str, RecordedRollouts] = {}

    def append(self, question: str, line: bytes) -> None:
        self._pipe.send(("line", (question, line)))

    def _take(self, question: str) -> RecordedRollouts:
        return self.leased.pop(question)


class _Worker:
    """One engine, its questions and the line to the parent."""

    def __init__(self, pipe: _Line, questions: QuestionSearcher) -> None:
        self._pipe, self._questions = pipe, questions
        self._told: set[int] = set()
        self._sent: Counter[str] = Counter()
        self._last = 0.0

    def serve(self) -> None:
        self._pipe.send(("ready", self._questions.engine_info))
        while (order := self._pipe.recv()) is not None:
            if isinstance(order, partial):
                self._pipe.send(("answer", order(self._questions)))
            else:
                self._search(order)

    def _search(self, order: SearchOrder) -> None:
        journal = _RemoteJournal(order.journal, self._pipe) if order.journal is not None else None
        progress = Progress()

        def keep(now: Progress) -> None:
            nonlocal progress
            progress = now
            if time.monotonic() - self._last >= PROGRESS_SECONDS:
                self._report(now)

        self._sent = Counter()
        leased = self._leased(journal)
        for record in self._questions.search(leased, order.window, journal, keep):
            new = used_ids(record.result) - self._told
            self._told |= new
            self._pipe.send(("done", (record, self._questions.token_texts(new))))
        self._report(progress)
        self._pipe.send(("idle", None))

    def _leased(self, journal: _RemoteJournal | None) -> Iterator[Problem]:
        self._pipe.send(("next", None))
        while (leased := self._pipe.recv()) is not None:
            problem, on_file = leased
            if journal is not None:
                journal.leased[problem.id] = on_file
            yield problem
            self._pipe.send(("next", None))

    def _report(self, now: Progress) -> None:
        """Send what has been done since the last report."""
        done = Counter(dataclasses.asdict(now))
        self._pipe.send(("progress", done - self._sent))
        self._sent, self._last = done, time.monotonic()


def portable(error: Exception) -> Exception:
    """The error with its traceback as a note; an EngineError with its text if it cannot travel."""
    lines = traceback.format_exception(error)
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a foreign class raises when it is copied
        copy = EngineError(f"{type(error).__name__}: {error}")
    copy.add_note("in a worker:\n" + "".join(lines))
    return copy
