"""Workers as Ray actors, on this machine or on those of a Ray cluster.

    pts.search(problems, load, verifier, output="runs/search", workers=16,
               executor=pts.RayActors(address="auto", gpus_per_worker=1))

In each actor a thread does what a worker process does; instead of a pipe it has a mailbox, which
the actor's methods empty and fill. The driver, which leases the questions and alone writes the
journal, always has one call of `hear` under way at each actor. An actor that dies or whose machine
does fails that call; it is never restarted by Ray, as its questions are leased again with what is
on file by then.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from pts.config import Settings
from pts.errors import ConfigError, MissingExtra
from pts.runtime.machine import THREADS, core_share

if TYPE_CHECKING:
    from pts.engines.base import Engine
    from pts.runtime.searcher import SearchSpec, Work

BATCH = 1024
"""Messages that one answer of an actor holds at most; with so many unheard a worker waits."""
GATHER = 0.1
NICENESS = "RAY_worker_niceness"
STORE_BYTES = 256 * 2**20
"""Object store of a local Ray: only leases and messages over 100 kB pass through it."""

_log = logging.getLogger(__name__)


class RayActors(Settings):
    """An executor for `pts.search`: each worker an actor of Ray, which the extra `ray` installs."""

    address: str = Field("local", min_length=1)
    """`local` starts Ray on this machine for as long as the search lasts; `auto` finds a cluster
    that this machine belongs to; `HOST:PORT` or `ray://HOST:PORT` names one. Where the program has
    started Ray itself, that one is used."""
    cpus_per_worker: int | None = Field(None, ge=1)
    """Cores that Ray reserves for a worker, and its threads unless `OMP_NUM_THREADS` is set here.
    By default an equal share of this machine's with `local`, else 1."""
    gpus_per_worker: float | None = Field(None, ge=0)
    """GPUs that Ray gives to a worker; several for an engine that shares a model among them, a
    fraction for several workers on one. By default 1 where there are GPUs."""

    def __call__(
        self, work: Work, make_engine: Callable[[], Engine], spec: SearchSpec, workers: int
    ) -> RayLaunch:
        """What starts the workers of a run."""
        return RayLaunch(self, work, make_engine, spec, workers)


def import_ray() -> Any:
    """The module `ray`, which reports no usage to anyone. MissingExtra without it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise MissingExtra("ray", "ray") from None
    return ray


class RayLaunch:
    """How the actors of a run are started: `work(pipe, make_engine, spec)` in each."""

    def __init__(
        self,
        settings: RayActors,
        work: Work,
        make_engine: Callable[[], Engine],
        spec: SearchSpec,
        workers: int,
    ) -> None:
        self._settings, self._workers = settings, workers
        self._given = {"worker": work, "engine": make_engine, "search": spec}
        self._pickled = b""
        self._ray: Any = None
        self._actors: Any = None
        self._threads = ""
        self._own = False

    def check(self) -> None:
        """Raise MissingExtra without Ray, ConfigError for what cannot be handed to an actor."""
        self._ray = import_ray()
        faults = []
        for name, value in self._given.items():
            try:
                self._ray.cloudpickle.dumps(value)
            except Exception as error:  # a class's own code runs when it is pickled
                faults.append(
                    f"the {name} cannot be handed to Ray actors ({error}); leave out what holds "
                    "open files, locks or a loaded model"
                )
        if faults:
            raise ConfigError(*faults)
        self._pickled = self._ray.cloudpickle.dumps(tuple(self._given.values()))

    def open(self) -> None:
        """Start Ray or join its cluster. ConfigError for a cluster that does not answer, or that
        has no room for a worker on any of its machines."""
        ray, settings = self._ray, self._settings
        self._own = not ray.is_initialized()
        local = self._own and settings.address == "local"
        cpus = settings.cpus_per_worker or (core_share(self._workers) if local else 1)
        if self._own:
            self._join(cpus * self._workers if local else None)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = settings.gpus_per_worker
        if gpus is None:
            gpus = float(any(node.get("GPU", 0) >= 1 for node in nodes))
        room = places(nodes, cpus, gpus)
        if not room:
            self.close()
            raise ConfigError(
                f"no machine of the Ray cluster has {cpus} CPUs and {gpus:g} GPUs for a worker; "
                "lower cpus_per_worker or gpus_per_worker"
            )
        if room < self._workers:
            _log.warning("the Ray cluster has room for %d of %d workers", room, self._workers)
        self._threads = os.environ.get(THREADS) or str(cpus)
        # One thread of the actor for `hear`, one for `order`.
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "max_concurrency": 2}
        self._actors = ray.remote(**options)(ActorWorker)

    def _join(self, cpus: int | None) -> None:
        """Connect to the address; with `cpus`, a Ray of this process that has so many."""
        # Ray gives way to all other programs; as processes would do, a search takes its share.
        os.environ.setdefault(NICENESS, "0")
        local = {"include_dashboard": False, "object_store_memory": STORE_BYTES, "num_cpus": cpus}
        address = self._settings.address
        try:
            self._ray.init(address=address, logging_level=logging.ERROR, **(local if cpus else {}))
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"no Ray cluster at {address!r} ({error}); start one with `ray start --head`, or "
                "leave the address out"
            ) from None

    def start(self, number: int) -> ActorHandle:
        """Start worker `number`; it waits until Ray has room for it."""
        return ActorHandle(self._ray, self._actors.remote(self._threads, self._pickled))

    def wait(self, workers: Sequence[ActorHandle]) -> list[ActorHandle]:
        """Those that have said something or ended; waits for the first."""
        if loud := [worker for worker in workers if worker.heard]:
            return loud
        answers = [worker.answer for worker in workers]
        # All that are there, so that a fast worker does not keep the others waiting.
        ready, _ = self._ray.wait(answers, num_returns=len(answers), timeout=0)
        ready = ready or self._ray.wait(answers, num_returns=1)[0]
        return [worker for worker in workers if worker.answer in ready]

    def close(self) -> None:
        """Leave the cluster; a local one ends."""
        if self._own:
            self._ray.shutdown()


def places(nodes: Iterable[Mapping[str, float]], cpus: int, gpus: float) -> int:
    """Workers that fit on the machines of a cluster, each given by its CPU and GPU counts."""
    asked = {name: each for name, each in (("CPU", cpus), ("GPU", gpus)) if each}
    return sum(
        min(int(node.get(name, 0) // each) for name, each in asked.items()) for node in nodes
    )


class ActorHandle:
    """An actor as its driver sees it."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self.heard = deque[bytes]()
        """Messages that have come and were not received yet."""
        self.answer = actor.hear.remote()
        """Of the call that is under way."""
        self._death = "ended"

    def send(self, order: object) -> None:
        self._actor.order.remote(pickle.dumps(order))

    def recv(self) -> Any:
        if not self.heard:
            try:
                self.heard.extend(self._ray.get(self.answer))
            except self._ray.exceptions.RayError as error:
                self._death = f"was lost: {reason(error)}"
                raise EOFError from error
            if not self.heard:
                raise EOFError
            self.answer = self._actor.hear.remote()
        return pickle.loads(self.heard.popleft())

    def join(self, seconds: float) -> None:
        self._ray.wait([self._actor.__ray_terminate__.remote()], timeout=seconds)

    def kill(self) -> None:
        with suppress(self._ray.exceptions.RayError):  # it is dead
            self._ray.kill(self._actor)

    def end(self) -> str:
        self.kill()
        return self._death


def reason(error: BaseException) -> str:
    """Why an actor died: the first sentence of the last line that Ray says of it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(". Some common causes")[0][:300] if lines else type(error).__name__


class ActorWorker:
    """What an actor is made of. Its two methods may run at the same time."""

    def __init__(self, threads: str, pickled: bytes) -> None:
        os.environ[THREADS] = threads  # before what reads it is imported
        work, make_engine, spec = pickle.loads(pickled)
        self._mailbox = Mailbox()
        given = (self._mailbox, work, make_engine, spec)
        threading.Thread(target=_live, args=given, daemon=True).start()

    def order(self, order: bytes) -> None:
        """Hand a pickled order to the worker."""
        self._mailbox.order(order)

    def hear(self) -> list[bytes]:
        """What the worker has said, pickled; waits for the first message. Nothing once it ended."""
        return self._mailbox.hear()


class Mailbox:
    """Both ends of the pipe of a worker that is a thread of this process.

    A call of an actor costs a millisecond of both sides, so messages are gathered for GATHER
    seconds, but no longer than until the worker waits for an order.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._said = list[bytes]()
        self._orders = deque[bytes]()
        self._waits = self._ended = False

    # The worker's end, as of a `Connection`

    def send_bytes(self, message: bytes) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._said) < BATCH)
            self._said.append(message)
            if len(self._said) in (1, BATCH):
                self._changed.notify_all()

    def recv_bytes(self) -> bytes:
        with self._changed:
            self._waits = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._orders)
            self._waits = False
            return self._orders.popleft()

    def close(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    # The other end

    def order(self, order: bytes) -> None:
        with self._changed:
            self._orders.append(order)
            self._changed.notify_all()

    def hear(self) -> list[bytes]:
        with self._changed:
            self._changed.wait_for(lambda: self._said or self._ended)
            self._changed.wait_for(self._urgent, GATHER)
            said, self._said = self._said, []
            self._changed.notify_all()
            return said

    def _urgent(self) -> bool:
        return self._waits or self._ended or len(self._said) == BATCH


def _live(
    mailbox: Mailbox, work: Work, make_engine: Callable[[], Engine], spec: SearchSpec
) -> None:
    """The life of a worker; however it ends, its mailbox says so."""
    with closing(mailbox), suppress(SystemExit):
        work(cast(Connection, mailbox), make_engine, spec)
