"""A second process that evaluates a policy while the next stage trains.

On a CPU both share the cores, half of the threads each, until there is nothing left to train; on an
accelerator everything runs in turn in this process, since two models would share its memory. A
worker whose parent was killed ends itself, so that the same command can go on with its journals.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.synchronize import Event
from types import TracebackType
from typing import TypeVar

from align.circumstances import cores

T = TypeVar("T")


class BackgroundWorker:
    """Runs calls in order, in one worker process or, with `parallel=False`, right away."""

    def __init__(self, parallel: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._pool = (
            ProcessPoolExecutor(
                1, context, initializer=begin_worker, initargs=(os.getpid(), self._stop)
            )
            if parallel
            else None
        )

    def __enter__(self) -> BackgroundWorker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            if kind is not None:  # an evaluation is not waited for: its journal keeps what is done
                self._stop.set()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, call: Callable[..., T], *arguments: object) -> Future[T]:
        """Start a call; its function and arguments must be picklable."""
        if self._pool is not None:
            return self._pool.submit(call, *arguments)
        done: Future[T] = Future()
        done.set_result(call(*arguments))
        return done


def share_cores(processes: int = 2) -> None:
    """Leave their part of the threads to other processes; OMP_NUM_THREADS overrules this."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // processes))


def begin_worker(parent: int, stop: Event) -> None:
    """What a worker process does first: it leaves Ctrl-C to its parent, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent, stop), daemon=True).start()
    share_cores()


def _end_with(parent: int, stop: Event) -> None:
    while os.getppid() == parent and not stop.wait(0.5):
        pass
    os._exit(1)
