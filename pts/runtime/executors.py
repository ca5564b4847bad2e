"""Who searches the questions of a run: one engine in this process, or worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from pts.engines.base import Engine
from pts.runtime.completions import may_outgrow
from pts.runtime.journal import Journal
from pts.runtime.results import Record
from pts.runtime.scheduler import Progress
from pts.runtime.searcher import EngineInfo, QuestionSearcher, SearchSpec
from pts.types import Problem

if TYPE_CHECKING:
    from pts.runtime.pool import Pool


class InProcessExecutor:
    """One engine in this process."""

    def __init__(self, engine: Engine, spec: SearchSpec, window: int) -> None:
        self._questions, self._window = QuestionSearcher(engine, spec), window
        self.engine_info = EngineInfo.of(engine)

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

    def token_texts(self, ids: set[int], *, interrupted: bool) -> dict[int, str]:
        return self._questions.token_texts(ids)


class WorkerPoolExecutor:
    """Worker processes."""

    def __init__(self, pool: Pool, spec: SearchSpec, window: int, workers: int) -> None:
        self._pool, self._spec, self._window, self._workers = pool, spec, window, workers

    @property
    def engine_info(self) -> EngineInfo:
        return self._pool.engine_info

    def check(self, problems: Iterable[Problem]) -> None:
        own, engine_info = bool(self._spec.config.paths), self._pool.engine_info
        room = (
            engine_info.max_model_len
            and engine_info.max_model_len - engine_info.sampling.max_new_tokens
        )
        told = [p for p in problems if not own or p.completions or may_outgrow(p, room)]
        if told:
            self._pool.call(QuestionSearcher.check, told)

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

    def token_texts(self, ids: set[int], *, interrupted: bool) -> dict[int, str]:
        known = {i: text for i, text in self._pool.token_texts.items() if i in ids}
        missing = ids - known.keys()
        if missing and not interrupted:
            known |= self._pool.call(QuestionSearcher.token_texts, missing)
        return known
