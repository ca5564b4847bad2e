"""Starts worker processes: their threads, their CUDA device, their signals.

Processes are spawned, not forked: an engine's threads and CUDA contexts do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from pts.engines.base import Engine
from pts.errors import ConfigError
from pts.runtime.searcher import SearchSpec

THREADS = "OMP_NUM_THREADS"
DEVICES = "CUDA_VISIBLE_DEVICES"
END_SECONDS = 10.0
"""How long a worker may take to end after its last order."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How the workers of a run are started: `work(pipe, make_engine, spec)` in each."""

    work: Callable[[Connection, Callable[[], Engine], SearchSpec], None]
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

    def start(self, number: int) -> tuple[SpawnProcess, Connection]:
        """Start worker `number`: its process and the parent's end of its pipe."""
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
        return process, ours


def worker_environment(number: int, workers: int) -> dict[str, str]:
    """Variables of worker `number`: its share of the cores, one CUDA device in turn.

    A number of threads that is set already stays. CUDA was not run with several devices.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    set_to = {}
    if THREADS not in os.environ:
        set_to[THREADS] = str(max(1, (cores or 1) // workers))
    devices = _devices()
    if devices:
        set_to[DEVICES] = devices[number % len(devices)]
    return set_to


def _devices() -> list[str]:
    """CUDA devices as CUDA_VISIBLE_DEVICES names them, found without touching CUDA."""
    listed = os.environ.get(DEVICES)
    if listed is not None:
        return [name for name in listed.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in told.splitlines()))]
