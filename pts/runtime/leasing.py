"""Several workers for one run: leases of questions, deaths, takeovers.

Every worker owns an engine. It is leased questions one by one as it has room, each with what the
journal holds of it; finished queries, which only this process writes to the journal, and results
come back. When a worker dies (killed, out of memory, a crash in a library) what it has sent is
heard to the end. Then its questions are leased again with all that is on file of them, so that no
recorded rollout is drawn again, and another worker takes its place.

A lease may be larger than a pipe holds. It is sent only when a worker has asked for it and reads.

Which of its questions killed it is not known, so each of them is from then on searched alone in a
worker. One that ends `DEATHS` workers at the same rollout ends the run with its name.

What a worker runs in is not known here: `Launch` is a process (`pts.runtime.processes`) or an actor
of Ray (`pts.runtime.ray_actors`).
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from pts.engines.base import Engine
from pts.errors import EngineError
from pts.runtime.completions import may_outgrow
from pts.runtime.journal import Journal, RecordedRollouts
from pts.runtime.machine import END_SECONDS
from pts.runtime.results import Record
from pts.runtime.scheduler import Progress
from pts.runtime.searcher import EngineInfo, QuestionSearcher, SearchSpec, Work, share
from pts.runtime.worker import LeasedQuestion, SearchOrder, work
from pts.types import Problem

DEATHS = 3
"""Workers that one question, or the loading of the engine, may cost in a row."""

_log = logging.getLogger(__name__)


class WorkerHandle(Protocol):
    """A worker as it is seen from here."""

    def send(self, order: object) -> None:
        """Give it an order. OSError if it is known to be gone."""

    def recv(self) -> Any:
        """Its next message (`pts.runtime.worker`). EOFError or OSError when it has ended and all
        that came of it is heard."""

    def join(self, seconds: float) -> None:
        """After the order None: wait for it to end, but no longer."""

    def kill(self) -> None:
        """End it, without waiting."""

    def end(self) -> str:
        """Wait until it has ended, and see to it; how it ended, as words."""


class Launch(Protocol):
    """How the workers of a run are started and heard."""

    def check(self) -> None:
        """Raise ConfigError for what cannot be handed to a worker."""

    def open(self) -> None:
        """Get ready to start workers."""

    def start(self, number: int) -> WorkerHandle:
        """Start worker `number`, counted from 0; another one after its death."""

    def wait(self, workers: Sequence[Any]) -> Sequence[Any]:
        """Those of the handles whose `recv` returns or raises at once; waits for the first."""

    def close(self) -> None:
        """Let go of what `open` took, once all workers have ended."""


@dataclass(slots=True)
class WorkItem:
    """A question in a worker's hands, or taken back from a dead one."""

    problem: Problem
    recorded: bool = False
    """The journal has got lines about it since it was last leased."""
    deaths: int = 0
    """In a row at the same rollout, while it was alone in its worker."""


@dataclass(slots=True)
class _Worker:
    number: int
    handle: WorkerHandle
    leases: dict[str, WorkItem] = field(default_factory=dict)
    ready: bool = False
    busy: bool = False
    alone: bool = False
    """It has a question that may share its worker with no other."""


class LeasingExecutor:
    """The workers of a run, an executor and a context; each has `window` questions under way.

    `executor` is one of `pts.runtime.executors`. `engine_info` waits for the first engine to be
    loaded.

    Raises ConfigError when the engine or the verifier cannot be handed to a worker, EngineError
    when workers die again and again; errors of a worker are raised here.
    """

    def __init__(
        self,
        executor: Callable[[Work, Callable[[], Engine], SearchSpec, int], Launch],
        make_engine: Callable[[], Engine],
        spec: SearchSpec,
        workers: int,
    ) -> None:
        self._spec, self._count = spec, workers
        self._launch = executor(work, make_engine, spec, workers)
        self._launch.check()
        self._workers: dict[int, _Worker] = {}
        self._facts: EngineInfo | None = None
        self._journal: Journal | None = None
        self._search: SearchOrder | None = None
        self._stream: Iterator[Problem] | None = None
        self._lost: deque[WorkItem] = deque()
        self._wasted = Counter[int]()
        """Deaths in a row without a question in hand, by the number of the worker."""
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
        room, own = longest and longest - limit, self._spec.config.paths
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
        window = share(left, self._spec.window, self._count)
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
        for number in range(self._count):
            if number not in self._workers:
                self._workers[number] = _Worker(number, self._launch.start(number))

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
        by_handle = {worker.handle: worker for worker in self._workers.values()}
        return [
            record
            for handle in self._launch.wait(list(by_handle))
            for record in self._hear(by_handle[handle])
        ]

    def _hear(self, worker: _Worker) -> list[Record]:
        try:
            kind, value = worker.handle.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return []
        if kind == "done":
            record, texts = value
            del worker.leases[record.result.problem_id]
            self._token_texts.update(texts)
            self._wasted.clear()
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
            worker.handle.send(order)
        except OSError:
            _log.debug("worker %d is gone, as will be heard", worker.number)

    # Deaths

    def _bury(self, worker: _Worker) -> None:
        """Take a dead worker's questions back: all that came of it is heard."""
        del self._workers[worker.number]
        how = worker.handle.end()
        if not worker.leases:
            self._wasted[worker.number] += 1
            if self._wasted[worker.number] >= DEATHS:
                raise EngineError(
                    f"a worker has died {DEATHS} times in a row before it searched anything "
                    f"(at last it {how}); run with one worker to see why. A script that gives "
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
                    f"question {lease.problem.id!r} has ended {DEATHS} workers in a row "
                    f"at the same rollout (the last {how}); drop it from the problems, or give "
                    "it more memory or a verifier that survives it, and run the same command"
                )
            self._lost.append(lease)

    def __enter__(self) -> LeasingExecutor:
        self._launch.open()
        self._start_missing()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End all workers: idle ones in peace, the others, and all after an error, by force."""
        peaceful = self._idle if kind is None else []
        for worker in peaceful:
            self._send(worker, None)
        for worker in peaceful:
            worker.handle.join(END_SECONDS)
        for worker in self._workers.values():
            worker.handle.kill()
        for worker in self._workers.values():
            worker.handle.end()
        self._launch.close()
