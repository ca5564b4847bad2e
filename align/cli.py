"""The `align` command. Heavy imports wait until a command needs them, so `--help` is fast."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from align.commands.decontaminate import decontaminate
from align.commands.defects import defects
from align.commands.export import export
from align.commands.interruption import interruptible
from align.commands.plan import plan
from align.commands.refusals import refusals
from align.commands.synthesize import synthesize
from align.errors import RecipeError, StageError, SweepError
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
) -> None:
    """Run a recipe from base model to table; the same command continues a run that was stopped."""
    from align.pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from rich.console import Console

    from align.pipeline import run as pipeline

    folder = output or Path("runs") / f"{loaded.name}-seed{loaded.seed}"
    console = Console()
    with interruptible():
        report = pipeline.run(loaded, folder, console, progress=not quiet)
    console.print(f"\nReport: {report}", highlight=False, soft_wrap=True)


@app.command()
def check(recipe: RecipeArgument, overrides: Overrides = None) -> None:
    """Check a recipe, its files and its options without loading a model."""
    from align.pipeline.check import check_recipe
    from align.pipeline.judges import judge_costs
    from align.pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    check_recipe(loaded)
    for line in judge_costs(loaded):
        typer.echo(line)
    typer.echo(f"{loaded.name}: ok; stages {' > '.join(e.name for e in loaded.stages)}")


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
) -> None:
    """Show what a recipe's stages would train on: rows, lengths, and what is lost on the way."""
    from align.pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from rich.console import Console

    from align.pipeline.data import view_data
    from align.report.data_page import write_data_page
    from align.report.data_text import print_view

    views = view_data(loaded, stage or [], examples)
    for view in views:
        print_view(view, Console())
    if html is not None:
        write_data_page(views, loaded.name, html)
        typer.echo(f"\nPage: {html}")
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
) -> None:
    """Write problems of a recipe's task as JSONL, for `pts search --chat` and the like."""
    from align.pipeline.recipe import load_recipe
    from align.tasks.registry import write_problems

    loaded = load_recipe(recipe, overrides or [])
    try:
        found = write_problems(loaded.task, split, count, loaded.seed, output)
    except OSError as error:
        raise RecipeError(f"--output: {output} cannot be written: {error.strerror}") from None
    if not found:
        raise RecipeError(f"{loaded.name}: its task has no {split} problems; {output} is empty")
    typer.echo(f"{output}: {found} {split} problems of {loaded.name}, seed {loaded.seed}")


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


@app.command()
def chat(
    model: Annotated[Path, typer.Argument(help="Folder of a run, or of a model.")],
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
) -> None:
    """Talk to the result. An empty line or end of input leaves."""
    from align.chat import chat_loop

    chat_loop(model, temperature, max_new_tokens)


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
) -> None:
    """Measure every policy of a run again, with other evaluate.* settings (evaluate.seed=1)."""
    from rich.console import Console

    from align.pipeline.run import evaluate_again, fresh_seed

    asked = [*(overrides or []), *([fresh_seed(run_folder)] if fresh else [])]
    with interruptible():
        folder = evaluate_again(run_folder, asked, output, Console(), progress=not quiet)
    typer.echo(f"Items and summaries: {folder}/eval")


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

    loaded = load_sweep(file, overrides or [])
    check_recipe(loaded.recipe)
    work = Work(
        plan(loaded, sample), parse_seeds(seeds), output or Path("runs") / file.stem,
        partial(pipeline.run, progress=False, parallel=False), allow_other_source, discard_models,
        keep if sample else 0,
    )  # fmt: skip
    if status:
        typer.echo(what_is_left(work))
        return
    with interruptible():
        failures = run_sweep(work, jobs)
    typer.echo(write_tables(work))
    if any(map(work.missing, work.seeds)):
        typer.echo(f"\n{what_is_left(work)}")
    if failures:
        raise SweepError("\n".join(failures))


app.command()(plan)
app.command()(decontaminate)


@app.command()
def compare(
    a: Annotated[
        Path,
        typer.Argument(
            help="Results of one model: RUN/eval/STAGE, samples_*.jsonl of lm-evaluation-harness, "
            "a log of inspect_ai, or a folder of such files."
        ),
    ],
    b: Annotated[Path, typer.Argument(help="Those of the other, on the same items.")],
    measure: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Compare this measure only; may be repeated."),
    ] = None,
    task: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Compare this task only; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
    html: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Also write a page with a picture here."),
    ] = None,
) -> None:
    """Compare two models on the items that both answered: paired tests, Holm over the rows."""
    import json

    from align.compare.pairing import compare as compare_readings
    from align.compare.readers import read_results
    from align.compare.table import to_json, to_text, write_page
    from align.errors import CompareError
    from pts.files import file_fault

    if html is not None and (fault := file_fault(html)):
        raise CompareError(f"--html: {html}: {fault}")
    names = (str(a), str(b))
    found = compare_readings(read_results(a), read_results(b), names, measure or (), task or ())
    typer.echo(json.dumps(to_json(found), indent=2) if as_json else to_text(found))
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        write_page(found, html)
        typer.echo(f"\nPage: {html}", err=as_json)


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
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of the results; runs/benchmarks/RUN-STAGE if not given."),
    ] = None,
    include: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of task files of lm-evaluation-harness."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Measure a model on standard benchmarks; the same command goes on where it ended."""
    from align.benchmarks.command import measure

    with interruptible():
        typer.echo(measure(model, benchmarks, settings or [], output, include, not quiet))


app.command()(refusals)
app.command()(synthesize)
app.command()(defects)
app.command()(export)


@app.command()
def report(run_folder: RunArgument) -> None:
    """Write the HTML report of a run again."""
    from align.report.page import write_report

    typer.echo(f"Report: {write_report(run_folder)}")


def main() -> None:
    """Entry point: errors raised on purpose are printed without a traceback, exit status 2."""
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
