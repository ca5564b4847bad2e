"""The `pts` command: search, merge, plan, pairs, rollouts, report, inspect.

    pts search --model models/mine --problems sums.jsonl --chat \\
        --verifier 'exact:The answer is (-?\\d+)\\.' --output runs/sums p_gap=0.2 temperature=1
    pts report runs/sums

Everything that can be wrong with the input is told at once, before a model is loaded. Heavy
imports wait until a command needs them. Exit status: 0, 2 for wrong input, 130 when interrupted.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pts.cli.options import SearchOptions, with_search_options
from pts.cli.output import AsJson, log_to_stderr, show
from pts.errors import ConfigError, PTSError, outside, printable, told
from pts.plugins import import_modules

if TYPE_CHECKING:
    from pts.cli.inputs import Inputs
    from pts.runtime.search import RunSummary

app = typer.Typer(
    help="Find the tokens that decide whether a model's answer succeeds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def with_imports(
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="MODULE",
            help="Import a Python module of your own first, which registers a verifier or an "
            "engine; may be repeated.",
        ),
    ] = None,
) -> None:
    import_modules(modules or (), "--import")


RunArgument = Annotated[Path, typer.Argument(help="Folder of a search (its --output).")]


@app.command()
@with_search_options
def search(
    given: SearchOptions,
    *,
    workers: Annotated[
        int, typer.Option(min=1, help="Workers, each with the model and WINDOW questions.")
    ] = 1,
    executor: Annotated[
        str,
        typer.Option(help="Workers are processes here (pool), or actors of Ray (ray)."),
    ] = "pool",
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster: auto, HOST:PORT or ray://HOST:PORT; by default Ray is started here."
        ),
    ] = None,
    cpus_per_worker: Annotated[
        int | None, typer.Option(help="Cores that Ray reserves for a worker.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="GPUs that Ray gives to a worker; 1 if there are any.")
    ] = None,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="Search part I of N of the problems alone, I from 1 to N (in Slurm --array=1-N), "
            "each in an --output of its own; then pts merge.",
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Search a model's answers to problems; write results, pairs and a report."""
    of_ray = {
        "address": ray_address,
        "cpus_per_worker": cpus_per_worker,
        "gpus_per_worker": gpus_per_worker,
    }
    with _inputs(given, shard, executor, of_ray) as inputs:
        from pts.report.page import write_report
        from pts.runtime.search import search as run_search

        run = run_search(
            inputs.problems, inputs.engine, inputs.verifier, inputs.config, output=given.output,
            seed=given.seed, window=given.window, workers=workers, executor=inputs.executor,
            shard=inputs.shard, progress=not given.quiet,
        )  # fmt: skip
    if inputs.shard is not None:
        own = sum(run.summary.questions.values())
        none = "" if own else "; nothing is to be searched, and the shard is finished"
        said = f"shard {inputs.shard}: {own:,} of {len(inputs.problems):,} questions{none}"
        typer.echo(said, err=as_json)
    _show_run(run.summary, given.output, write_report(given.output), as_json)


@app.command()
@with_search_options
def plan(
    given: SearchOptions,
    *,
    probe: Annotated[int, typer.Option(min=2, help="Questions that are searched now.")] = 16,
    shards: Annotated[
        int, typer.Option(min=1, help="Tell what one of so many shards costs as well.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Search a few of the problems and forecast what the search of all of them costs and brings.

    Takes what `search` takes, but for its workers and --shard. `search` with the same --output goes
    on from it.
    """
    with _inputs(given) as inputs:
        from pts.planning.plan import plan_search

        found = plan_search(
            inputs.problems, inputs.engine(), inputs.verifier, inputs.config, output=given.output,
            seed=given.seed, window=given.window, probe=probe, shards=shards,
            progress=not given.quiet,
        )  # fmt: skip
    show(found, "\n".join(found.lines()), as_json)


@contextmanager
def _inputs(
    given: SearchOptions,
    shard: str = "",
    executor: str = "pool",
    of_ray: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[Inputs]:
    """What is searched; Ctrl-C in the search says that it can be continued."""
    from pts.cli.executor import chosen_executor
    from pts.cli.inputs import read_inputs

    # Warnings always; progress, where it is logged instead of drawn, unless quiet.
    log_to_stderr(logging.WARNING if given.quiet else logging.INFO)
    inputs = read_inputs(given, shard, lambda: chosen_executor(executor, **of_ray))
    try:
        yield inputs
    except KeyboardInterrupt:
        typer.echo("\nStopped; the same command continues.", err=True)
        raise typer.Exit(130) from None


def _show_run(summary: RunSummary, folder: Path, report: Path, as_json: bool) -> None:
    """What a search has found, and where it is."""
    found = {"folder": folder, "report": report, "summary": summary}
    show(found, "\n".join([*_summary_lines(summary), f"report: {report}"]), as_json)


def _summary_lines(summary: RunSummary) -> list[str]:
    status = ", ".join(f"{n} {name}" for name, n in summary.questions.items())
    lines = [f"questions: {sum(summary.questions.values())} ({status})"]
    if summary.filter_stopped:
        lines.append(f"set aside by their first filter rollouts: {summary.filter_stopped}")
    for purpose, tally in summary.spent.items():
        lines.append(f"{purpose}: {tally.rollouts:,} rollouts, {tally.tokens:,} tokens")
    for criterion, proposed in summary.proposed.items():
        confirmed = summary.confirmed.get(criterion, 0)
        lines.append(f"{criterion} pairs: {confirmed} confirmed of {proposed} proposed")
    lines.append(f"decided to be pivotal: {summary.pivotal}")
    lines.append(f"cut by the length limit: {summary.truncated_share:.1%} of the rollouts")
    if summary.redrawn:
        lines.append(f"unscored and drawn again: {summary.redrawn}")
    if summary.rollouts_bytes:
        size, each = summary.rollouts_bytes, summary.bytes_per_rollout
        lines.append(f"rollouts kept: {size:,} bytes, {each:.0f} for each that was drawn")
    if summary.missing_shards:
        lines.append(f"missing shards: {', '.join(summary.missing_shards)}")
    return [*lines, f"time: {summary.seconds:.0f} s"]


@app.command()
def merge(
    shards: Annotated[
        list[Path], typer.Argument(metavar="SHARD...", help="Folders of searches with --shard.")
    ],
    output: Annotated[Path, typer.Option(help="Folder of the run that is made of them.")],
    partial: Annotated[
        bool, typer.Option("--partial", help="Do without the shards that are missing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make one run of the shards of a search; its pairs are selected among those of all."""
    from pts.report.page import write_report
    from pts.runtime.merge import merge_shards

    run = merge_shards(output, shards, partial=partial)
    _show_run(run.summary, output, write_report(output), as_json)


@app.command()
def pairs(
    source: Annotated[
        str,
        typer.Argument(help="Folder of a search, a pairs.jsonl, or a file of codelion/pts."),
    ],
    fdr: Annotated[
        float | None, typer.Option(help="False discovery rate; the run's own if not given.")
    ] = None,
    p_gap: Annotated[
        float | None, typer.Option("--p-gap", help="A larger gap than the run's own.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder of the tokenizer, for files: rebuilds or shows their tokens."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File (for hf: folder) to write; standard output if none.")
    ] = None,
    form: Annotated[
        Literal["text", "jsonl", "hf"] | None,
        typer.Option(
            "--format",
            help="text (the default without --output), jsonl (with it), or hf: a dataset of "
            "prompt_ids, chosen_ids and rejected_ids with a card.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Select a run's pairs again, or read a file of pairs; list or export them."""
    from pts.cli.pairs import read_source, write_form

    log_to_stderr()
    if as_json and form and output is None:
        raise ConfigError("--json prints the pairs itself; leave out --format, or give --output")
    found = read_source(source, fdr, p_gap, tokenizer)
    if as_json and output is None:
        show(found.pairs, "", as_json)
        return
    write_form(found, form, output)
    where = f" written to {output}" if output else ""
    said = f"{len(found.pairs)} pairs{where}"
    told = {"pairs": len(found.pairs), "output": output}
    show(told, said, as_json, err=form == "jsonl" and output is None)


@app.command()
def rollouts(
    run: Annotated[Path, typer.Argument(help="Folder of a search, or a rollouts.jsonl.")],
    what: Annotated[
        Literal["right", "wrong", "pairs", "values", "all"],
        typer.Option(
            help="right or wrong answers; pairs of a right and a wrong continuation of a prefix; "
            "values: how often each next token led to a right answer; or all rollouts."
        ),
    ] = "right",
    purpose: Annotated[
        list[str] | None,
        typer.Option(
            help="filter, search or confirm: only rollouts drawn for it; may be repeated."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File to write (JSONL); standard output if none.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the rollouts that a search kept as JSON lines of token ids."""
    from pts.cli.rollouts import write_rows

    written = write_rows(run, what, purpose, output)
    where = f" written to {output}" if output else ""
    told = {"rows": written, "output": output}
    show(told, f"{written:,} rows{where}", as_json, err=output is None)


@app.command()
def report(
    run: RunArgument,
    output: Annotated[Path | None, typer.Option(help="The page; RUN/report.html.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about a run, finished or not."""
    from pts.report.page import write_report

    page = write_report(run, output)
    show({"report": page}, f"report: {page}", as_json)


@app.command()
def inspect(
    run: RunArgument,
    question: Annotated[
        str | None, typer.Argument(help="Id of a question; all questions if not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read a run as text: all questions, or one with its tokens, curve and pairs."""
    from pts.report import text
    from pts.runtime.run_folder import RunFolder

    folder = RunFolder(run)
    if as_json:
        if question is None:
            show([*text.rows(folder)], "", as_json)
        else:
            show(text.result_of(folder, question), "", as_json)
        return
    for line in text.overview(folder) if question is None else text.question(folder, question):
        typer.echo(line)


def main() -> None:
    """Entry point: errors raised on purpose are printed without a traceback."""
    try:
        app(standalone_mode=True)
    except PTSError as error:
        print(told(error), file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        said = outside(error)
        if said is None:
            raise
        print(f"error:\n  {printable(said)}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
