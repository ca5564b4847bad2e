"""Who searches the questions of a run: one engine in this process, or worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from pts.engines.base import Engine
from pts.runtime.completions import may_outgrow
from pts.runtime.journal import Journal
from pts.runtime.pool import Pool
from pts.runtime.results import Record
from pts.runtime.scheduler import Progress
from pts.runtime.searcher import Questions, Task
from pts.runtime.worker import Facts
from pts.types import Problem


class Crew(Protocol):
    """Who searches."""

    @property
    def facts(self) -> Facts: ...

    def check(self, problems: Iterable[Problem]) -> None:
        """Raise DataError if any problem or completion cannot be searched."""

    def search(
        self,
        problems: Iterable[Problem],
        left: int | None,
        journal: Journal | None,
        on_progress: Callable[[Progress], None],
    ) -> Iterator[Record]:
        """Search the problems (`left` of them, if that is known)."""

    def pieces(self, ids: set[int], *, interrupted: bool) -> dict[int, str]:
        """Texts of tokens; once `interrupted`, of those at hand."""


class Alone:
    """One engine in this process."""

    def __init__(self, engine: Engine, task: Task, window: int) -> None:
        self._questions, self._window = Questions(engine, task), window
        self.facts = Facts.of(engine)

    def check(self, problems: Iterable[Problem]) -> None:
        self._questions.check(problems)

    def search(
        self,
        problems: Iterable[Problem],
        left: int | None,
        journal: Journal | None,
        on_progress: Callable[[Progress], None],
    ) -> Iterator[Record]:
        return self._questions.search(problems, self._window, journal, on_progress)

    def pieces(self, ids: set[int], *, interrupted: bool) -> dict[int, str]:
        return self._questions.pieces(ids)


class Crowd:
    """Worker processes."""

    def __init__(self, pool: Pool, task: Task, window: int, workers: int) -> None:
        self._pool, self._task, self._window, self._workers = pool, task, window, workers

    @property
    def facts(self) -> Facts:
        return self._pool.facts

    def check(self, problems: Iterable[Problem]) -> None:
        own, facts = bool(self._task.config.paths), self._pool.facts
        room = facts.longest and facts.longest - facts.sampling.max_new_tokens
        told = [p for p in problems if not own or p.completions or may_outgrow(p, room)]
        if told:
            self._pool.call(Questions.check, told)

    def search(
        self,
        problems: Iterable[Problem],
        left: int | None,
        journal: Journal | None,
        on_progress: Callable[[Progress], None],
    ) -> Iterator[Record]:
        """A worker takes no more than its share of the questions that are left."""
        share = self._window if left is None else max(1, -(-left // self._workers))
        return self._pool.search(problems, min(self._window, share), journal, on_progress)

    def pieces(self, ids: set[int], *, interrupted: bool) -> dict[int, str]:
        known = {i: text for i, text in self._pool.pieces.items() if i in ids}
        missing = ids - known.keys()
        if missing and not interrupted:
            known |= self._pool.call(Questions.pieces, missing)
        return known
