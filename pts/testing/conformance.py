"""Is an engine right? `check_engine` runs it through all that a search relies on.

    report = check_engine(lambda sampling: MyEngine(model, sampling), problem)
    print(report)                                            # or, in a test:
    assert_engine_conforms(lambda sampling: MyEngine(model, sampling), problem)

Give a factory: then the engine is tried under plain, tempered, top-k, top-p, min-p, combined and
greedy sampling, and a finding can name the mistake, because the plain distribution tells what
every truncation should be. An engine that is given itself is checked under its own settings only.

Statistical tests are made twice before they accuse (`pts.testing.statistics`); the report bounds
its own false alarms. What it cannot see: an engine that blocks for ever (set a time limit for the
test), weights that are not what `policy` says, and rare faults below its sample size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, TypeAlias

from pts.config import SamplingConfig
from pts.engines.base import Engine, SampleRequest
from pts.errors import ConfigError, PTSError
from pts.files import hash64
from pts.testing.contract import check_contract, check_parts
from pts.testing.report import ConformanceReport, FindingCollector, clipped
from pts.testing.rollouts import EngineHarness
from pts.testing.rows import ProbePath, check_places, check_settings, scored
from pts.testing.sampling import DistributionTest, check_distributions
from pts.types import Ids, Problem

MakeEngine: TypeAlias = Callable[[SamplingConfig], Engine]

SETTINGS: Mapping[str, Mapping[str, float]] = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "top-k": {"temperature": 0.8, "top_k": 4},
    "top-p": {"temperature": 0.6, "top_p": 0.8},
    "min-p": {"temperature": 0.7, "min_p": 0.1},
    "together": {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.05},
    "greedy": {"temperature": 0},
}
"""What `check_engine` tries unless told otherwise, apart from `max_new_tokens`."""

EXPLORED = 8
"""Rollouts a problem among which the path of the checks is chosen."""


def check_engine(
    engine: Engine | MakeEngine,
    problems: Problem | Sequence[Problem],
    *,
    samplings: Mapping[str, SamplingConfig] | None = None,
    rollouts: int = 400,
    whole: int = 24,
    max_new_tokens: int = 64,
    tolerance: float = 0.0,
    patience: float = 30.0,
    seed: int = 0,
) -> ConformanceReport:
    """Check an engine against the protocol of `pts.engines.base` and report every breach.

    Args:
        engine: a function from `SamplingConfig` to an engine, or one engine.
        problems: one or more problems with uncertain answers; with two or more the mixing of
            questions is checked too.
        samplings: settings to try, by name, instead of `SETTINGS`. Settings that the engine
            refuses with an error of `pts.errors` are reported as not checked.
        rollouts: draws at each place whose first tokens are counted. 400 find a total variation
            of about 0.12 and more.
        whole: whole rollouts a problem; each is scored once.
        max_new_tokens: length limit of the default settings; large enough that some rollouts stop.
        tolerance: share of draws that may fall outside score's support. Keep 0 for float32; low
            precision moves a token at the edge of a nucleus in and out.
        patience: seconds that the engine may ask an empty queue without delivering.
        seed: another number draws other rollouts.

    Raises ConfigError for arguments that allow no check.
    """
    questions = [problems] if isinstance(problems, Problem) else list(problems)
    if not questions or rollouts < 50 or whole < 2 or max_new_tokens < 4:
        raise ConfigError(
            "check_engine needs a problem, rollouts >= 50, whole >= 2 and max_new_tokens >= 4, "
            f"got {len(questions)} problems, {rollouts}, {whole} and {max_new_tokens}"
        )
    notes = FindingCollector()
    all_tested, plain = _engines_to_check(engine, samplings, max_new_tokens, notes)
    numbers = count()

    def seeds(n: int) -> tuple[int, ...]:
        return tuple(hash64(f"conformance|{seed}|{next(numbers)}") for _ in range(n))

    for k, (label, tested) in enumerate(all_tested):
        limit = min(max_new_tokens, tested.sampling.max_new_tokens)
        harness = EngineHarness(tested, plain, notes, label, limit, seeds, patience)
        paths = _check_sampling(harness, questions, rollouts, whole, tolerance)
        if paths and k == 0:
            check_contract(harness, paths)
    _what_was_missed(notes, questions)
    return notes.report(type(all_tested[0][1]).__name__ if all_tested else "engine")


def assert_engine_conforms(
    engine: Engine | MakeEngine,
    problems: Problem | Sequence[Problem],
    **options: object,
) -> None:
    """`check_engine` for a test: AssertionError with the whole report if anything was found."""
    report = check_engine(engine, problems, **options)  # type: ignore[arg-type]
    if not report.ok:
        raise AssertionError(str(report))


def _engines_to_check(
    engine: Engine | MakeEngine,
    samplings: Mapping[str, SamplingConfig] | None,
    max_new_tokens: int,
    notes: FindingCollector,
) -> tuple[list[tuple[str, Engine]], Engine | None]:
    """Engines that have all the protocol's parts, and a plain one to compare their rows with.

    With each engine stand the name and the settings of its sampling configuration. The plain one is
    at temperature 1 without truncation: it shows what truncation should do.
    """
    if not callable(engine):
        notes.skip(
            "other settings than the engine's own, and what truncation should do to the "
            "plain distribution: give a function from SamplingConfig to an engine"
        )
        if not check_parts(engine, notes):
            return [], None
        return [(_label("own settings", engine.sampling), engine)], None
    wanted = samplings or {
        name: SamplingConfig.model_validate({**changes, "max_new_tokens": max_new_tokens})
        for name, changes in SETTINGS.items()
    }
    tested: list[tuple[str, Engine]] = []
    for name, sampling in wanted.items():
        label = _label(name, sampling)
        try:
            made = engine(sampling)
        except PTSError as error:
            notes.skip(f"{label}: the engine refuses it ({error})")
            continue
        if check_parts(made, notes):
            tested.append((label, made))
            if made.sampling != sampling:
                cause = "the engine keeps another configuration than the one it was made with"
                expected, observed = f"sampling = {sampling}", f"sampling = {made.sampling}"
                notes.add("protocol", label, expected, observed, cause)
    plain = next((made for _, made in tested if not _told(made.sampling)), None)
    if plain is None and tested:
        try:
            plain = engine(SamplingConfig(max_new_tokens=max_new_tokens))
        except PTSError as error:
            notes.skip(f"rows against the plain distribution: it is refused ({error})")
    return tested, plain


def _told(sampling: SamplingConfig) -> dict[str, Any]:
    """The settings that differ from plain sampling."""
    return sampling.model_dump(exclude_defaults=True, exclude={"max_new_tokens"})


def _label(name: str, sampling: SamplingConfig) -> str:
    settings = ", ".join(f"{key}={value:g}" for key, value in _told(sampling).items())
    return f"{name} ({settings})" if settings else name


def _check_sampling(
    harness: EngineHarness, problems: Sequence[Problem], rollouts: int, whole: int, tolerance: float
) -> list[ProbePath]:
    """What depends on the sampling settings; the completions along which it was checked."""
    notes, settings, plain = harness.notes, harness.settings, harness.plain
    paths: list[ProbePath] = []
    with notes.part("rows", settings):
        paths = _paths(harness, problems)
        for path in paths:
            check_places(harness, path)
    if paths and plain is not None and plain is not harness.engine:
        with notes.part("settings", settings):
            for path in paths:
                check_settings(harness, path, plain.score(path.prompt, path.ids))
    if paths:
        with notes.part("frequencies", settings):
            check_distributions(DistributionTest(harness, paths, rollouts, whole, tolerance))
    return paths


def _paths(harness: EngineHarness, problems: Sequence[Problem]) -> list[ProbePath]:
    """One completion a problem, the longest of a few; its rows are checked on the way."""
    prompts = {p.id: _prompt(harness, p) for p in problems}
    requests = [
        SampleRequest(k, prompt, (), harness.limit, harness.seeds(EXPLORED))
        for k, prompt in enumerate(prompts.values())
    ]
    answers = harness.collect(requests)
    found = []
    for request, name in zip(requests, prompts, strict=True):
        longest = max(answers.get(request.key, []), key=len, default=())
        path = scored(harness, request.prompt, longest, name) if longest else None
        if path is not None:
            found.append(path)
    return found


def _prompt(harness: EngineHarness, problem: Problem) -> Ids:
    prompt, again = harness.engine.encode(problem), harness.engine.encode(problem)
    whole = isinstance(prompt, tuple) and all(type(token) is int for token in prompt)
    if not prompt or not whole or prompt != again:
        expected = "a tuple of Python ints, not empty, the same at each call"
        observed = f"{clipped(prompt, 60)}, then {clipped(again, 60)}"
        cause = "ids are handed over as the tokenizer made them (a list, an array, a tensor)"
        harness.add("protocol", f"problem {problem.id}", expected, observed, cause)
    return tuple(int(token) for token in prompt)


def _what_was_missed(notes: FindingCollector, problems: Sequence[Problem]) -> None:
    """Say which rules were never put to the test."""
    if notes.checked and "stopped" not in notes.seen:
        notes.skip("stop ids: no rollout stopped; raise max_new_tokens or take an easier problem")
    if notes.checked and "truncated" not in notes.seen:
        notes.skip("the length limit: no rollout reached it; lower max_new_tokens")
    if len(problems) < 2:
        notes.skip("mixing of questions: give two problems")
