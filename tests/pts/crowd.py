"""Engines and workers for tests of `pts.search(workers=N)`; a search to be killed from outside.

`python -m tests.pts.crowd FOLDER WORKERS [PROBLEMS [RAY_ADDRESS]]` searches with real processes, or
with actors of Ray. `Threads` puts threads in the place of processes: an engine that raises `Killed`
ends its worker without a word.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, ClassVar

from pts.engines.base import SampleRequest
from pts.runtime.processes import ProcessLaunch, WorkerProcess
from pts.runtime.ray_actors import RayActors
from pts.runtime.search import search
from pts.runtime.worker import work
from pts.types import Ids

from .scripted import ScriptedEngine, judge_odd, problems
from .slow_search import CONFIG


class Killed(BaseException):
    """Stands for SIGKILL: no handler of errors sees it."""


class Thread:
    """What `WorkerProcess` uses of a process."""

    exitcode = -9

    def __init__(self, target: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=target, daemon=True)
        self._thread.start()

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout and 0.01)

    def kill(self) -> None:
        """A thread cannot be; it ends when its pipe is closed."""


class Threads(ProcessLaunch):
    """Workers as threads. A killed one leaves `torn`, half a message, in its pipe."""

    torn: ClassVar[bytes] = b""

    def start(self, number: int) -> WorkerProcess:
        ours, theirs = Pipe()

        def live() -> None:
            try:
                work(theirs, self.make_engine, self.spec)
            except Killed:
                with suppress(OSError):  # nobody reads any more
                    os.write(theirs.fileno(), self.torn)
            except SystemExit:
                pass
            finally:
                theirs.close()

        process: Any = Thread(live)
        return WorkerProcess(process, ours)


class MortalEngine(ScriptedEngine):
    """Calls `die` before it answers a request, with its number, over all engines, and the
    request."""

    die: ClassVar[Callable[[int, SampleRequest], None]]
    asked: ClassVar[list[int]]

    @classmethod
    def reset(cls, die: Callable[[int, SampleRequest], None]) -> None:
        cls.die, cls.asked = staticmethod(die), []

    def sample(
        self, requests: Iterator[SampleRequest | None]
    ) -> Iterator[tuple[SampleRequest, list[Ids]]]:
        for request, completions in super().sample(requests):
            type(self).die(len(self.asked), request)
            self.asked += request.seeds
            yield request, completions


class SlowEngine(ScriptedEngine):
    """Writes each seed to a file of its process before it draws; slow enough to be struck."""

    def __init__(self, folder: Path) -> None:
        super().__init__(max_new_tokens=8, width=5)
        self._asked = (folder / f"asked-{os.getpid()}.txt").open("a", buffering=1)

    def sample(
        self, requests: Iterator[SampleRequest | None]
    ) -> Iterator[tuple[SampleRequest, list[Ids]]]:
        for request, completions in super().sample(requests):
            self._asked.write(" ".join(map(str, request.seeds)) + "\n")
            time.sleep(0.002)
            yield request, completions


def main(folder: Path, workers: int, n: int, ray_address: str = "") -> None:
    folder.mkdir(exist_ok=True)
    asked = problems(n)
    executor = RayActors(address=ray_address, cpus_per_worker=1) if ray_address else "pool"
    search(
        asked,
        partial(SlowEngine, folder),
        judge_odd,
        CONFIG,
        output=folder,
        window=4,
        workers=workers,
        executor=executor,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int((sys.argv[3:] or ["20"])[0]), *sys.argv[4:])
