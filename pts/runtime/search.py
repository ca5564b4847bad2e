"""`search`: pivotal token search over a stream of problems, with its files and its totals.

    run = search(problems, engine, verifier, SearchConfig(p_gap=0.2), output="runs/first")
    for pair in run.pairs: ...

The loop over questions is `pts.runtime.scheduler`, the search of one question
`pts.algorithm.question`, the selection of pairs `pts.algorithm.selection`. This module only joins
them and knows the run folder.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sized
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from pts.algorithm.criteria import check_criteria
from pts.algorithm.question import search_question
from pts.algorithm.selection import Selection
from pts.algorithm.sequential import SequentialTest, retested, sequential_test
from pts.config import SearchConfig, parse_settings
from pts.engines.base import Engine
from pts.errors import ConfigError
from pts.runtime.executors import executor_named
from pts.runtime.leasing import LeasingExecutor
from pts.runtime.run_folder import RunFolder
from pts.runtime.searcher import QuestionSearcher, SearchSpec
from pts.runtime.session import Executor, RunSession
from pts.runtime.shards import Shard
from pts.runtime.summary import RunSummary, SearchRun
from pts.types import CandidatePair, Problem, QuestionResult, TokenPair
from pts.verifiers.base import Verifier

__all__ = ["RunSummary", "SearchRun", "reselect", "search"]


def search(
    problems: Iterable[Problem],
    engine: Engine | Callable[[], Engine],
    verifier: Verifier,
    config: SearchConfig | None = None,
    *,
    output: Path | str | None = None,
    seed: int = 0,
    window: int = 64,
    workers: int = 1,
    executor: str | Callable[..., Any] = "pool",
    shard: Shard | None = None,
    progress: bool = True,
) -> SearchRun:
    """Filter, search and confirm every problem; return results, pairs and totals.

    Besides its own completions, the policy is searched along those that a problem comes with
    (`Problem.completions`); those given as text are encoded, which a warning says once. Impossible
    ones are counted in the summary's `paths`.

    `problems` may be a stream: `window` questions are under way at a time. With `output`, every
    finished request is journalled there; calling again with the same arguments resumes, draws no
    recorded rollout again, and ends with the same files as an undisturbed run; a finished run is
    left as it is. Problems may be added between sessions. Without `output` results are kept in
    memory.

    With `workers` > 1 that many processes search, each with its own engine, `window` questions
    and share of the cores; `engine` is then a function without arguments that loads one, and it
    and the verifier must be picklable (a script must start the search under
    `if __name__ == "__main__"`). With `executor="ray"`, or `pts.RayActors` with settings, the
    workers, one or more, are actors of Ray on this machine or a cluster. For the number and kind of
    workers what `Engine.reproducible` promises for batches holds: results do not depend on it,
    apart from rounding. It may change between sessions.

    With `shard` only its part of `problems` is searched, which are to be the same for all shards;
    `output` is a folder of its own. `pts.merge_shards` makes one run of them, and selects its
    pairs: those of a shard alone are selected among its own.

    Raises ConfigError for unknown criteria and executors, MissingExtra without Ray, JournalError if
    `output` belongs to another run (policy, stop ids, sampling, configuration, verifier, seed or
    shard differ), holds another question under the id of one of these, or is in use, DataError for
    repeated problem ids and for problems and completions that cannot be searched (all at once if
    `problems` has a length, before anything is sampled), EngineError and VerifierError as
    `pts.runtime.scheduler.run` does (questions with too many UNSCORED rollouts do not raise: they
    end with status "unscored").
    """
    start = time.monotonic()
    config = config or SearchConfig()
    check_criteria(config)
    for name, value in (("workers", workers), ("window", window)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    spec = SearchSpec(search_question, verifier, config, seed, window)
    with ExitStack() as stack:
        searcher = _searcher(engine, spec, workers, executor, stack)
        if isinstance(problems, Sized):  # can be iterated again
            searcher.check(p for p in problems if shard is None or shard.holds(p.id))
        session = RunSession(searcher, spec, shard)
        if output is not None:
            session.open(Path(output), stack)
        session.drive(problems, progress)
        return session.end(time.monotonic() - start)


def _searcher(
    engine: Engine | Callable[[], Engine],
    spec: SearchSpec,
    workers: int,
    executor: str | Callable[..., Any],
    stack: ExitStack,
) -> Executor:
    """Who searches: an engine in this process, or workers, which end with the stack."""
    launch = executor_named(executor) if isinstance(executor, str) else executor
    here = workers == 1 and executor == "pool"
    # isinstance would not see what a wrapper's __getattr__ gives; a class makes engines.
    if hasattr(engine, "sample") and not isinstance(engine, type):
        if here:
            return QuestionSearcher(cast(Engine, engine), spec)
        count = f"{workers} workers" if workers > 1 else "a worker"
        raise ConfigError(
            f"with {count}, engine must be a function that loads one there, "
            "e.g. functools.partial(pts.TransformersEngine.load, path, sampling)"
        )
    if here:
        return QuestionSearcher(engine(), spec)
    return stack.enter_context(LeasingExecutor(launch, engine, spec, workers))


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
    config = parse_settings(SearchConfig, {**own.model_dump(), **changed}, "selection")
    drawn = sequential_test(own.confirm_rollouts, own.p_gap - own.indifference_margin)
    margin = config.p_gap - config.indifference_margin
    test = None if p_gap is None else retested(drawn, margin)
    selection = Selection(config, folder.fingerprint["policy_digest"], drawn)
    for record in folder.records:
        selection.see(_retested(record.result, test))
    return list(selection.pick(_retested(record.result, test) for record in folder.records))


def _retested(result: QuestionResult, test: SequentialTest | None) -> QuestionResult:
    """The result with the p-values of its pairs by this test, if there is one. A pair that was
    given up early keeps its 1."""
    if test is None:
        return result
    paths = tuple(
        dataclasses.replace(path, pairs=tuple(_with_test(pair, test) for pair in path.pairs))
        for path in result.paths
    )
    return dataclasses.replace(result, paths=paths)


def _with_test(pair: CandidatePair, test: SequentialTest) -> CandidatePair:
    c, r = pair.confirm_chosen, pair.confirm_rejected
    return dataclasses.replace(pair, pvalue=test.pvalue(c.n, c.successes, r.successes))
