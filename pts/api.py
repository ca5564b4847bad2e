"""`search`: pivotal token search over a stream of problems, with its files and its totals.

    run = search(problems, engine, verifier, SearchConfig(p_gap=0.2), output="runs/first")
    for pair in run.pairs: ...

The loop over questions is `pts.runner`, the search of one question `pts.methods.question`, the
selection of pairs `pts.pairs`. This module only joins them and knows the run folder.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from pts.api_completions import Completions
from pts.config import SearchConfig
from pts.engines.base import Engine
from pts.errors import ConfigError, DataError, JournalError
from pts.estimate import jeffreys, score_test
from pts.journal import Journal
from pts.methods.question import search_question
from pts.pairs import select_pairs
from pts.runner import Finished, SetAside, run
from pts.runner_progress import Watch
from pts.store import (
    Record,
    ResultFile,
    Tally,
    read_records,
    write_json,
    write_pairs,
)
from pts.store_run import RunFolder
from pts.types import (
    CandidatePair,
    Cost,
    Ids,
    Problem,
    Purpose,
    QuestionResult,
    Search,
    TokenPair,
)
from pts.verifiers.base import Verifier


class Records(Protocol):
    """Results with their costs: iterable again and again, from memory or from a file."""

    def __iter__(self) -> Iterator[Record]: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Summary:
    """Totals of a run. With an output folder they cover all of it, earlier sessions included."""

    questions: Mapping[str, int]
    """By status."""
    spent: Mapping[Purpose, Tally]
    """Sampled rollouts and tokens, by purpose."""
    proposed: Mapping[str, int]
    """Pairs that were confirmed by fresh rollouts or refuted by them, by criterion."""
    confirmed: Mapping[str, int]
    """Pairs that were selected, by criterion."""
    cut_share: float
    """Share of the rollouts that the length limit cut; a large one says it is too low."""
    redrawn: int
    """UNSCORED rollouts that were drawn again."""
    seconds: float
    """Wall time of this session."""
    paths: Mapping[str, int] = field(default_factory=dict)
    """Paths by what ended their search; "impossible" ones the policy cannot sample."""
    pivotal: int = 0
    """Tokens, or steps, that were decided to be pivotal."""


@dataclass(frozen=True, slots=True)
class SearchRun:
    """What `search` returns. `results` reads from the output folder if there is one."""

    records: Records
    pairs: list[TokenPair]
    summary: Summary
    output: Path | None

    @property
    def results(self) -> Iterator[QuestionResult]:
        """The questions' results, in the order of the problems."""
        return (record.result for record in self.records)


def search(
    problems: Iterable[Problem],
    engine: Engine,
    verifier: Verifier,
    config: SearchConfig | None = None,
    *,
    output: Path | str | None = None,
    seed: int = 0,
    window: int = 64,
    progress: bool = True,
) -> SearchRun:
    """Filter, search and confirm every problem; return results, pairs and totals.

    Besides its own completions, the policy is searched along those that a problem comes with
    (`Problem.completions`); those given as text are encoded, which a warning says once. Impossible
    ones are counted in the summary's `paths`.

    `problems` may be a stream: `window` questions are under way at a time. With `output`, every
    finished wish is journalled there; calling again with the same arguments resumes, draws no
    recorded rollout again, and ends with the same files as an undisturbed run. Problems may be
    added between sessions. Without `output` results are kept in memory.

    Raises JournalError if `output` belongs to another run (policy, sampling, configuration,
    verifier or seed differ) or is in use, DataError for repeated problem ids and for completions
    that cannot be searched (all at once if `problems` is a list, before anything is sampled),
    EngineError and VerifierError as `pts.runner.run` does (questions with too many UNSCORED
    rollouts do not raise: they end with status "unscored").
    """
    config = config or SearchConfig()
    start = time.monotonic()
    with ExitStack() as stack:
        session = _Session(engine, verifier, config, seed, window)
        if isinstance(problems, Sequence):
            session.given.check(problems)
        if output is not None:
            session.open(Path(output), stack)
        total = len(problems) if isinstance(problems, Sized) else None
        left = None if total is None else max(0, total - len(session.finished))
        watch = stack.enter_context(Watch(left, progress))
        session.drive(problems, watch)
        return session.end(time.monotonic() - start)


def reselect(
    folder: RunFolder, *, fdr: float | None = None, p_gap: float | None = None
) -> list[TokenPair]:
    """Select a run's pairs again from its results, at another error rate or a larger gap.

    Raises ConfigError for a gap below the run's own: pairs that small were never proposed, and
    those given up early were judged by the larger gap. Raises it for a run of unit "step" too.
    """
    changes = {"fdr": fdr, "p_gap": p_gap}
    own = folder.config
    if own.unit == "step":
        raise ConfigError(
            f"{folder.path}: searched steps, which make no pairs; search with unit=token for pairs"
        )
    if p_gap is not None and p_gap < own.p_gap:
        raise ConfigError(
            f"p_gap {p_gap:g} is below the run's own {own.p_gap:g}, for which pairs were proposed; "
            "search again with the smaller gap"
        )
    changed = {name: value for name, value in changes.items() if value is not None}
    try:
        config = SearchConfig.model_validate({**own.model_dump(), **changed})
    except ValidationError as error:
        raise ConfigError(*(_wrong(e) for e in error.errors())) from None
    margin = None if p_gap is None else config.p_gap - config.zone
    results = (_retested(record.result, margin) for record in folder.records)
    return select_pairs(results, config, folder.policy)


def _wrong(error: Any) -> str:
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}, got {error['input']!r}"


def _retested(result: QuestionResult, margin: float | None) -> QuestionResult:
    """The result with the p-values of its pairs for another margin."""
    if margin is None:
        return result
    paths = tuple(
        dataclasses.replace(path, pairs=tuple(_with_margin(pair, margin) for pair in path.pairs))
        for path in result.paths
    )
    return dataclasses.replace(result, paths=paths)


def _with_margin(pair: CandidatePair, margin: float) -> CandidatePair:
    """A pair that was given up early (p-value 1) stays so."""
    c, r = pair.confirm_chosen, pair.confirm_rejected
    fresh = score_test(c.successes, c.n, r.successes, r.n, margin) if pair.pvalue < 1 else 1.0
    return dataclasses.replace(pair, pvalue=fresh)


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
    if isinstance(value, (str, int, float, tuple)):
        return repr(value)
    if isinstance(value, re.Pattern):
        return repr(value.pattern)
    return getattr(value, "__qualname__", None)


def used_ids(results: Iterable[QuestionResult]) -> set[int]:
    """Every token id that a report of these results shows."""
    ids: set[int] = set()
    for result in results:
        ids.update(result.prompt_ids)
        for path in result.paths:
            ids.update(path.ids)
            ids.update(sibling[0] for drawn in path.siblings.values() for sibling in drawn)
            ids.update(token for pair in path.pairs for token in (pair.chosen, pair.rejected))
    return ids


def summarise(records: Iterable[Record], pairs: Iterable[TokenPair], seconds: float) -> Summary:
    """Totals over records and selected pairs."""
    status: Counter[str] = Counter()
    proposed: Counter[str] = Counter()
    stopped: Counter[str] = Counter()
    spent: dict[Purpose, Tally] = {}
    pivotal = 0
    for record in records:
        status[record.result.status] += 1
        stopped.update(path.stopped for path in record.result.paths)
        pivotal += sum(token.decided for path in record.result.paths for token in path.tokens)
        pivotal += sum(step.decided for path in record.result.paths for step in path.steps)
        proposed.update(pair.criterion for path in record.result.paths for pair in path.pairs)
        for purpose, tally in record.spent.items():
            spent[purpose] = spent.get(purpose, Tally()) + tally
    total = sum(spent.values(), Tally())
    return Summary(
        questions=dict(sorted(status.items())),
        spent=spent,
        proposed=dict(sorted(proposed.items())),
        confirmed=dict(sorted(Counter(pair.criterion for pair in pairs).items())),
        cut_share=total.cut / total.rollouts if total.rollouts else 0.0,
        redrawn=total.unscored,
        seconds=round(seconds, 3),
        paths=dict(sorted(stopped.items())),
        pivotal=pivotal,
    )


class _Session:
    """One call of `search`: its settings, where records go, what is finished already."""

    def __init__(
        self, engine: Engine, verifier: Verifier, config: SearchConfig, seed: int, window: int
    ) -> None:
        self.engine, self.verifier, self.config = engine, verifier, config
        self.seed, self.window = seed, window
        self.given = Completions(engine, config)
        self.folder: Path | None = None
        self.file: ResultFile | None = None
        self.journal: Journal | None = None
        self.memory: list[Record] = []
        self.order: dict[str, int] = {}

    @property
    def finished(self) -> set[str]:
        return self.file.finished if self.file is not None else set()

    def open(self, folder: Path, stack: ExitStack) -> None:
        """Take hold of a run folder: the lock first, then what earlier sessions left."""
        folder.mkdir(parents=True, exist_ok=True)
        results, journal = folder / "results.jsonl", folder / "journal.jsonl"
        if results.exists() and results.stat().st_size and not journal.exists():
            raise JournalError(
                f"{folder} holds results without the journal they came from; "
                "use another output folder"
            )
        self.journal = stack.enter_context(Journal(journal, self._fingerprint()))
        self.file = ResultFile(results)
        stack.callback(self.file.close)
        self.journal.forget(self.file.finished)
        self.folder = folder

    def _fingerprint(self) -> dict[str, Any]:
        return {
            "policy": self.engine.policy,
            "sampling": self.engine.sampling.model_dump(mode="json"),
            "config": self.config.model_dump(mode="json"),
            "verifier": describe_verifier(self.verifier),
            "seed": self.seed,
        }

    def drive(self, problems: Iterable[Problem], watch: Watch) -> None:
        """Search what is not finished; keep each record as soon as it is there."""
        finished = run(
            self._searches(problems),
            self.engine,
            self.verifier,
            seed=self.seed,
            window=self.window,
            journal=self.journal,
            unscored_limit=self.config.unscored_limit,
            set_aside=_set_aside,
            on_progress=watch,
        )
        try:
            for done in finished:
                self._keep(done)
        except KeyboardInterrupt:
            self._write_pieces()
            raise

    def _searches(self, problems: Iterable[Problem]) -> Iterator[tuple[Problem, Search]]:
        for problem in problems:
            if problem.id in self.order:
                raise DataError(f"two problems have the id {problem.id!r}; ids must be unique")
            self.order[problem.id] = len(self.order)
            if problem.id not in self.finished:
                completions = self.given.of(problem)
                if completions:  # as ids, which the journal is to know the question by
                    problem = dataclasses.replace(problem, completions=completions)
                yield problem, self._search(problem, completions)

    def _search(self, problem: Problem, completions: tuple[Ids, ...]) -> Search:
        return search_question(
            problem.id,
            self.engine.encode(problem),
            self.engine.sampling.max_new_tokens,
            self.config,
            self.seed,
            completions,
            self.engine.stop_ids,
        )

    def _keep(self, done: Finished[QuestionResult]) -> None:
        redrawn = sum(tally.unscored for tally in done.spent.values())
        record = Record(dataclasses.replace(done.result, redrawn=redrawn), done.spent)
        if self.file is None:
            self.memory.append(record)
        else:
            self.file.append(record)

    def end(self, seconds: float) -> SearchRun:
        """Put the results in order, select pairs, write the files that are written whole."""
        records = self._sorted()
        results = (record.result for record in records)
        pairs = select_pairs(results, self.config, self.engine.policy)
        summary = summarise(records, pairs, seconds)
        if self.folder is not None:
            self._write_pieces()
            write_pairs(self.folder / "pairs.jsonl", pairs)
            write_json(self.folder / "summary.json", dataclasses.asdict(summary))
        return SearchRun(records, pairs, summary, self.folder)

    def _sorted(self) -> Records:
        if self.file is None:
            self.memory.sort(key=lambda record: self.order[record.result.problem_id])
            return self.memory
        self.file.sort(self.order)
        return read_records(self.file.path)

    def _write_pieces(self) -> None:
        if self.file is None or self.folder is None:
            return
        results = (record.result for record in read_records(self.file.path))
        ids = tuple(sorted(used_ids(results)))
        pieces = dict(zip(map(str, ids), self.engine.pieces(ids), strict=True))
        write_json(self.folder / "pieces.json", pieces)


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
