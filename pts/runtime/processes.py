"""Workers as processes of this machine: how they are started, heard and ended.

Processes are spawned, not forked: an engine's threads and CUDA contexts do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from pts.engines.base import Engine
from pts.errors import ConfigError
from pts.runtime.machine import END_SECONDS, worker_environment
from pts.runtime.searcher import SearchSpec, Work


@dataclass(frozen=True, slots=True, eq=False)
class WorkerProcess:
    """A worker process and the parent's end of its pipe."""

    process: SpawnProcess
    pipe: Connection

    def fileno(self) -> int:
        """Of the pipe, for `multiprocessing.connection.wait`."""
        return self.pipe.fileno()

    def send(self, order: object) -> None:
        self.pipe.send(order)

    def recv(self) -> Any:
        return self.pipe.recv()

    def join(self, seconds: float) -> None:
        self.process.join(seconds)

    def kill(self) -> None:
        self.process.kill()
        self.pipe.close()

    def end(self) -> str:
        self.process.join(END_SECONDS)
        self.kill()  # one that has lost its pipe without ending
        self.process.join()
        return _death(self.process.exitcode)


@dataclass(frozen=True, slots=True)
class ProcessLaunch:
    """How the worker processes of a run are started: `work(pipe, make_engine, spec)` in each."""

    work: Work
    make_engine: Callable[[], Engine]
    spec: SearchSpec
    workers: int

    def check(self) -> None:
        """Raise ConfigError for what cannot be handed to another process."""
        given = {"engine": self.make_engine, "verifier": self.spec.verifier}
        faults = []
        for name, value in given.items():
            try:
                pickle.dumps(value)
            except Exception as error:  # a class's own code runs when it is pickled
                faults.append(
                    f"the {name} cannot be handed to worker processes ({error}); define it at the "
                    "top level of a module, without lambdas and open files"
                )
        if faults:
            raise ConfigError(*faults)

    def open(self) -> None:
        """Nothing is shared by the processes."""

    def start(self, number: int) -> WorkerProcess:
        """Start worker `number`."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=self.work,
            args=(theirs, self.make_engine, self.spec),
            name=f"pts-worker-{number}",
        )
        # It has variables, which are read before any module is, and no Ctrl-C, which ends the
        # parent, which ends it.
        variables = worker_environment(number, self.workers)
        before = {name: os.environ[name] for name in variables if name in os.environ}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        os.environ.update(variables)
        try:
            process.start()
        finally:
            for name in variables:
                del os.environ[name]
            os.environ.update(before)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        return WorkerProcess(process, ours)

    def wait(self, workers: Sequence[Any]) -> list[Any]:
        """Those that have said something or ended; waits for the first."""
        return list(wait(workers))

    def close(self) -> None:
        """Nothing is left of ended processes."""


def _death(status: int | None) -> str:
    """How a process ended, as words."""
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended with status {status}"
