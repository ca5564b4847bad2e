"""A second process that evaluates a policy while the next stage trains.

On a CPU both share the cores, half of the threads each, until there is nothing left to train; on an
accelerator everything runs in turn in this process, since two models would share its memory. A
worker whose parent was killed ends itself, so that the same command can go on with its journals.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")


class BackgroundWorker:
    """Runs calls in order, in one worker process or, with `parallel=False`, right away."""

    def __init__(self, parallel: bool) -> None:
        self._pool = _pool() if parallel else None

    def __enter__(self) -> BackgroundWorker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, call: Callable[..., T], *arguments: object) -> Future[T]:
        """Start a call; its function and arguments must be picklable."""
        if self._pool is not None:
            return self._pool.submit(call, *arguments)
        done: Future[T] = Future()
        done.set_result(call(*arguments))
        return done


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(processes: int = 2) -> None:
    """Leave their part of the threads to other processes; OMP_NUM_THREADS overrules this."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, cores() // processes))


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        1,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(os.getpid(),),
    )


def _begin(parent: int) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    share_cores()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
