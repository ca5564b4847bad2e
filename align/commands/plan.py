"""`align plan`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from align.errors import RecipeError

if TYPE_CHECKING:
    from align.pipeline.recipe import Recipe
    from align.planning.assumptions import Assumed
    from align.planning.devices import Device

UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def number_of(text: str) -> int:
    """14.7B, 500M or 14659507200 as a number. RecipeError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBGT]?)", text.strip().upper())
    if not found:
        raise RecipeError(f"--parameters: got {text!r}; give a number such as 14.7B or 500M")
    return round(float(found[1]) * UNITS[found[2]])


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (phi-4) or .yaml file.")],
    overrides: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="key.path=value, e.g. pts.num_problems=64."),
    ] = None,
    like: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of a finished run, whose measurements replace assumptions."),
    ] = None,
    gpu: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="h200, h100, a100-80, a100-40, l40s or cpu; may be repeated. With --like, the "
            "run's seconds are then left out."
        ),
    ] = None,
    devices: Annotated[
        int, typer.Option(min=0, help="Devices that sample; 0 goes by the recipe's engine.")
    ] = 0,
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", help="Assumption, e.g. answer_tokens=900; may be repeated."),
    ] = None,
    parameters: Annotated[
        str, typer.Option(help="Of a model without a config here, e.g. 14.7B.")
    ] = "",
    layers: Annotated[int, typer.Option(min=0, help="Beside --parameters.")] = 0,
    hidden: Annotated[int, typer.Option(min=0, help="Beside --parameters.")] = 0,
    heads: Annotated[int, typer.Option(min=0, help="Of hidden / 128 if not given.")] = 0,
    kv_heads: Annotated[int, typer.Option(min=0, help="As many as heads if not given.")] = 0,
    intermediate: Annotated[int, typer.Option(min=0, help="3.5 hidden if not given.")] = 0,
    vocab: Annotated[int, typer.Option(min=0, help="100,000 if not given.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
) -> None:
    """Say what a recipe will cost: rollouts, tokens, memory, hours, disk. Nothing is loaded."""
    from align.pipeline.recipe import load_recipe
    from align.planning.devices import CPU, device_named
    from align.planning.plan import make_plan
    from align.planning.shapes import shape_of
    from align.planning.text import to_json, to_text

    loaded = load_recipe(recipe, overrides or [])
    usual = "h100" if loaded.model.dtype == "bfloat16" else CPU
    named = [device_named(name) for name in gpu or [usual]]
    own = {
        "layers": layers, "hidden": hidden, "heads": heads, "kv_heads": kv_heads,
        "intermediate": intermediate, "vocab": vocab,
    }  # fmt: skip
    if parameters:
        own["parameters"] = number_of(parameters)
    shape = shape_of(loaded.model, own if any(own.values()) else None)
    loaded, assumed = _assumed(loaded, like, None if gpu else named[0], settings or ())
    plans = [make_plan(loaded, shape, device, assumed, devices) for device in named]
    if as_json:
        found = [to_json(one) for one in plans]
        typer.echo(json.dumps(found if len(found) > 1 else found[0], indent=2))
        return
    typer.echo("\n\n".join(map(to_text, plans)))


def _assumed(
    recipe: Recipe, like: Path | None, device: Device | None, settings: Sequence[str]
) -> tuple[Recipe, Assumed]:
    """The recipe with the rows that are there, and what is assumed: guesses, over them the task's
    own lengths or what a run measured (its seconds on `device`), over all what a person gave."""
    from align.pipeline.overrides import parse_override
    from align.pipeline.recipe import parse_recipe
    from align.planning.assumptions import Assumptions
    from align.planning.measured import assumed_from
    from align.planning.task_rows import read_task
    from align.run_folder import read_manifest
    from pts.config import parse_settings

    recipe, assumed, short = read_task(recipe)
    for one in short:
        typer.echo(f"{one}: planned with these", err=True)
    if like:
        ran = parse_recipe(read_manifest(like)["recipe"], f"{like}/manifest.json")
        assumed = assumed_from(like, ran, device)
    told: dict[str, object] = {}
    for item in settings:
        parse_override(item).apply(told)
    parse_settings(Assumptions, told, "--set")
    return recipe, assumed.with_values(told)
