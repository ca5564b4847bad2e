"""What `pts search` and `pts plan` are given alike: one field an option, in one place."""

# Not `from __future__ import annotations`: typer reads the annotations of the fields at run time.
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The model or the servers, the problems and their columns, the verifier, the settings."""

    model: Annotated[
        Path, typer.Option(help="Folder of a model or LoRA adapter; with --server, of a tokenizer.")
    ]
    problems: Annotated[
        str,
        typer.Option(
            help="File (.jsonl, .csv, .tsv, .parquet), folder of a dataset, or "
            "hf:NAME:CONFIG:SPLIT."
        ),
    ]
    verifier: Annotated[
        str, typer.Option(help="exact:REGEX, math, choice[:LETTERS] or code[:OPTIONS].")
    ]
    output: Annotated[Path, typer.Option(help="Folder of the run; give it again to resume.")]
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings, e.g. p_gap=0.3 top_p=0.95."),
    ] = None
    config: Annotated[Path | None, typer.Option(help="YAML with settings.")] = None
    id_column: Annotated[
        str, typer.Option("--id", help="Column of the ids; row numbers if none.")
    ] = ""
    prompt: Annotated[str, typer.Option(help="Column of the prompts.")] = "prompt"
    reference: Annotated[str, typer.Option(help="Column of the answers.")] = "reference"
    completions: Annotated[
        str, typer.Option(help="Column of completions to be searched as well.")
    ] = ""
    chat: Annotated[bool, typer.Option("--chat", help="Ask text prompts as a user's turn.")] = False
    server: Annotated[
        list[str] | None,
        typer.Option(help="URL of a vLLM or llama.cpp server; give several to use all of them."),
    ] = None
    served_name: Annotated[
        str | None, typer.Option(help="The model's name on the servers, if they have several.")
    ] = None
    in_flight: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rollouts asked of servers at a time; by default as many as they keep up with.",
        ),
    ] = None
    seeds: Annotated[bool, typer.Option(help="Send servers a seed with each request.")] = True
    revision: Annotated[
        str, typer.Option(help="Version of the served weights: another one is another search.")
    ] = ""
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0
    window: Annotated[int, typer.Option(min=1, help="Questions under way at a time.")] = 64
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False


def with_search_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command(given, *, own options)` as typer sees it: the fields of `SearchOptions` are options
    like its own."""
    shared = inspect.signature(SearchOptions).parameters
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @wraps(command)
    def run(**values: Any) -> None:
        command(SearchOptions(**{name: values.pop(name) for name in shared}), **values)

    run.__signature__ = inspect.Signature([*shared.values(), *own])  # type: ignore[attr-defined]
    return run
