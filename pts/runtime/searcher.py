"""From problems to their searches and on to records, on one engine: what every process does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

from pts.config import SamplingConfig, SearchConfig
from pts.engines.base import Engine
from pts.runtime.completions import Completions
from pts.runtime.described import describe_verifier
from pts.runtime.journal import Recorder
from pts.runtime.results import Record, RolloutCost
from pts.runtime.scheduler import Progress, SkippedQuestion, run
from pts.stats import jeffreys
from pts.types import Cost, FilterCounts, Ids, Problem, QuestionResult, Search
from pts.verifiers.base import Verifier

SearchQuestion: TypeAlias = Callable[
    [str, Ids, int, SearchConfig, int, tuple[Ids, ...], frozenset[int]], Search
]
"""The search of one question, as `pts.algorithm.question.search_question` is called: problem id,
prompt ids, length limit, settings, seed, completions and stop ids."""


@dataclass(frozen=True, slots=True)
class SearchSpec:
    """What is asked of every question of a run. Picklable where its verifier is."""

    search_question: SearchQuestion
    verifier: Verifier
    config: SearchConfig
    seed: int
    window: int
    """Questions that one engine has under way at a time, at most."""


Work: TypeAlias = Callable[[Connection, Callable[[], Engine], SearchSpec], None]
"""What a worker runs (`pts.runtime.worker.work`): its pipe, what makes its engine, the search."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the parent needs to know of the engine."""

    policy_digest: str
    sampling: SamplingConfig
    stop_ids: tuple[int, ...]
    max_model_len: int | None
    """Tokens that a prompt and its completion may have together, where the engine says so."""
    dtype: str | None = None
    """In which the model is held, where the engine says so: it is no part of the digest, and
    rollouts in another one are of another distribution."""

    @classmethod
    def of(cls, engine: Engine) -> EngineInfo:
        stops, longest = tuple(sorted(engine.stop_ids)), getattr(engine, "max_model_len", None)
        dtype = getattr(engine, "dtype", None)
        return cls(engine.policy_digest, engine.sampling, stops, longest, dtype)


class QuestionSearcher:
    """What one engine does for a run: in this process an executor, else a worker's part of one."""

    def __init__(self, engine: Engine, spec: SearchSpec) -> None:
        self._engine, self._spec = engine, spec
        self._given = Completions(engine, spec.config)
        self.engine_info = EngineInfo.of(engine)

    def check(self, problems: Iterable[Problem]) -> None:
        """Raise one DataError for all problems and completions that cannot be searched."""
        self._given.check(problems)

    def token_texts(self, ids: set[int], *, interrupted: bool = False) -> dict[int, str]:
        """The text of each token."""
        asked = tuple(sorted(ids))
        return dict(zip(asked, self._engine.token_texts(asked), strict=True))

    def search(
        self,
        problems: Iterable[Problem],
        left: int | None,
        journal: Recorder | None,
        on_progress: Callable[[Progress], None],
    ) -> Iterator[Record]:
        """Search the problems (`left` of them, if that is known); yield records as they finish."""
        finished = run(
            self._searches(problems),
            self._engine,
            self._spec.verifier,
            seed=self._spec.seed,
            window=share(left, self._spec.window, workers=1),
            journal=journal,
            keep=self._spec.config.keep,
            unscored_limit=self._spec.config.unscored_limit,
            on_skip=_skipped,
            on_progress=on_progress,
        )
        for done in finished:
            redrawn = sum(tally.unscored for tally in done.spent.values())
            yield Record(dataclasses.replace(done.result, redrawn=redrawn), done.spent)

    def _searches(self, problems: Iterable[Problem]) -> Iterator[tuple[Problem, Search]]:
        engine, spec = self._engine, self._spec
        limit, stop_ids = engine.sampling.max_new_tokens, engine.stop_ids
        for problem in problems:
            given = self._given.of(problem)
            if given:  # as ids, which the journal is to know the question by
                problem = dataclasses.replace(problem, completions=given)
            prompt = engine.encode(problem)
            steps = spec.search_question(
                problem.id, prompt, limit, spec.config, spec.seed, given, stop_ids
            )
            yield problem, steps


def share(left: int | None, window: int, workers: int) -> int:
    """Questions that a worker takes at a time: no more than its share of those that are left."""
    return window if left is None else min(window, max(1, -(-left // workers)))


def _skipped(about: SkippedQuestion) -> QuestionResult:
    filtered = about.spent.get("filter", RolloutCost())
    drawn = filtered.rollouts - filtered.unscored
    return QuestionResult(
        problem_id=about.problem.id,
        prompt_ids=about.prompt,
        status="unscorable" if about.unscorable else "unscored",
        solved=jeffreys(filtered.passed, drawn),
        paths=(),
        cost={p: Cost(t.rollouts, t.tokens) for p, t in about.spent.items()},
        filtered=FilterCounts(filtered.passed, drawn),
        reason=about.reason,
    )


def fingerprint(
    engine: EngineInfo, verifier: Verifier, seed: int, **settings: Any
) -> dict[str, Any]:
    """What a run's journal is known by; `settings` are those of the search, if it is one."""
    return {
        "policy_digest": engine.policy_digest,
        **({"dtype": engine.dtype} if engine.dtype else {}),
        "stop_ids": list(engine.stop_ids),
        "sampling": engine.sampling.model_dump(mode="json"),
        **settings,
        "verifier": describe_verifier(verifier),
        "seed": seed,
    }
