"""What `pts search` and `pts plan` are given, read and checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pts.cli.engine import EngineChoice
from pts.cli.settings import Faults, load_settings
from pts.config import SamplingConfig, SearchConfig
from pts.data.problems import Problems, load_problems
from pts.verifiers.base import Verifier
from pts.verifiers.registry import make_verifier, reference_fault


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
    check = None if judge is None else partial(reference_fault, judge)
    asked = faults.attempt(lambda: load_problems(problems, columns, chat=chat, check=check))
    faults.add(*engine.faults())
    faults.raise_all()
    assert both is not None
    assert judge is not None
    assert asked is not None
    return Inputs(*both, judge, asked)
