"""What `pts search` and `pts plan` are given, read and checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from pts.cli.engine import engine_faults, load_engine
from pts.cli.options import SearchOptions
from pts.cli.settings import Faults, load_settings
from pts.config import SamplingConfig, SearchConfig
from pts.data.problems import Problems, load_problems
from pts.engines.base import Engine
from pts.files import context_length, output_fault
from pts.runtime.completions import SHOWN, may_outgrow
from pts.runtime.results import WRITTEN
from pts.runtime.shards import Shard
from pts.verifiers.base import Verifier
from pts.verifiers.registry import ReferenceCheck, make_verifier

Executor: TypeAlias = str | Callable[..., Any]
"""As `pts.search` takes it."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Sound inputs of a search."""

    problems: Problems
    engine: Callable[[], Engine]
    """Loads it."""
    verifier: Verifier
    config: SearchConfig
    shard: Shard | None
    executor: Executor


def read_inputs(
    given: SearchOptions, shard: str = "", executor: Callable[[], Executor] = lambda: "pool"
) -> Inputs:
    """Read everything, `shard` as `Shard.parse` does, `executor` by calling it; raises one
    ConfigError for all that is wrong."""
    columns = {"prompt": given.prompt, "reference": given.reference}
    named = {"id": given.id_column, "completions": given.completions}
    columns |= {field: column for field, column in named.items() if column}
    faults = Faults()
    both = faults.attempt(lambda: load_settings(given.config, given.settings or ()))
    judge = faults.attempt(lambda: make_verifier(given.verifier))
    check = None if judge is None else ReferenceCheck(judge)
    asked = faults.attempt(
        lambda: load_problems(given.problems, columns, chat=given.chat, check=check)
    )
    part = faults.attempt(lambda: Shard.parse(shard)) if shard else None
    searcher = faults.attempt(executor)
    faults.extend(engine_faults(given))
    if fault := output_fault(given.output, "journal.jsonl", WRITTEN):
        faults.append(f"--output: {given.output}: {fault}")
    if both is not None:
        faults.extend(_misfits(given, *both))
    faults.raise_all()
    if check is not None:
        check.warn()
    assert both is not None
    assert judge is not None
    assert asked is not None
    assert searcher is not None
    config, sampling = both
    faults.extend(_too_long(given, sampling, asked))
    faults.raise_all()
    return Inputs(asked, partial(load_engine, given, sampling), judge, config, part, searcher)


def _misfits(given: SearchOptions, config: SearchConfig, sampling: SamplingConfig) -> Iterator[str]:
    """What is wrong between settings that are right by themselves."""
    if sampling.temperature == 0:
        yield "temperature: got 0, with which all rollouts are one; a search needs more than 0"
    if config.paths == 0 and not given.completions:
        yield (
            "paths: got 0, which searches given completions alone; name their column with "
            "--completions"
        )
    longest = None if given.server else context_length(given.model)
    if longest is not None and sampling.max_new_tokens > longest:
        yield (
            f"max_new_tokens: got {sampling.max_new_tokens:,}, but the context of {given.model} is "
            f"{longest:,} tokens (config.json); lower it"
        )


def _too_long(given: SearchOptions, sampling: SamplingConfig, problems: Problems) -> Iterator[str]:
    """Prompts that leave no room for a completion, found by the tokenizer alone."""
    longest = None if given.server else context_length(given.model)
    if longest is None:
        return
    room = longest - sampling.max_new_tokens
    suspects = [problem for problem in problems if may_outgrow(problem, room)]
    if not suspects:
        return
    from pts.engines.text import encode_problem, load_tokenizer

    tokenizer, _, _ = load_tokenizer(given.model, None)
    lengths = ((problem, len(encode_problem(tokenizer, problem))) for problem in suspects)
    found = [(problem, length) for problem, length in lengths if length > room]
    for problem, length in found[:SHOWN]:
        yield (
            f"problem {problem.id!r}: its prompt has {length:,} tokens, which with max_new_tokens "
            f"= {sampling.max_new_tokens:,} exceed the {longest:,} of {given.model}; shorten or "
            "drop it"
        )
    if len(found) > SHOWN:
        yield f"… and {len(found) - SHOWN:,} more prompts"
