"""The `align` command. Heavy imports wait until a command needs them, so `--help` is fast."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from align.commands.chat import chat
from align.commands.compare import compare
from align.commands.decontaminate import decontaminate
from align.commands.defects import defects
from align.commands.export import export
from align.commands.interruption import interruptible
from align.commands.plan import plan
from align.commands.refusals import refusals
from align.commands.synthesize import synthesize
from align.commands.table import table
from align.errors import RecipeError, StageError, SweepError
from pts.cli.output import AsJson, log_to_stderr, show
from pts.errors import PTSError, outside, printable, told

app = typer.Typer(
    help="The three-stage post-train: SFT, DPO on pivotal tokens, DPO on full-length pairs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeArgument = Annotated[str, typer.Argument(help="A recipe's name (phi-nano) or .yaml file.")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(help="key.path=value, e.g. seed=1 pts.num_problems=64."),
]
RunArgument = Annotated[Path, typer.Argument(help="Folder of a run.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of the run; runs/NAME-seedN if not given."),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe from base model to table; the same command continues a run that was stopped."""
    from align.pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from rich.console import Console

    from align.pipeline import run as pipeline

    folder = output or Path("runs") / f"{loaded.name}-seed{loaded.seed}"
    with interruptible():
        report = pipeline.run(loaded, folder, Console(stderr=as_json), progress=not quiet)
    found = {"folder": folder, "report": report, "table": written(folder / "table.json")}
    show(found, f"\nReport: {report}", as_json)


@app.command()
def check(recipe: RecipeArgument, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a recipe, its files and its options without loading a model."""
    from align.pipeline.check import check_recipe
    from align.pipeline.judges import judge_costs
    from align.pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    short = [str(one) for one in check_recipe(loaded)]
    stages, costs = [entry.name for entry in loaded.stages], judge_costs(loaded)
    ok = f"{loaded.name}: ok; stages {' > '.join(stages)}"
    found = {"recipe": loaded.name, "stages": stages, "judge_costs": costs, "short": short}
    show(found, "\n".join([*short, *costs, ok]), as_json)


@app.command()
def data(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    html: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write it as a page, too."),
    ] = None,
    stage: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A stage to look at; all that train on rows if not given."),
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Rows to show of each source.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Show what a recipe's stages would train on: rows, lengths, and what is lost on the way."""
    from align.pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from rich.console import Console

    from align.pipeline.data import view_data
    from align.report.data_page import write_data_page
    from align.report.data_text import print_view

    views = view_data(loaded, stage or [], examples)
    if as_json:
        show(views, "", as_json)
    else:
        for view in views:
            print_view(view, Console())
    if html is not None:
        write_data_page(views, loaded.name, html)
        typer.echo(f"\nPage: {html}", err=as_json)
    faults = [fault for view in views for fault in view.faults]
    if faults:
        raise StageError("\n".join(faults))


@app.command()
def problems(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("problems.jsonl"),
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "dev",
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 48,
    as_json: AsJson = False,
) -> None:
    """Write problems of a recipe's task as JSONL, for `pts search --chat` and the like."""
    from align.pipeline.recipe import load_recipe
    from align.tasks.registry import write_problems
    from pts.files import file_fault

    loaded = load_recipe(recipe, overrides or [])
    if not output.is_dir() and (fault := file_fault(output, r'\{"id": ', "problems")):
        raise RecipeError(f"--output: {output}: {fault}")
    try:
        found = write_problems(loaded.task, split, count, loaded.seed, output)
    except OSError as error:
        raise RecipeError(f"--output: {output} cannot be written: {error.strerror}") from None
    if not found:
        raise RecipeError(f"{loaded.name}: its task has no {split} problems; {output} is empty")
    said = f"{output}: {found} {split} problems of {loaded.name}, seed {loaded.seed}"
    show({"file": output, "problems": found, "split": split, "seed": loaded.seed}, said, as_json)


@app.command()
def pretrain(
    recipe: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="A base.yaml; phi-nano's if not given."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of the new base model.")] = Path("runs/base"),
) -> None:
    """Pretrain the tiny base model from scratch (minutes on one core)."""
    from align.pretraining.loop import pretrain as train
    from align.pretraining.nano import load_base_recipe
    from align.settings import data_folder

    shipped = data_folder("recipes") / "phi-nano" / "base.yaml"
    with interruptible():
        train(load_base_recipe(recipe or shipped), output)


app.command()(chat)


@app.command(name="eval")
def evaluate(
    run_folder: RunArgument,
    overrides: Overrides = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of the evaluation; RUN/evaluations/… if not given."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="On problems of a seed that is drawn now.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure every policy of a run again, with other evaluate.* settings (evaluate.seed=1)."""
    from rich.console import Console

    from align.pipeline.run import evaluate_again, fresh_seed

    asked = [*(overrides or []), *([fresh_seed(run_folder)] if fresh else [])]
    with interruptible():
        console = Console(stderr=as_json)
        folder = evaluate_again(run_folder, asked, output, console, progress=not quiet)
    found = {"folder": folder, "table": written(folder / "table.json")}
    show(found, f"Items and summaries: {folder}/eval", as_json)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep's .yaml file.")],
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(help="Training seeds, e.g. 0-11 or 3,5,7.")] = "0-2",
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of cells and tables; runs/NAME-OF-FILE if not given."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, one core each.")] = 1,
    sample: Annotated[
        int, typer.Option(min=0, help="Random search: so many points of the file's ranges.")
    ] = 0,
    keep: Annotated[
        int, typer.Option(min=0, help="Points an arm that go on after the first seed; 0 is all.")
    ] = 0,
    status: Annotated[
        bool, typer.Option("--status", help="Say what is left; run nothing.")
    ] = False,
    discard_models: Annotated[
        bool, typer.Option("--discard-models", help="Delete a seed's run when its cells are made.")
    ] = False,
    allow_other_source: Annotated[
        bool, typer.Option("--allow-other-source", help="Keep cells that other code has made.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the arms of a sweep over seeds, compare them; the same command goes on where it ended."""
    from functools import partial

    from align.pipeline import run as pipeline
    from align.pipeline.check import check_recipe
    from align.sweep.file import load_sweep
    from align.sweep.plan import plan
    from align.sweep.publish import write_tables
    from align.sweep.settings import parse_seeds
    from align.sweep.work import Work, run_sweep, what_is_left

    if keep and not sample:
        raise RecipeError(f"--keep: got {keep} without --sample; it keeps points of random search")
    loaded = load_sweep(file, overrides or [])
    check_recipe(loaded.recipe)
    work = Work(
        plan(loaded, sample), parse_seeds(seeds), output or Path("runs") / file.stem,
        partial(pipeline.run, progress=False, parallel=False), allow_other_source, discard_models,
        keep if sample else 0,
    )  # fmt: skip
    if status:
        said = what_is_left(work)
        show({"cells": len(work.keys), "left": work.left()}, said, as_json)
        return
    with interruptible():
        failures = run_sweep(work, jobs)
    text = write_tables(work)
    table = written(work.output / ("tuning.json" if work.plan.draws else "table.json"))
    if left := work.left():
        text += f"\n\n{what_is_left(work)}"
    found = {"folder": work.output, "cells": len(work.keys), "left": left, "table": table}
    show(found, text, as_json)
    if failures:
        raise SweepError("\n".join(failures))


app.command()(plan)
app.command()(decontaminate)
app.command()(compare)


@app.command()
def benchmark(
    model: Annotated[Path, typer.Argument(help="Folder of a model, or of a stage of a run.")],
    benchmarks: Annotated[
        list[str], typer.Argument(help="Names (arc-easy, gsm8k, ...), .yaml files, lm-eval:TASK.")
    ],
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="key=value for all of them, e.g. limit=200; may be repeated."),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="transformers, vllm, {kind: server, ...}, as in a recipe; the run's if not given."
        ),
    ] = "",
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of the results; runs/benchmarks/RUN-STAGE if not given."),
    ] = None,
    include: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of task files of lm-evaluation-harness."),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model on standard benchmarks; the same command goes on where it ended."""
    from align.benchmarks.command import measure

    with interruptible():
        found, text = measure(model, benchmarks, settings or [], output, include, not quiet, engine)
    show(found, text, as_json)


app.command()(refusals)
app.command()(synthesize)
app.command()(defects)
app.command()(export)
app.command()(table)


@app.command()
def reproduce(
    run_folder: RunArgument,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of the new run; RUN-again if not given."),
    ] = None,
    stage: Annotated[
        str, typer.Option(help="The last stage to make again; all that the run has if not given.")
    ] = "",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Run a run's recipe again and compare all that it made; exit status 1 if anything differs."""
    from rich.console import Console

    from align.pipeline.reproduce import compare, made_so_far
    from align.pipeline.run import run as run_again
    from align.pipeline.run import run_recipe

    recipe = made_so_far(run_recipe(run_folder), run_folder, stage)
    folder = output or run_folder.resolve().with_name(f"{run_folder.resolve().name}-again")
    if folder.resolve() == run_folder.resolve():
        raise RecipeError(f"--output: {folder} is the run itself; give another folder")
    with interruptible():
        run_again(recipe, folder, Console(stderr=as_json), progress=not quiet)
    found = compare(run_folder, folder)
    show(found.to_json(), f"\n{found.to_text()}", as_json)
    if not found.equal:
        raise typer.Exit(1)


@app.command()
def report(run_folder: RunArgument, as_json: AsJson = False) -> None:
    """Write the HTML report of a run again."""
    from align.report.page import write_report

    page = write_report(run_folder)
    show({"report": page}, f"Report: {page}", as_json)


def written(file: Path) -> Any:
    """What a JSON file of a run holds; None if there is no such file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def main() -> None:
    """Entry point: errors raised on purpose are printed without a traceback, exit status 2."""
    log_to_stderr()
    try:
        app()
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
