"""Write what is generated in docs/: `python docs/build.py`, or a part: `… build.py pictures`.

docs/recipe-reference.md comes from the settings classes, here; the rest from the scripts
`build_*.py` beside this one, each of which has a function `files() -> {path: text}`.
"""

from __future__ import annotations

import importlib
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from align.benchmarks.settings import Benchmark
from align.context import StageEntry
from align.defects.settings import DefectConfig
from align.pipeline.recipe import Recipe
from align.refusals.settings import RefusalConfig
from align.settings import DecontaminationConfig
from align.stages import STAGES
from align.sweep.settings import SweepFile
from align.synthesis.settings import SynthesisConfig
from align.tasks.word_problems.task import WordProblemsConfig

TARGET = Path(__file__).parent / "recipe-reference.md"
HEAD = """# Recipe reference

Written by `python docs/build.py` from the settings classes; a test keeps it up to date. Any key
can be overridden on the command line: `align run phi-nano pts.num_problems=64`.

`stages` lists the chain. An entry is the name of a kind (`sft`), or a mapping with

- `kind`;
- `name`: the stage's folder, row of the table and overrides; the kind if not given;
- `from`: the stage whose policy it starts from, or `base`; the last policy before it if not given;
- `share`: the stage whose problems it draws too; its own if not given;
- `engine`: where its rollouts come from, in the form of the recipe's `engine`; that if not given;
- its settings.

A kind may stand several times under several names:

```yaml
stages:
  - sft
  - {kind: rejection_sft, name: best_of_n, num_problems: 400}
  - pts
  - {kind: token_dpo, beta: 0.5}
  - {kind: full_dpo, name: without_tokens, from: best_of_n}
pts: {num_problems: 128}
```

Settings of a stage may also stand in a section with its name, as those of `pts` here; each is told
once. Overrides read `NAME.key=value`. Sections of kinds that no stage runs are checked, not used.
"""
SIGNS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}


def reference() -> str:
    """The page as Markdown."""
    options = sections(WordProblemsConfig, "task.options (word_problems)")
    stages = [line for kind, stage in STAGES.items() for line in sections(stage.config, kind)]
    sweep = sections(SweepFile, "Sweep file")
    clean = sections(DecontaminationConfig, "Decontamination (`align decontaminate --set`)")
    benchmark = sections(Benchmark, "Benchmark file")
    refusals = sections(RefusalConfig, "Refusals (`align refusals --set`)")
    synthesis = sections(SynthesisConfig, "Synthetic data (`align synthesize`)")
    defects = sections(DefectConfig, "Defect rates (`align defects`)")
    more = (*options, *sweep, *clean, *benchmark, *refusals, *synthesis, *defects)
    return "\n".join([HEAD, *sections(Recipe, ""), *stages, *more])


def sections(kind: type[BaseModel], path: str) -> Iterator[str]:
    """A table for a settings class, then one for each class nested in it."""
    yield f"## {path or 'Top level'}\n\n{(kind.__doc__ or '').strip().splitlines()[0]}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in kind.model_fields.items():
        if field.exclude:
            continue
        inner = models(field.annotation)
        nested += [(place(path, name, m, len(inner) > 1), m) for m in inner]
        meaning = " ".join((field.description or "").split())
        yield f"| `{name}` | {type_text(field)} | {default_text(field)} | {meaning} |"
    yield ""
    for where, model in nested:
        yield from sections(model, where)


def place(path: str, name: str, model: type[BaseModel], tagged: bool) -> str:
    """`task (word_problems)` for tagged unions, `pts.search` otherwise."""
    where = f"{path}.{name}" if path else name
    if not tagged:
        return where
    named = typing.get_args(model.model_fields["kind"].annotation)
    return f"{where} ({named[0] if named else 'in process'})"


def models(annotation: Any) -> list[type[BaseModel]]:
    """Settings classes inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) is typing.Annotated:
        return models(annotation.__origin__)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple):
        return [m for part in typing.get_args(annotation) for m in models(part)]
    return []


def type_text(field: FieldInfo) -> str:
    """Type and range, fit for a table cell."""
    bounds = [
        f"{SIGNS[type(m)]} {next(iter(vars_of(m).values()))}"
        for m in field.metadata
        if type(m) in SIGNS
    ]
    return " ".join([name_of(field.annotation), *bounds])


def vars_of(bound: Any) -> dict[str, Any]:
    """The one value of an annotated-types bound."""
    return {slot: getattr(bound, slot) for slot in bound.__slots__}


def name_of(annotation: Any) -> str:
    """A readable name of a type."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return name_of(annotation.__origin__)
    if origin is typing.Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(name_of(part) for part in parts))
    if origin is tuple:
        return f"list of {name_of(parts[0])}"
    if origin is dict:
        return f"{name_of(parts[0])} → {name_of(parts[1])}"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    if annotation is StageEntry:
        return "stage"
    return getattr(annotation, "__name__", str(annotation)).replace("str", "text")


def default_text(field: FieldInfo) -> str:
    """The default, `required`, or a dash for sections that are told below."""
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return "see below"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return "empty" if value in ("", []) else f"`{'null' if value is None else value}`"


def files() -> dict[Path, str]:
    """What this script generates."""
    return {TARGET: reference()}


if __name__ == "__main__":
    scripts = sorted(path.stem for path in Path(__file__).parent.glob("build*.py"))
    for script in scripts:
        if len(sys.argv) == 1 or script.removeprefix("build_") in sys.argv[1:]:
            for path, text in importlib.import_module(script).files().items():
                path.write_text(text, encoding="utf-8")
                print(path)
