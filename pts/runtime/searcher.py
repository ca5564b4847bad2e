"""From problems to their searches and on to records, on one engine: what every process does."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pts.algorithm.question import search_question
from pts.config import SearchConfig
from pts.engines.base import Engine
from pts.files import plain
from pts.runtime.completions import Completions
from pts.runtime.journal import Journal
from pts.runtime.results import Record, Tally
from pts.runtime.scheduler import Finished, Progress, SetAside, run
from pts.stats import jeffreys
from pts.types import Cost, Ids, Problem, QuestionResult, Search
from pts.verifiers.base import Verifier


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked of every question of a run. Picklable where its verifier is."""

    verifier: Verifier
    config: SearchConfig
    seed: int


class Questions:
    """What one engine does for a run."""

    def __init__(self, engine: Engine, task: Task) -> None:
        self.engine, self._task = engine, task
        self._given = Completions(engine, task.config)

    def check(self, problems: Iterable[Problem]) -> None:
        """Raise one DataError for all problems and completions that cannot be searched."""
        self._given.check(problems)

    def pieces(self, ids: Iterable[int]) -> dict[int, str]:
        """The text of each token."""
        asked = tuple(sorted(ids))
        return dict(zip(asked, self.engine.pieces(asked), strict=True))

    def search(
        self,
        problems: Iterable[Problem],
        window: int,
        journal: Journal | None,
        on_progress: Callable[[Progress], None],
    ) -> Iterator[Record]:
        """Search the problems, `window` at a time; yield records as they finish."""
        finished = run(
            self._searches(problems),
            self.engine,
            self._task.verifier,
            seed=self._task.seed,
            window=window,
            journal=journal,
            unscored_limit=self._task.config.unscored_limit,
            set_aside=_set_aside,
            on_progress=on_progress,
        )
        yield from map(_record, finished)

    def _searches(self, problems: Iterable[Problem]) -> Iterator[tuple[Problem, Search]]:
        for problem in problems:
            completions = self._given.of(problem)
            if completions:  # as ids, which the journal is to know the question by
                problem = dataclasses.replace(problem, completions=completions)
            yield problem, self._search(problem, completions)

    def _search(self, problem: Problem, completions: tuple[Ids, ...]) -> Search:
        return search_question(
            problem.id,
            self.engine.encode(problem),
            self.engine.sampling.max_new_tokens,
            self._task.config,
            self._task.seed,
            completions,
            self.engine.stop_ids,
        )


def _record(done: Finished[QuestionResult]) -> Record:
    redrawn = sum(tally.unscored for tally in done.spent.values())
    return Record(dataclasses.replace(done.result, redrawn=redrawn), done.spent)


def _set_aside(about: SetAside) -> QuestionResult:
    filtered = about.spent.get("filter", Tally())
    return QuestionResult(
        problem_id=about.problem.id,
        prompt_ids=about.prompt,
        status="unscored",
        solved=jeffreys(filtered.passed, filtered.rollouts - filtered.unscored),
        paths=(),
        cost={p: Cost(t.rollouts, t.tokens) for p, t in about.spent.items()},
    )


def describe_verifier(verifier: Verifier) -> str:
    """A verifier's class and settings, for the fingerprint of a run; a function's name.

    Settings are attributes that are plain values, patterns or functions; others are left out.
    """
    name = getattr(verifier, "__qualname__", type(verifier).__qualname__)
    slots = [slot for kind in type(verifier).__mro__ for slot in getattr(kind, "__slots__", ())]
    names = sorted({*getattr(verifier, "__dict__", {}), *slots})
    settings = {n: _plain(getattr(verifier, n, None)) for n in names}
    return f"{name}({', '.join(f'{n}={v}' for n, v in settings.items() if v is not None)})"


def _plain(value: Any) -> str | None:
    if isinstance(value, (str, int, float, tuple, re.Pattern)):
        return repr(plain(value))
    return getattr(value, "__qualname__", None)
