"""The `pts` command: search, plan, pairs, report, inspect.

    pts search --model models/mine --problems sums.jsonl --chat \\
        --verifier 'exact:The answer is (-?\\d+)\\.' --output runs/sums p_gap=0.2 temperature=1
    pts report runs/sums

Everything that can be wrong with the input is told at once, before a model is loaded. Heavy
imports wait until a command needs them. Exit status: 0, 2 for wrong input, 130 when interrupted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from pts.cli.engine import IN_FLIGHT, EngineChoice
from pts.errors import PTSError, told

if TYPE_CHECKING:
    from pts.runtime.search import RunSummary

app = typer.Typer(
    help="Find the tokens that decide whether a model's answer succeeds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

OptionalPath = Optional[Path]  # noqa: UP045 - typer reads annotations at run time
OptionalText = Optional[str]  # noqa: UP045
OptionalFloat = Optional[float]  # noqa: UP045

RunArgument = Annotated[Path, typer.Argument(help="Folder of a search (its --output).")]
Model = Annotated[
    Path, typer.Option(help="Folder of a model or LoRA adapter; with --server, of a tokenizer.")
]
Problems = Annotated[
    str,
    typer.Option(
        help="File (.jsonl, .csv, .tsv, .parquet), folder of a dataset, or hf:NAME:CONFIG:SPLIT."
    ),
]
NamedVerifier = Annotated[
    str, typer.Option(help="exact:REGEX, math, choice[:LETTERS] or code[:OPTIONS].")
]
Output = Annotated[Path, typer.Option(help="Folder of the run; give it again to resume.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings, e.g. p_gap=0.3 top_p=0.95."),
]
Config = Annotated[OptionalPath, typer.Option(help="YAML with settings.")]
IdColumn = Annotated[str, typer.Option("--id", help="Column of the ids; row numbers if none.")]
PromptColumn = Annotated[str, typer.Option("--prompt", help="Column of the prompts.")]
ReferenceColumn = Annotated[str, typer.Option("--reference", help="Column of the answers.")]
CompletionsColumn = Annotated[
    str, typer.Option("--completions", help="Column of completions to be searched as well.")
]
Chat = Annotated[bool, typer.Option("--chat", help="Ask text prompts as a user's turn.")]
Seed = Annotated[int, typer.Option(help="Seed of the run.")]
Window = Annotated[int, typer.Option(min=1, help="Questions under way at a time.")]
Server = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(help="URL of a vLLM or llama.cpp server; give several to use all of them."),
]
ServedName = Annotated[
    OptionalText, typer.Option(help="The model's name on the servers, if they have several.")
]
InFlight = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help=f"Requests to servers at a time; {IN_FLIGHT} by default."),
]
Seeds = Annotated[bool, typer.Option(help="Send servers a seed with each request.")]
Revision = Annotated[
    str, typer.Option(help="Version of the served weights: another one is another search.")
]
Workers = Annotated[
    int, typer.Option(min=1, help="Processes, each with the model and WINDOW questions.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


@app.command()
def search(
    model: Model,
    problems: Problems,
    verifier: NamedVerifier,
    output: Output,
    settings: Overrides = None,
    config: Config = None,
    id_column: IdColumn = "",
    prompt: PromptColumn = "prompt",
    reference: ReferenceColumn = "reference",
    completions: CompletionsColumn = "",
    chat: Chat = False,
    server: Server = None,
    served_name: ServedName = None,
    in_flight: InFlight = None,
    seeds: Seeds = True,
    revision: Revision = "",
    seed: Seed = 0,
    window: Window = 64,
    workers: Workers = 1,
    quiet: Quiet = False,
) -> None:
    """Search a model's answers to problems; write results, pairs and a report."""
    from pts.cli.inputs import columns_of, read_inputs

    _log_to_stderr(quiet)
    columns = columns_of(id_column, prompt, reference, completions)
    engine = EngineChoice(model, tuple(server or ()), served_name, in_flight, seeds, revision)
    given = read_inputs(engine, problems, columns, verifier, settings or [], config, chat)

    from pts.report.page import write_report
    from pts.runtime.search import search as run_search

    with _interruptible():
        run = run_search(
            given.problems, partial(engine.load, given.sampling), given.verifier,
            given.config, output=output, seed=seed, window=window, workers=workers,
            progress=not quiet,
        )  # fmt: skip
    typer.echo("\n".join(_summary_lines(run.summary)))
    typer.echo(f"report: {write_report(output)}")


@app.command()
def plan(
    model: Model,
    problems: Problems,
    verifier: NamedVerifier,
    output: Output,
    settings: Overrides = None,
    probe: Annotated[int, typer.Option(min=2, help="Questions that are searched now.")] = 16,
    config: Config = None,
    id_column: IdColumn = "",
    prompt: PromptColumn = "prompt",
    reference: ReferenceColumn = "reference",
    completions: CompletionsColumn = "",
    chat: Chat = False,
    server: Server = None,
    served_name: ServedName = None,
    in_flight: InFlight = None,
    seeds: Seeds = True,
    revision: Revision = "",
    seed: Seed = 0,
    window: Window = 64,
    quiet: Quiet = False,
) -> None:
    """Search a few of the problems and forecast what the search of all of them costs and brings.

    Takes what `search` takes, but for --workers. `search` with the same --output goes on from it.
    """
    from pts.cli.inputs import columns_of, read_inputs

    _log_to_stderr(quiet)
    columns = columns_of(id_column, prompt, reference, completions)
    engine = EngineChoice(model, tuple(server or ()), served_name, in_flight, seeds, revision)
    given = read_inputs(engine, problems, columns, verifier, settings or [], config, chat)

    from pts.planning.plan import plan_search

    with _interruptible():
        found = plan_search(
            given.problems, engine.load(given.sampling), given.verifier, given.config,
            probe=probe, output=output, seed=seed, window=window, progress=not quiet,
        )  # fmt: skip
    typer.echo("\n".join(found.lines()))


def _log_to_stderr(quiet: bool = False) -> None:
    """Warnings always; progress, where it is logged instead of drawn, unless `quiet`."""
    level = logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)


@contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("\nStopped; the same command continues.", err=True)
        raise typer.Exit(130) from None


def _summary_lines(summary: RunSummary) -> list[str]:
    status = ", ".join(f"{n} {name}" for name, n in summary.questions.items())
    lines = [f"questions: {sum(summary.questions.values())} ({status})"]
    for purpose, tally in summary.spent.items():
        lines.append(f"{purpose}: {tally.rollouts:,} rollouts, {tally.tokens:,} tokens")
    for criterion, proposed in summary.proposed.items():
        confirmed = summary.confirmed.get(criterion, 0)
        lines.append(f"{criterion} pairs: {confirmed} confirmed of {proposed} proposed")
    lines.append(f"decided to be pivotal: {summary.pivotal}")
    lines.append(f"cut by the length limit: {summary.truncated_share:.1%} of the rollouts")
    if summary.redrawn:
        lines.append(f"unscored and drawn again: {summary.redrawn}")
    return [*lines, f"time: {summary.seconds:.0f} s"]


@app.command()
def pairs(
    source: Annotated[
        str,
        typer.Argument(help="Folder of a search, a pairs.jsonl, or a file of codelion/pts."),
    ],
    fdr: Annotated[
        OptionalFloat, typer.Option(help="False discovery rate; the run's own if not given.")
    ] = None,
    p_gap: Annotated[
        OptionalFloat, typer.Option("--p-gap", help="A larger gap than the run's own.")
    ] = None,
    tokenizer: Annotated[
        OptionalPath,
        typer.Option(help="Folder of the tokenizer, for files: rebuilds or shows their tokens."),
    ] = None,
    output: Annotated[
        OptionalPath, typer.Option(help="File (for hf: folder) to write; standard output if none.")
    ] = None,
    form: Annotated[
        Optional[Literal["text", "jsonl", "hf"]],  # noqa: UP045
        typer.Option(
            "--format",
            help="text (the default without --output), jsonl (with it), or hf: a dataset of "
            "prompt_ids, chosen_ids and rejected_ids with a card.",
        ),
    ] = None,
) -> None:
    """Select a run's pairs again, or read a file of pairs; list or export them."""
    from pts.cli.pairs import read_source, write_form

    _log_to_stderr()
    found = read_source(source, fdr, p_gap, tokenizer)
    write_form(found, form, output)
    where = f" written to {output}" if output else ""
    typer.echo(f"{len(found.pairs)} pairs{where}", err=form == "jsonl" and output is None)


@app.command()
def report(
    run: RunArgument,
    output: Annotated[OptionalPath, typer.Option(help="The page; RUN/report.html.")] = None,
) -> None:
    """Write one HTML page about a run, finished or not."""
    from pts.report.page import write_report

    typer.echo(f"report: {write_report(run, output)}")


@app.command()
def inspect(
    run: RunArgument,
    question: Annotated[
        OptionalText, typer.Argument(help="Id of a question; all questions if not given.")
    ] = None,
) -> None:
    """Read a run as text: all questions, or one with its tokens, curve and pairs."""
    from pts.report.text import overview
    from pts.report.text import question as show
    from pts.runtime.run_folder import RunFolder

    folder = RunFolder(run)
    for line in overview(folder) if question is None else show(folder, question):
        typer.echo(line)


def main() -> None:
    """Entry point: errors raised on purpose are printed without a traceback."""
    try:
        app(standalone_mode=True)
    except PTSError as error:
        print(told(error), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
