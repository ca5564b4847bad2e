"""The `pts` command: search, pairs, report, inspect.

    pts search --model phi-nano --problems sums.jsonl --chat \\
        --verifier 'exact:The answer is (-?\\d+)\\.' --output runs/sums p_gap=0.2 temperature=1
    pts report runs/sums

Everything that can be wrong with the input is told at once, before a model is loaded. Heavy
imports wait until a command needs them. Exit status: 0, 2 for wrong input, 130 when interrupted.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from pts.errors import DataError, PTSError

if TYPE_CHECKING:
    from pts.api import Summary
    from pts.engines.base import Engine
    from pts.types import Problem
    from pts.verifiers.base import Verifier

app = typer.Typer(
    help="Find the tokens that decide whether a model's answer succeeds.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunArgument = Annotated[Path, typer.Argument(help="Folder of a search (its --output).")]
OptionalPath = Optional[Path]  # noqa: UP045 - typer reads annotations at run time


@app.command()
def search(
    model: Annotated[Path, typer.Option(help="Folder of a model or LoRA adapter.")],
    problems: Annotated[Path, typer.Option(help="JSONL with a problem a line.")],
    verifier: Annotated[str, typer.Option(help="exact:REGEX, math, choice or code[:OPTIONS].")],
    output: Annotated[Path, typer.Option(help="Folder of the run; give it again to resume.")],
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings, e.g. p_gap=0.3 top_p=0.95."),
    ] = None,
    config: Annotated[OptionalPath, typer.Option(help="YAML with settings.")] = None,
    id_column: Annotated[str, typer.Option("--id", help="Column of the ids.")] = "",
    prompt: Annotated[str, typer.Option(help="Column of the prompts.")] = "prompt",
    reference: Annotated[str, typer.Option(help="Column of the answers.")] = "reference",
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask text prompts as a user's turn.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
    window: Annotated[int, typer.Option(min=1, help="Questions under way at a time.")] = 64,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress line.")] = False,
) -> None:
    """Search a model's answers to problems; write results, pairs and a report."""
    from pts.cli_settings import Faults, load_settings
    from pts.store_problems import load_problems
    from pts.verifiers.named import make_verifier

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    columns = {"prompt": prompt, "reference": reference} | ({"id": id_column} if id_column else {})
    faults = Faults()
    both = faults.attempt(lambda: load_settings(config, settings or []))
    judge = faults.attempt(lambda: make_verifier(verifier))
    asked = faults.attempt(lambda: load_problems(problems, columns, chat=chat))
    if not (model / "config.json").is_file() and not (model / "adapter_config.json").is_file():
        faults.add(f"{model}: no model here (neither config.json nor adapter_config.json)")
    if judge is not None and asked is not None:
        faults.add(*_unreadable(judge, asked))
    faults.raise_all()
    assert both is not None
    assert judge is not None
    assert asked is not None

    from pts.api import search as run_search
    from pts.engines.transformers import TransformersEngine
    from pts.report import write_report

    try:
        engine: Engine = TransformersEngine.load(model, both[1])
        run = run_search(
            asked, engine, judge, both[0],
            output=output, seed=seed, window=window, progress=not quiet,
        )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo("\nStopped; the same command continues.", err=True)
        raise typer.Exit(130) from None
    typer.echo("\n".join(_summary_lines(run.summary)))
    typer.echo(f"report: {write_report(output)}")


def _unreadable(verifier: Verifier, problems: list[Problem], shown: int = 20) -> list[str]:
    """References that the verifier cannot read, found by judging an empty completion."""
    from pts.types import Verdict

    judged = (verifier(problem, "") for problem in problems)
    faults = [said.reason for said in judged if said.verdict is Verdict.UNSCORED]
    more = [f"… and {len(faults) - shown} more references"] if len(faults) > shown else []
    return faults[:shown] + more


def _summary_lines(summary: Summary) -> list[str]:
    status = ", ".join(f"{n} {name}" for name, n in summary.questions.items())
    lines = [f"questions: {sum(summary.questions.values())} ({status})"]
    for purpose, tally in summary.spent.items():
        lines.append(f"{purpose}: {tally.rollouts:,} rollouts, {tally.tokens:,} tokens")
    for criterion, proposed in summary.proposed.items():
        confirmed = summary.confirmed.get(criterion, 0)
        lines.append(f"{criterion} pairs: {confirmed} confirmed of {proposed} proposed")
    lines.append(f"decided to be pivotal: {summary.pivotal}")
    lines.append(f"cut by the length limit: {summary.cut_share:.1%} of the rollouts")
    if summary.redrawn:
        lines.append(f"unscored and drawn again: {summary.redrawn}")
    return [*lines, f"time: {summary.seconds:.0f} s"]


@app.command()
def pairs(
    run: RunArgument,
    fdr: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="False discovery rate; the run's own if not given."),
    ] = None,
    p_gap: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--p-gap", help="A larger gap than the run's own."),
    ] = None,
    output: Annotated[OptionalPath, typer.Option(help="File or folder to write.")] = None,
    form: Annotated[
        Literal["jsonl", "hf"], typer.Option("--format", help="JSONL or a datasets folder.")
    ] = "jsonl",
) -> None:
    """Select a run's pairs again and list or export them."""
    from pts.api import reselect
    from pts.store import pairs_dataset, write_pairs
    from pts.store_run import RunFolder

    folder = RunFolder(run)
    selected = reselect(folder, fdr=fdr, p_gap=p_gap)
    if output is None:
        for pair in selected:
            chosen, rejected = folder.piece(pair.chosen), folder.piece(pair.rejected)
            typer.echo(
                f"{pair.problem_id!r}: {chosen!r} over {rejected!r}, gap {pair.gap.mean:+.2f} "
                f"[{pair.gap.low:+.2f}, {pair.gap.high:+.2f}], worth {pair.worth:+.2f}"
            )
    elif form == "hf":
        if not selected:
            raise DataError(f"{run}: no pair was selected, so there is no dataset to write")
        pairs_dataset(selected).save_to_disk(str(output))
    else:
        write_pairs(output, selected)
    typer.echo(f"{len(selected)} pairs" + (f" written to {output}" if output else ""))


@app.command()
def report(
    run: RunArgument,
    output: Annotated[OptionalPath, typer.Option(help="The page; RUN/report.html.")] = None,
) -> None:
    """Write one HTML page about a run, finished or not."""
    from pts.report import write_report

    typer.echo(f"report: {write_report(run, output)}")


@app.command()
def inspect(
    run: RunArgument,
    question: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="Id of a question; all questions if not given."),
    ] = None,
) -> None:
    """Read a run as text: all questions, or one with its tokens, curve and pairs."""
    from pts.inspect import overview
    from pts.inspect import question as show
    from pts.store_run import RunFolder

    folder = RunFolder(run)
    for line in overview(folder) if question is None else show(folder, question):
        typer.echo(line)


def main() -> None:
    """Entry point: errors raised on purpose are printed without a traceback."""
    try:
        app(standalone_mode=True)
    except PTSError as error:
        lines = str(error).splitlines()
        head = "error" if len(lines) == 1 else f"{len(lines)} errors"
        print(f"{head}:", *(f"  {line}" for line in lines), sep="\n", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
