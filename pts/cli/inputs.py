"""What `pts search` and `pts plan` are given, read and checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pts.cli.engine import EngineChoice
from pts.cli.settings import Faults, load_settings
from pts.config import SamplingConfig, SearchConfig
from pts.data.problems import Problems, load_problems
from pts.types import Problem, Verdict
from pts.verifiers.base import Verifier
from pts.verifiers.registry import make_verifier

SHOWN = 20
"""References listed at most that the verifier cannot read."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Sound inputs of a search."""

    config: SearchConfig
    sampling: SamplingConfig
    verifier: Verifier
    problems: Problems


def columns_of(id_column: str, prompt: str, reference: str, completions: str) -> dict[str, str]:
    """Columns by field; those that were not named are left out."""
    named = {"id": id_column, "completions": completions}
    return {"prompt": prompt, "reference": reference} | {k: v for k, v in named.items() if v}


def read_inputs(
    engine: EngineChoice,
    problems: str,
    columns: dict[str, str],
    verifier: str,
    settings: Iterable[str],
    config: Path | None,
    chat: bool,
) -> Inputs:
    """Read everything; raises one ConfigError for all that is wrong."""
    faults = Faults()
    both = faults.attempt(lambda: load_settings(config, settings))
    judge = faults.attempt(lambda: make_verifier(verifier))
    asked = faults.attempt(lambda: load_problems(problems, columns, chat=chat))
    faults.add(*engine.faults())
    if judge is not None and asked is not None:
        faults.add(*unreadable(judge, asked))
    faults.raise_all()
    assert both is not None
    assert judge is not None
    assert asked is not None
    return Inputs(*both, judge, asked)


def unreadable(verifier: Verifier, problems: Iterable[Problem]) -> list[str]:
    """References that the verifier cannot read, found by judging an empty completion."""
    reasons = _reasons(verifier, problems)
    first = list(islice(reasons, SHOWN))
    more = sum(1 for _ in reasons)
    return [*first, f"… and {more:,} more references"] if more else first


def _reasons(verifier: Verifier, problems: Iterable[Problem]) -> Iterator[str]:
    judged = (verifier(problem, "") for problem in problems)
    return (said.reason for said in judged if said.verdict is Verdict.UNSCORED)
