"""What `pts.runtime.ray_actors` uses of Ray, with threads in the place of actors.

An actor whose worker has raised `Killed` is lost: whatever it had not delivered by then is too.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

from pts.runtime.worker import work

from .crowd import Killed


class LostError(Exception):
    """Stands for RayError."""


DEAD = "killed by its test"


def mortal_work(pipe: Connection, make_engine: Callable[[], Any], spec: Any) -> None:
    """`work`; after `Killed` a word that no worker says, by which `Actor` knows that it is lost."""
    try:
        work(pipe, make_engine, spec)
    except Killed:
        pipe.send_bytes(pickle.dumps(DEAD))


class Actor:
    def __init__(self, ray: StandInRay, worker: Any) -> None:
        self._ray, self._worker, self.lost = ray, worker, False
        self._threads = ThreadPoolExecutor(ray.options["max_concurrency"])

    def _call(self, name: str, *given: Any) -> Any:
        said = getattr(self._worker, name)(*given)
        self.lost |= name == "hear" and pickle.dumps(DEAD) in said
        if self.lost:
            raise LostError("The actor died.\n\tpid: 7\nIts worker died. Some common causes: …")
        return said

    def __getattr__(self, name: str) -> Any:
        if name == "__ray_terminate__":
            return SimpleNamespace(remote=Future[Any])
        call = self._call
        return SimpleNamespace(remote=lambda *given: self._threads.submit(call, name, *given))


class StandInRay:
    """The module `ray`, connected or not, with a cluster of these nodes."""

    exceptions = SimpleNamespace(RayError=LostError)
    cloudpickle = pickle

    def __init__(self, nodes: Sequence[dict[str, float]] = (), connected: bool = False) -> None:
        self._nodes, self.connected = nodes, connected
        self.given: dict[str, Any] = {}
        """To `init`."""
        self.options: dict[str, Any] = {}
        """Of the actors."""

    def is_initialized(self) -> bool:
        return self.connected

    def init(self, **given: Any) -> None:
        if given["address"] != "local" and not self._nodes:
            raise ConnectionError("nobody answers")
        self.given, self.connected = given, True
        self._nodes = self._nodes or [{"CPU": given["num_cpus"]}]

    def shutdown(self) -> None:
        self.connected = False

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": node} for node in self._nodes]

    def remote(self, **options: Any) -> Callable[[type], Any]:
        self.options = options
        return lambda kind: SimpleNamespace(remote=lambda *given: Actor(self, kind(*given)))

    def get(self, answer: Future[Any]) -> Any:
        return answer.result()

    def wait(
        self, answers: Sequence[Future[Any]], num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Future[Any]], list[Future[Any]]]:
        if timeout != 0 and num_returns == 1:
            wait(answers, timeout and 0.01, FIRST_COMPLETED)
        return [a for a in answers if a.done()][:num_returns], []

    def kill(self, actor: Actor) -> None:
        actor.lost = True
