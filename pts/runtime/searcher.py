"""From problems to their searches and on to records, on one engine: what every process does."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pts.config import SamplingConfig, SearchConfig
from pts.engines.base import Engine
from pts.files import plain
from pts.runtime.completions import Completions
from pts.runtime.journal import Journal, Recorder
from pts.runtime.results import Record, RolloutCost
from pts.runtime.scheduler import Finished, Progress, SkippedQuestion, run
from pts.stats import jeffreys
from pts.types import Cost, Ids, Problem, QuestionResult, Search
from pts.verifiers.base import Verifier


class SearchQuestion(Protocol):
    """The search of one question: `pts.algorithm.question.search_question`."""

    def __call__(
        self,
        problem_id: str,
        prompt_ids: Ids,
        limit: int,
        config: SearchConfig,
        seed: int,
        completions: Sequence[Ids] | None = None,
        stop_ids: frozenset[int] = frozenset(),
    ) -> Search: ...


@dataclass(frozen=True, slots=True)
class SearchSpec:
    """What is asked of every question of a run. Picklable where its verifier is."""

    search_question: SearchQuestion
    verifier: Verifier
    config: SearchConfig
    seed: int


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the parent needs to know of the engine."""

    policy_digest: str
    sampling: SamplingConfig
    stop_ids: tuple[int, ...]
    max_model_len: int | None
    """Tokens that a prompt and its completion may have together, where the engine says so."""

    @classmethod
    def of(cls, engine: Engine) -> EngineInfo:
        stops = tuple(sorted(engine.stop_ids))
        return cls(
            engine.policy_digest, engine.sampling, stops, getattr(engine, "max_model_len", None)
        )


class QuestionSearcher:
    """What one engine does for a run."""

    def __init__(self, engine: Engine, spec: SearchSpec) -> None:
        self.engine, self._spec = engine, spec
        self._given = Completions(engine, spec.config)

    def check(self, problems: Iterable[Problem]) -> None:
        """Raise one DataError for all problems and completions that cannot be searched."""
        self._given.check(problems)

    def token_texts(self, ids: Iterable[int]) -> dict[int, str]:
        """The text of each token."""
        asked = tuple(sorted(ids))
        return dict(zip(asked, self.engine.token_texts(asked), strict=True))

    def search(
        self,
        problems: Iterable[Problem],
        window: int,
        journal: Recorder | None,
        on_progress: Callable[[Progress], None],
    ) -> Iterator[Record]:
        """Search the problems, `window` at a time; yield records as they finish."""
        finished = run(
            self._searches(problems),
            self.engine,
            self._spec.verifier,
            seed=self._spec.seed,
            window=window,
            journal=journal,
            unscored_limit=self._spec.config.unscored_limit,
            on_skip=_skipped,
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
        return self._spec.search_question(
            problem.id,
            self.engine.encode(problem),
            self.engine.sampling.max_new_tokens,
            self._spec.config,
            self._spec.seed,
            completions,
            self.engine.stop_ids,
        )


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


def _record(done: Finished[QuestionResult]) -> Record:
    redrawn = sum(tally.unscored for tally in done.spent.values())
    return Record(dataclasses.replace(done.result, redrawn=redrawn), done.spent)


def _skipped(about: SkippedQuestion) -> QuestionResult:
    filtered = about.spent.get("filter", RolloutCost())
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
