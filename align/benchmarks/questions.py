"""Questions made of a benchmark's rows: prompts with their worked examples, choices, references.

questions = build_questions(benchmark)
questions[0].prompt, questions[0].choices
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from align.benchmarks.rows import Row, limited, rows_of
from align.benchmarks.settings import Benchmark
from align.errors import RecipeError
from pts.errors import DataError
from pts.types import Message, Problem

ROW = "row"
"""A row as a whole in a template, for columns whose names hold blanks: row['Correct Answer']."""
SHOWN = 20
"""Faults listed at most in one message."""

_JINJA = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


def shuffled(texts: Sequence[Any], seed: int) -> list[Any]:
    """Texts in an order that the texts themselves and a seed decide, whatever their order was."""
    known = sorted(texts, key=str)
    random.Random(json.dumps([seed, *map(str, known)])).shuffle(known)
    return known


def _variables(row: Row, seed: int) -> dict[str, Any]:
    """What templates and expressions know: the columns, the row, `shuffled`."""
    return {ROW: row, "shuffled": partial(shuffled, seed=seed), **row}


@dataclass(frozen=True, slots=True)
class Question:
    """One question as it is asked."""

    id: str
    prompt: str | tuple[Message, ...]
    row: Row
    stratum: str = ""
    choices: tuple[str, ...] = ()
    gold: int = -1
    reference: Any = None

    @property
    def problem(self) -> Problem:
        """For an engine."""
        return Problem(self.id, self.prompt, reference_text(self.reference))

    @property
    def digest(self) -> str:
        """Of all that is asked and of the right answer."""
        prompt = self.prompt if isinstance(self.prompt, str) else [m.content for m in self.prompt]
        asked = [prompt, self.choices, self.gold, self.reference]
        return hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()[:16]


def reference_text(reference: Any) -> str:
    """A reference as verifiers take it: text as it is, whole numbers without a point, else JSON."""
    if isinstance(reference, str):
        return reference
    if isinstance(reference, float) and reference.is_integer():
        reference = int(reference)
    return json.dumps(reference, default=str)


def build_questions(benchmark: Benchmark) -> list[Question]:
    """All questions of a benchmark, in the order of its rows.

    Raises:
        RecipeError: a template or an expression is wrong, or fits a row no better.
        DataError: the rows cannot be read, or there are too few for the examples.
    """
    reader = _Reader(benchmark)
    rows = rows_of(benchmark.source)
    stratum = reader.stratum if benchmark.stratify else None
    asked = limited(rows, benchmark.limit, benchmark.seed, stratum)
    if not asked:
        raise DataError(f"{benchmark.source}: holds no rows")
    shown = _Examples(benchmark, reader, rows)
    found, faults = list[Question](), list[str]()
    for number in asked:
        try:
            found.append(reader.question(number, rows[number], shown.of(number, rows[number])))
        except (jinja2.TemplateError, TypeError, ValueError, IndexError, KeyError) as error:
            faults.append(f"{benchmark.name}: row {number + 1} of {benchmark.source}: {error}")
    if faults:
        more = [f"… and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise RecipeError(*faults[:SHOWN], *more)
    return found


class _Reader:
    """A benchmark's templates, compiled."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark
        faults: list[str] = []

        def compiled(key: str, make: Callable[[str], Any]) -> Any:
            try:
                return make(getattr(benchmark, key))
            except jinja2.TemplateSyntaxError as error:
                faults.append(f"{benchmark.name}.{key}: {error.message}")
                return None

        def expression(key: str) -> Callable[..., Any] | None:
            text: str = getattr(benchmark, key)
            make = partial(_JINJA.compile_expression, undefined_to_none=False)
            return compiled(key, make) if text else None

        self._prompt = compiled("prompt", _JINJA.from_string)
        self._answer = compiled("answer", _JINJA.from_string) if benchmark.answer else None
        self._choices, self._gold = expression("choices"), expression("gold")
        self._reference = expression("reference")
        self._stratify, self.match = expression("stratify"), expression("shots_match")
        if faults:
            raise RecipeError(*faults)

    def stratum(self, row: Row) -> str:
        return str(self.value(self._stratify, row)) if self._stratify else ""

    def value(self, expression: Callable[..., Any] | None, row: Row) -> Any:
        """What an expression gives for a row."""
        assert expression is not None
        value = expression(**_variables(row, self.benchmark.seed))
        if isinstance(value, jinja2.Undefined):
            raise ValueError(str(value) or "an expression gives nothing")
        return value

    def choices(self, row: Row) -> tuple[tuple[str, ...], int]:
        """The choices of a row and the number of the right one."""
        texts = self.value(self._choices, row)
        if not isinstance(texts, list | tuple) or not texts:
            raise ValueError(f"choices: must give a list of texts, got {texts!r}")
        gold = self.value(self._gold, row)
        if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(texts):
            raise ValueError(f"gold: must give a number from 0 to {len(texts) - 1}, got {gold!r}")
        return tuple(map(str, texts)), gold

    def prompt(self, row: Row) -> str:
        return str(self._prompt.render(_variables(row, self.benchmark.seed)))

    def answer(self, row: Row) -> str:
        """An example's answer."""
        if self._answer is not None:
            return str(self._answer.render(_variables(row, self.benchmark.seed)))
        choices, gold = self.choices(row)
        return choices[gold]

    def question(self, number: int, row: Row, examples: Sequence[Row]) -> Question:
        benchmark = self.benchmark
        asked = self.prompt(row)
        turns = [(self.prompt(example), self.answer(example)) for example in examples]
        prompt: str | tuple[Message, ...]
        if benchmark.chat:
            said = [m for q, a in turns for m in (Message("user", q), Message("assistant", a))]
            prompt = (*said, Message("user", asked))
        else:
            joined = [f"{q}{benchmark.joint}{a}" for q, a in turns]
            prompt = benchmark.separator.join([*joined, asked])
        choices, gold = self.choices(row) if benchmark.kind == "choice" else ((), -1)
        reference = self.value(self._reference, row) if self._reference else None
        name, stratum = f"{benchmark.name}-{number}", self.stratum(row)
        return Question(name, prompt, row, stratum, choices, gold, reference)


class _Examples:
    """Which rows are shown before a question: the first ones, its own row left out."""

    def __init__(self, benchmark: Benchmark, reader: _Reader, rows: Sequence[Row]) -> None:
        self.benchmark, self.reader = benchmark, reader
        self.own = not benchmark.shots_source
        self.pool: Sequence[Row] = ()
        if benchmark.shots:
            self.pool = rows if self.own else rows_of(benchmark.shots_source)
        self._by_value: dict[str, list[int]] = {}
        for number, row in enumerate(self.pool):
            self._by_value.setdefault(self._key(row), []).append(number)

    def _key(self, row: Row) -> str:
        return str(self.reader.value(self.reader.match, row)) if self.reader.match else ""

    def of(self, number: int, row: Row) -> list[Row]:
        shots = self.benchmark.shots
        if not shots:
            return []
        near = self._by_value.get(self._key(row), [])[: shots + 1]
        chosen = [k for k in near if not (self.own and k == number)][:shots]
        if len(chosen) < shots:
            raise ValueError(f"shots: {shots} examples are asked for, {len(chosen)} are there")
        return [self.pool[k] for k in chosen]
