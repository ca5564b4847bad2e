"""`sample`: n judged completions of every problem, journalled and resumable.

    for found in sample(problems, engine, verifier, n=8, output="runs/answers"):
        print(found.problem_id, found.passed, "of", len(found.rollouts))

The simplest of all routines: one query a problem, for the policy itself without any search. Best of
n, full-length preference pairs and evaluations are made of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter

from pts.algorithm.requests import SearchRoutine, request
from pts.engines.base import Engine
from pts.errors import ConfigError, JournalError, PromptError
from pts.files import JsonLines, dumps, output_fault, replacing
from pts.runtime.journal import Journal
from pts.runtime.progress import ProgressReporter
from pts.runtime.results import RolloutCost
from pts.runtime.scheduler import SkippedQuestion, run
from pts.runtime.searcher import EngineInfo, fingerprint
from pts.types import Ids, Problem, Rollout, RolloutQuery
from pts.verifiers.base import Verifier


@dataclass(frozen=True, slots=True)
class ProblemSamples:
    """The completions of one problem, in the order of their indices."""

    problem_id: str
    prompt_ids: Ids
    rollouts: tuple[Rollout, ...]
    """Whole completions with their verdicts; none if too many of them could not be judged."""
    reason: str = ""
    """Why there are none."""
    cost: RolloutCost = field(default_factory=RolloutCost)
    """Of all that was sampled, completions that could not be judged included."""

    @property
    def passed(self) -> int:
        """Completions that the verifier passed."""
        return sum(rollout.success for rollout in self.rollouts)


_SAMPLES = TypeAdapter(ProblemSamples)


def sample(
    problems: Iterable[Problem],
    engine: Engine,
    verifier: Verifier,
    *,
    n: int,
    output: Path | str | None = None,
    seed: int = 0,
    window: int = 256,
    unscored_limit: float = 0.02,
    progress: bool = True,
) -> list[ProblemSamples]:
    """Draw and judge `n` completions of every problem; return them in the problems' order.

    With a folder `output` every finished problem is journalled there, calling again with the same
    arguments draws only what is missing (a larger `n` goes on where the smaller one ended), and
    samples.jsonl holds the result. Rollout i of a problem has one seed, whatever the order, `n`,
    or the interruptions. A problem of whose completions more than `unscored_limit` could not be
    judged has none, with the verifier's reason; nor has one whose prompt cannot be sampled, as
    it leaves no room for `max_new_tokens` in the engine's context or holds a special token.

    Raises ConfigError for `n` below 1, JournalError if `output` belongs to another run (policy,
    stop ids, sampling, verifier or seed differ) or is in use, and EngineError and DataError as
    `pts.runtime.scheduler.run` does.
    """
    if n < 1:
        raise ConfigError(f"n must be at least 1, got {n}")
    found: dict[str, ProblemSamples] = {}
    order: list[str] = []

    def routines() -> Iterable[tuple[Problem, SearchRoutine[ProblemSamples]]]:
        for problem in problems:
            order.append(problem.id)
            try:
                prompt = engine.encode(problem)
                fault = _too_long(prompt, engine)
            except PromptError as error:
                prompt, fault = (), str(error)
            if fault:
                found[problem.id] = ProblemSamples(problem.id, prompt, (), fault)
            else:
                yield problem, _completions(problem.id, prompt, n)

    total = len(problems) if isinstance(problems, Sized) else None
    with ExitStack() as stack:
        journal = None
        if output is not None:
            if fault := output_fault(Path(output), "journal.jsonl", ("samples.jsonl",)):
                raise JournalError(f"{output}: {fault}")
            known_by = fingerprint(EngineInfo.of(engine), verifier, seed)
            journal = stack.enter_context(Journal(Path(output) / "journal.jsonl", known_by))
        reporter = stack.enter_context(ProgressReporter(total, progress))
        for done in run(
            routines(), engine, verifier, seed=seed, window=window, journal=journal,
            unscored_limit=unscored_limit, on_skip=_skipped, on_progress=reporter,
        ):  # fmt: skip
            cost = sum(done.spent.values(), RolloutCost())
            found[done.problem.id] = replace(done.result, cost=cost)
    samples = [found[name] for name in order]
    if output is not None:
        with replacing(Path(output) / "samples.jsonl") as file:
            file.writelines(dumps(_SAMPLES.dump_python(s, mode="json")) + "\n" for s in samples)
    return samples


def read_samples(path: Path | str) -> JsonLines[ProblemSamples]:
    """The samples of a samples.jsonl, lazily. Iterating raises DataError with the line number."""
    return JsonLines(path, _SAMPLES.validate_json)


def _completions(problem_id: str, prompt: Ids, n: int) -> SearchRoutine[ProblemSamples]:
    [rollouts] = yield from request([RolloutQuery((), n, "sample")])
    return ProblemSamples(problem_id, prompt, tuple(rollouts))


def _too_long(prompt: Ids, engine: Engine) -> str:
    """Why a prompt leaves no room for a completion; empty if it does."""
    longest, new = getattr(engine, "max_model_len", None), engine.sampling.max_new_tokens
    if longest is None or len(prompt) + new <= longest:
        return ""
    return (
        f"its prompt has {len(prompt)} tokens, which with max_new_tokens = {new} exceed the "
        f"engine's {longest}"
    )


def _skipped(about: SkippedQuestion) -> ProblemSamples:
    return ProblemSamples(about.problem.id, about.prompt, (), about.reason)
