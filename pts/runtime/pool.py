"""Several worker processes for one run: leases of questions, deaths, takeovers.

Every worker owns an engine. It is leased questions one by one as it has room, each with what the
journal holds of it; finished queries, which only this process writes to the journal, and results
come back over its pipe. When a worker dies (killed, out of memory, a crash in a library) its pipe
is read to the end. Then its questions are leased again with all that is on file of them, so that no
recorded rollout is drawn again, and another process takes its place.

A lease may be larger than a pipe holds. It is sent only when a worker has asked for it and reads.

Which of its questions killed it is not known, so each of them is from then on searched alone in a
process. One that ends `DEATHS` processes at the same rollout ends the run with its name.
"""

from __future__ import annotations

import logging
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from pts.engines.base import Engine
from pts.errors import EngineError
from pts.runtime.completions import may_outgrow
from pts.runtime.journal import Journal, RecordedRollouts
from pts.runtime.processes import END_SECONDS, Launch
from pts.runtime.results import Record
from pts.runtime.scheduler import Progress
from pts.runtime.searcher import EngineInfo, QuestionSearcher, SearchSpec, share
from pts.runtime.worker import LeasedQuestion, SearchOrder, work
from pts.types import Problem

DEATHS = 3
"""Workers that one question, or the loading of the engine, may cost in a row."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class WorkItem:
    """A question in a worker's hands, or taken back from a dead one."""

    problem: Problem
    recorded: bool = False
    """The journal has got lines about it since it was last leased."""
    deaths: int = 0
    """In a row at the same rollout, while it was alone in its process."""


@dataclass(slots=True)
class _Worker:
    number: int
    process: SpawnProcess
    pipe: Connection
    leases: dict[str, WorkItem] = field(default_factory=dict)
    ready: bool = False
    busy: bool = False
    alone: bool = False
    """It has a question that may share its process with no other."""


class Pool:
    """The workers of a run, an executor and a context; each has `window` questions under way.

    `engine_info` waits for the first engine to be loaded.

    Raises ConfigError when the engine or the verifier cannot be handed to a process, EngineError
    when workers die again and again; errors of a worker are raised here.
    """

    def __init__(self, make_engine: Callable[[], Engine], spec: SearchSpec, workers: int) -> None:
        self._launch = Launch(work, make_engine, spec, workers)
        self._launch.check()
        self._workers: dict[int, _Worker] = {}
        self._facts: EngineInfo | None = None
        self._journal: Journal | None = None
        self._search: SearchOrder | None = None
        self._stream: Iterator[Problem] | None = None
        self._lost: deque[WorkItem] = deque()
        self._wasted = 0
        self._answer: Any = None
        self._progress: Counter[str] = Counter()
        self._token_texts: dict[int, str] = {}
        """Texts of all tokens in the records so far."""

    @property
    def engine_info(self) -> EngineInfo:
        while self._facts is None:
            self._start_missing()
            self._listen()
        return self._facts

    def check(self, problems: Iterable[Problem]) -> None:
        """Raise DataError if any problem or completion cannot be searched."""
        longest, limit = self.engine_info.max_model_len, self.engine_info.sampling.max_new_tokens
        room, own = longest and longest - limit, self._launch.spec.config.paths
        told = [p for p in problems if not own or p.completions or may_outgrow(p, room)]
        if told:
            self._call(partial(QuestionSearcher.check, problems=told))

    def token_texts(self, ids: set[int], *, interrupted: bool) -> dict[int, str]:
        """Texts of tokens; once `interrupted`, of those at hand."""
        known = {i: text for i, text in self._token_texts.items() if i in ids}
        missing = ids - known.keys()
        if missing and not interrupted:
            known |= self._call(partial(QuestionSearcher.token_texts, ids=missing))
        return known

    def _call(self, method: partial[Any]) -> Any:
        """The value of a method of `QuestionSearcher` in some worker, while none is searching."""
        while True:
            while not self._idle:
                self._start_missing()
                self._listen()
            worker = self._idle[0]
            worker.busy = True
            self._send(worker, method)
            while worker.busy and worker.number in self._workers:
                self._listen()
            if not worker.busy:
                return self._answer

    def search(
        self,
        problems: Iterable[Problem],
        left: int | None,
        journal: Journal | None,
        on_progress: Callable[[Progress], None],
    ) -> Iterator[Record]:
        """Search the problems (`left` of them, if that is known); yield records as they finish."""
        self._stream, self._journal = iter(problems), journal
        window = share(left, self._launch.spec.window, self._launch.workers)
        self._search = SearchOrder(window, journal.path if journal else None)
        while self._employ():
            yield from self._listen()
            on_progress(Progress(**self._progress))

    # Work

    @property
    def _idle(self) -> list[_Worker]:
        """Workers that wait for an order."""
        return [w for w in self._workers.values() if w.ready and not w.busy]

    def _employ(self) -> bool:
        """Give idle workers the order to search, replace dead ones; False when all is done."""
        if self._stream is not None or self._lost:
            if not self._idle:
                self._start_missing()
            for worker in self._idle:
                worker.busy = True
                self._send(worker, self._search)
            return True
        return any(worker.busy for worker in self._workers.values())

    def _start_missing(self) -> None:
        for number in range(self._launch.workers):
            if number not in self._workers:
                self._workers[number] = _Worker(number, *self._launch.start(number))

    def _next_item(self, worker: _Worker) -> LeasedQuestion:
        """The next question for a worker; None when it is to finish what it has."""
        lease = None
        if self._lost and not worker.leases:
            lease, worker.alone = self._lost.popleft(), True
        elif not worker.alone and self._stream is not None:
            problem = next(self._stream, None)
            if problem is None:
                self._stream = None
            else:
                lease = WorkItem(problem)
        if lease is None:
            return None
        name, lease.recorded = lease.problem.id, False
        worker.leases[name] = lease
        on_file = self._journal.on_file(name) if self._journal else RecordedRollouts()
        return lease.problem, on_file

    # Messages

    def _listen(self) -> list[Record]:
        """Wait until workers say something; hear one message of each; finished questions."""
        pipes = {worker.pipe: worker for worker in self._workers.values()}
        return [
            record
            for pipe in wait(list(pipes))
            for record in self._hear(pipes[pipe])  # type: ignore[index]
        ]

    def _hear(self, worker: _Worker) -> list[Record]:
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return []
        if kind == "done":
            record, texts = value
            del worker.leases[record.result.problem_id]
            self._token_texts.update(texts)
            self._wasted = 0
            return [record]
        if kind == "line" and self._journal is not None:
            question, line = value
            self._journal.append(question, line)
            worker.leases[question].recorded = True
            return []
        if kind == "failed":
            raise value
        if kind == "ready":
            self._facts, worker.ready = value, True
        elif kind == "next":
            self._send(worker, self._next_item(worker))
        elif kind == "progress":
            self._progress.update(value)  # adds
        else:  # idle, or an answer
            worker.busy = worker.alone = False
            self._answer = value
        return []

    def _send(self, worker: _Worker, order: object) -> None:
        try:
            worker.pipe.send(order)
        except OSError:
            _log.debug("worker %d is gone; its pipe will say so", worker.number)

    # Deaths

    def _bury(self, worker: _Worker) -> None:
        """Take a dead worker's questions back. Its pipe has ended: all that it sent is heard."""
        worker.process.join(END_SECONDS)
        worker.process.kill()  # one that has lost its pipe without ending
        worker.process.join()
        worker.pipe.close()
        del self._workers[worker.number]
        how = _death(worker.process.exitcode)
        if not worker.leases:
            self._wasted += 1
            if self._wasted >= DEATHS:
                raise EngineError(
                    f"{self._wasted} worker processes have died before they searched anything "
                    f"(the last {how}); run with one worker to see why. A script that gives "
                    "workers must start its search under if __name__ == '__main__'"
                )
        _log.warning(
            "worker %d %s; %d questions are taken over", worker.number, how, len(worker.leases)
        )
        for lease in worker.leases.values():
            if len(worker.leases) == 1:
                lease.deaths = 1 if lease.recorded else lease.deaths + 1
            if lease.deaths >= DEATHS:
                raise EngineError(
                    f"question {lease.problem.id!r} has ended {DEATHS} worker processes in a row "
                    f"at the same rollout (the last {how}); drop it from the problems, or give "
                    "it more memory or a verifier that survives it, and run the same command"
                )
            self._lost.append(lease)

    def __enter__(self) -> Pool:
        self._start_missing()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End all workers: idle ones in peace, the others, and all after an error, by SIGKILL."""
        peaceful = self._idle if kind is None else []
        for worker in peaceful:
            self._send(worker, None)
        for worker in peaceful:
            worker.process.join(END_SECONDS)
        for worker in self._workers.values():
            worker.process.kill()
            worker.pipe.close()
        for worker in self._workers.values():
            worker.process.join()


def _death(status: int | None) -> str:
    """How a process ended, as words."""
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended with status {status}"
