"""Runs many searches at once on one engine: feeds it, judges, journals, resumes.

`run` takes a stream of `(problem, steps)`. `steps` is any generator that yields lists of
`RolloutQuery`, `LogprobQuery` and `StepQuery` queries, is sent the list of their measurements, and
returns its result: a search, or three lines that sample n completions. A window of questions is
kept going at the same time, all their requests stand in one live queue that the engine pulls from,
and each yield is answered whole and in order.

What a generator can rely on:

- Each rollout may add `max_new_tokens − len(at)` tokens: the limit is on the whole completion.
- A prefix that ends with a stop id, or fills the limit, is judged as it stands: n equal rollouts
  of length 0 that cost nothing. What fills the limit without a stop id is cut, and cut is FAIL.
- Rollouts are PASS or FAIL. UNSCORED rollouts are drawn again (the same index, the next attempt).
  When one rollout stays UNSCORED, or their share grows too large, the generator is closed
  (`GeneratorExit` at its yield) and the question's result is what `on_skip` returns: a search
  need not know of UNSCORED at all. The same happens where an engine cannot tell what follows a
  prefix (`UnscorableError`).
- A second `RolloutQuery` at the same place for the same purpose continues where the first one
  ended.
- Rollout `index` at a place has one seed, whatever the order, the batches or the interruptions.

Verifiers are called in this process; a slow one should bring its own workers and time limit.
`pts.search` (in `pts.runtime.search`) is this plus the search itself and its files.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from pts.algorithm.requests import SearchRoutine
from pts.engines.base import Engine, SampleRequest, score_rows
from pts.engines.boundaries import completion_steps
from pts.errors import DataError, EngineError, UnscorableError, VerifierError
from pts.files import rollouts_digest
from pts.runtime.grader import Grader
from pts.runtime.journal import RecordedRollouts, Recorder
from pts.runtime.results import RolloutCost
from pts.runtime.rollouts import RolloutBatch
from pts.types import (
    Ids,
    Keep,
    LogprobQuery,
    Measurement,
    Problem,
    Purpose,
    RolloutQuery,
    StepQuery,
    TokenDistribution,
    Verdict,
)
from pts.verifiers.base import Verifier

R = TypeVar("R")

LONGEST = 300
"""Characters of a reason that a warning shows."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finished(Generic[R]):
    """A question that is done. `spent` includes rollouts that came from the journal."""

    problem: Problem
    result: R
    spent: Mapping[Purpose, RolloutCost]


@dataclass(frozen=True, slots=True)
class SkippedQuestion:
    """Why a question is given up: too many of its rollouts could not be judged, or the engine could
    not tell what follows a prefix."""

    problem: Problem
    prompt: Ids
    reason: str
    """What the verifier said of the last such rollout; or the engine, of the prefix."""
    spent: Mapping[Purpose, RolloutCost]
    unscorable: bool = False
    """It is the engine that gave up."""


@dataclass(slots=True)
class Progress:
    """Totals of a run so far, as handed to `on_progress`."""

    questions: int = 0
    rollouts: int = 0
    """Sampled now."""
    replayed: int = 0
    """Read from the journal."""
    tokens: int = 0
    """Generated now."""


def run(
    searches: Iterable[tuple[Problem, SearchRoutine[R]]],
    engine: Engine,
    verifier: Verifier,
    *,
    seed: int = 0,
    window: int = 64,
    journal: Recorder | None = None,
    keep: Keep = "none",
    unscored_limit: float = 0.02,
    on_skip: Callable[[SkippedQuestion], R] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[Finished[R]]:
    """Drive every generator of `searches` to its end; yield results in order of completion.

    `searches` is read lazily, `window` questions ahead, so memory does not grow with their
    number. With a `journal`, finished queries are recorded and those on file are not drawn again;
    `keep` names the rollouts whose ids it is given whole.

    A question is set aside when one rollout stays UNSCORED through all its attempts (ATTEMPTS in
    `pts.runtime.rollouts`), when a finished prefix cannot be judged, or when UNSCORED draws are
    more than `unscored_limit` of its draws (read once 1/unscored_limit are drawn, and at the
    end). Without `on_skip` this raises VerifierError. So is one for a prefix of which the engine
    raises UnscorableError, which is raised without `on_skip`.

    Raises EngineError when the engine breaks its protocol, DataError for a repeated problem id,
    JournalError when a journalled question has changed; errors of the engine and of a generator
    pass through.
    """
    live = Scheduler(engine, verifier, seed, journal, keep, unscored_limit, on_skip)
    stream = iter(searches)
    answers: Iterator[tuple[SampleRequest, list[Ids]]] = iter(())
    try:
        yield from live.fill(stream, window)
        if live.queue:
            answers = engine.sample(live.requests())
        for request, completions in answers:
            live.receive(request, completions)
            yield from live.fill(stream, window)
            if on_progress is not None:
                on_progress(live.progress)
        if live.active:
            raise EngineError(
                f"{type(engine).__name__}.sample ended while {len(live.pending)} requests were "
                "unanswered; it must answer every request that it pulls"
            )
    except EngineError as error:
        # Add whose request it is that an engine's error names (see `pts.engines.base`).
        named = re.match(r"request (\d+):", str(error))
        job = live.pending.get(int(named[1])) if named else None
        if job is not None:
            error.add_note(_in_question(job.question.problem))
        raise
    finally:
        if isinstance(answers, Generator):
            answers.close()
        for question in live.active.values():
            question.steps.close()


@dataclass(eq=False, slots=True)
class _Question(Generic[R]):
    """A question under way: its generator and the yield that is being answered."""

    problem: Problem
    prompt: Ids
    steps: SearchRoutine[R]
    replay: RecordedRollouts
    judge: Grader
    answers: list[Measurement] = field(default_factory=list)
    """To be sent next."""
    started: bool = False
    waiting: int = 0
    """Queries of the yield that the engine still owes."""
    drawn: dict[tuple[str, Purpose], int] = field(default_factory=dict)
    """Next index by place and purpose."""
    trunks: dict[int, Ids] = field(default_factory=dict)
    """The rollouts of the filter, by index: where nearly all prefixes come from."""
    spent: dict[Purpose, RolloutCost] = field(default_factory=dict)
    hopeless: bool = False
    """A rollout of the yield at hand cannot be had."""
    unscorable: UnscorableError | None = None
    """Why a row of the yield at hand cannot be had."""

    def too_unscored(self, limit: float, *, at_end: bool) -> bool:
        total = sum(self.spent.values(), RolloutCost())
        readable = at_end or limit == 0 or total.rollouts >= 1 / limit
        too_many = readable and total.unscored > limit * total.rollouts
        return self.hopeless or self.unscorable is not None or too_many


@dataclass(frozen=True, slots=True)
class PendingRollouts(Generic[R]):
    """A `RolloutQuery` that needs the engine: whose it is, its place in the yield, its rollouts."""

    question: _Question[R]
    slot: int
    draw: RolloutBatch


@dataclass(eq=False, slots=True)
class Scheduler(Generic[R]):
    """The questions under way and the queue between them and the engine."""

    engine: Engine
    verifier: Verifier
    seed: int
    journal: Recorder | None
    keep: Keep
    unscored_limit: float
    on_skip: Callable[[SkippedQuestion], R] | None
    queue: deque[SampleRequest] = field(default_factory=deque)
    pending: dict[int, PendingRollouts[R]] = field(default_factory=dict)
    active: dict[str, _Question[R]] = field(default_factory=dict)
    finished: deque[Finished[R]] = field(default_factory=deque)
    progress: Progress = field(default_factory=Progress)
    seen: set[str] = field(default_factory=set)
    keys: Iterator[int] = field(default_factory=count)

    # The window

    def fill(
        self, stream: Iterator[tuple[Problem, SearchRoutine[R]]], window: int
    ) -> Iterator[Finished[R]]:
        """Hand over what has finished; start questions until the window is full or the stream has
        ended."""
        while True:
            while self.finished:
                yield self.finished.popleft()
            following = next(stream, None) if len(self.active) < window else None
            if following is None:
                return
            self._start(*following)

    def requests(self) -> Iterator[SampleRequest | None]:
        """The live queue, as engines read it."""
        while self.active:
            yield self.queue.popleft() if self.queue else None

    def _start(self, problem: Problem, steps: SearchRoutine[R]) -> None:
        if problem.id in self.seen:
            raise DataError(f"two problems have the id {problem.id!r}; ids must be unique")
        self.seen.add(problem.id)
        prompt = self.engine.encode(problem)
        replay = RecordedRollouts()
        if self.journal is not None:
            replay = self.journal.begin(problem.id, rollouts_digest(problem, prompt))
        judge = Grader(problem, self.engine, self.verifier)
        question = _Question(problem, prompt, steps, replay, judge)
        self.active[problem.id] = question
        self._advance(question)

    # The generator of a question

    def _advance(self, question: _Question[R]) -> None:
        """Send answers and take up the next queries, until some of them need the engine."""
        while not question.waiting:
            if question.too_unscored(self.unscored_limit, at_end=False):
                return self._give_up(question)
            try:
                steps = question.steps
                queries = steps.send(question.answers) if question.started else next(steps)
                question.started = True
            except StopIteration as stop:
                if question.too_unscored(self.unscored_limit, at_end=True):
                    return self._give_up(question)
                return self._finish(question, stop.value)
            except Exception as error:
                error.add_note(_in_question(question.problem))
                raise
            question.answers = [[] for _ in queries]
            for slot, query in enumerate(queries):
                if question.unscorable:
                    break
                if isinstance(query, LogprobQuery):
                    question.answers[slot] = self._score(question, query)
                elif isinstance(query, StepQuery):
                    question.answers[slot] = completion_steps(self.engine, query.completion)
                else:
                    self._take_up(question, slot, query)
        return None

    def _finish(self, question: _Question[R], result: R) -> None:
        del self.active[question.problem.id]
        self.progress.questions += 1
        self.finished.append(Finished(question.problem, result, question.spent))

    def _give_up(self, question: _Question[R]) -> None:
        question.steps.close()
        name, unscorable = question.problem.id, question.unscorable
        reason = str(unscorable or question.judge.reason)
        if self.on_skip is None and unscorable:
            unscorable.add_note(_in_question(question.problem))
            raise unscorable
        if self.on_skip is None:
            raise VerifierError(
                f"question {name!r}: too many completions could not be judged ({reason}); "
                "mend the verifier or the problem's reference, or drop the problem"
            )
        _log.warning("question %r is set aside: %s", name, " ".join(reason.split())[:LONGEST])
        about = SkippedQuestion(
            question.problem, question.prompt, reason, question.spent, bool(unscorable)
        )
        self._finish(question, self.on_skip(about))

    # Requests and answers

    def _score(self, question: _Question[R], query: LogprobQuery) -> list[TokenDistribution]:
        try:
            return score_rows(self.engine, question.prompt, query)
        except UnscorableError as error:
            question.unscorable = error
            return []
        except Exception as error:
            error.add_note(_in_question(question.problem))
            raise

    def _take_up(self, question: _Question[R], slot: int, sample: RolloutQuery) -> None:
        """Answer a query from its own prefix or from the journal, or queue what is missing."""
        if not question.judge.room(sample.prefix):
            rollout = question.judge.as_it_stands(sample.prefix)
            question.answers[slot] = [rollout] * sample.n
            question.hopeless |= rollout.verdict is Verdict.UNSCORED
            return
        draw = RolloutBatch(question.problem.id, sample, question.drawn)
        draw.replay(question.replay)
        self.progress.replayed += draw.replayed
        self._submit_or_settle(PendingRollouts(question, slot, draw))

    def receive(self, request: SampleRequest, completions: list[Ids]) -> None:
        """Judge what the engine delivered; settle the request or draw what is UNSCORED again."""
        job = self.pending.pop(request.key, None)
        if job is None or len(completions) != len(request.seeds):
            raise EngineError(
                f"{type(self.engine).__name__}.sample gave {len(completions)} completions for a "
                f"request of {len(request.seeds)}, or answered it twice"
            )
        judge = job.question.judge
        job.draw.take([judge.rollout(request.prefix, ids) for ids in completions])
        self.progress.rollouts += len(completions)
        self.progress.tokens += sum(map(len, completions))
        job.question.waiting -= 1
        self._submit_or_settle(job)
        self._advance(job.question)

    def _submit_or_settle(self, job: PendingRollouts[R]) -> None:
        """Queue what is missing. Otherwise hand over and record the rollouts; without all of them
        the question is hopeless."""
        question, draw, purpose = job.question, job.draw, job.draw.sample.purpose
        if draw.missing and not draw.exhausted:
            at, seeds = draw.sample.prefix, draw.seeds(self.seed)
            limit = question.judge.room(at)
            request = SampleRequest(next(self.keys), question.prompt, at, limit, seeds)
            self.pending[request.key] = job
            self.queue.append(request)
            question.waiting += 1
            return
        question.spent[purpose] = question.spent.get(purpose, RolloutCost()) + draw.spent
        question.answers[job.slot] = draw.rollouts
        if draw.exhausted:
            question.hopeless = True
            return
        if self.journal is not None:
            draw.record(self.journal, self.keep, question.trunks)
        if purpose == "filter" and not draw.sample.prefix:
            found = (rollout.ids for rollout in draw.rollouts)
            question.trunks.update(enumerate(found, draw.first))


def _in_question(problem: Problem) -> str:
    return f"in the search of question {problem.id!r}"
