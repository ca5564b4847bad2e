"""Questions made of a benchmark's rows: prompts with their worked examples, choices, references.

questions = build_questions(benchmark)
questions[0].prompt, questions[0].choices
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from align.benchmarks.rows import Row, limited, rows_of
from align.benchmarks.settings import Benchmark
from align.errors import RecipeError
from pts.data.tables import shown
from pts.errors import DataError
from pts.types import Message, Problem

ROW = "row"
"""A row as a whole in a template, for columns whose names hold blanks: row['Correct Answer']."""
SHOWN = 20
"""Faults listed at most in one message."""
READ_ONE_TEXT = ("exact", "math", "choice")
"""Verifiers for which a list would be the text of its JSON, which no answer equals."""
ACCEPT_SEVERAL = ("answers", "f1", "simpleqa")

_T = TypeVar("_T")
_FAULTS = (
    jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
    ValueError,
)  # fmt: skip
"""What a template or an expression may raise on a row."""

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
    name, source = benchmark.name, benchmark.source
    rows = rows_of(source)
    stratum = reader.stratum if benchmark.stratify else None
    if stratum and benchmark.limit:
        _of_rows(name, source, enumerate(rows), lambda _, row: reader.stratum(row))
    asked = limited(rows, benchmark.limit, benchmark.seed, stratum)
    if not asked:
        raise DataError(f"{source}: holds no rows")
    examples = _Examples(benchmark, reader, rows)
    return _of_rows(
        name, source, ((number, rows[number]) for number in asked),
        lambda number, row: reader.question(number, row, examples.of(number, row)),
    )  # fmt: skip


def _of_rows(
    name: str, source: str, rows: Iterable[tuple[int, Row]], make: Callable[[int, Row], _T]
) -> list[_T]:
    """What is made of each numbered row. Raises RecipeError with the faults of all."""
    found, faults = list[_T](), list[str]()
    for number, row in rows:
        try:
            found.append(make(number, row))
        except ValueError as error:
            faults.append(f"{name}: row {number + 1} of {source}: {error}")
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
            except (jinja2.TemplateSyntaxError, RecursionError, SyntaxError) as error:
                faults.append(f"{benchmark.name}.{key}: {getattr(error, 'message', error)}")
                return None

        expression = partial(_JINJA.compile_expression, undefined_to_none=False)
        self._made: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            key: compiled(key, lambda text: _JINJA.from_string(text).render)
            for key in ("prompt", "answer")
        }
        self._made |= {
            key: compiled(key, expression)
            for key in ("choices", "gold", "reference", "stratify", "shots_match")
            if getattr(benchmark, key)
        }
        if faults:
            raise RecipeError(*faults)

    def stratum(self, row: Row) -> str:
        return str(self.value("stratify", row)) if self.benchmark.stratify else ""

    def value(self, key: str, row: Row) -> Any:
        """What the template or expression of a key gives for a row.

        Raises:
            ValueError: it gives nothing, or fails; with the key.
        """
        try:
            value = self._made[key](_variables(row, self.benchmark.seed))
            json.dumps(value, default=str)  # a name that is unknown, in a list too, is told now
        except _FAULTS as error:
            raise ValueError(f"{key}: {error}") from None
        return value

    def choices(self, row: Row) -> tuple[tuple[str, ...], int]:
        """The choices of a row and the number of the right one."""
        texts = self.value("choices", row)
        if not isinstance(texts, list | tuple) or not texts:
            raise ValueError(f"choices: must give a list of texts, got {texts!r}")
        gold = self.value("gold", row)
        if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(texts):
            raise ValueError(f"gold: must give a number from 0 to {len(texts) - 1}, got {gold!r}")
        if len(texts) == 1:
            raise ValueError(
                f"choices: must give two texts at least, got {texts!r}; one is always chosen"
            )
        return tuple(map(str, texts)), gold

    def reference(self, row: Row) -> Any:
        """What an answer to a row is held against; None for a benchmark of choices."""
        score = self.benchmark.score
        if not score:
            return None
        value, name = self.value("reference", row), score.partition(":")[0]
        one = isinstance(value, str | int | float)
        if name in READ_ONE_TEXT and (not one or isinstance(value, bool)):
            raise ValueError(
                f"reference: must give a text or a number where score is {name}, got "
                f"{shown(value)}; lists of accepted answers are for {', '.join(ACCEPT_SEVERAL)}"
            )
        if name in ACCEPT_SEVERAL and not (one or isinstance(value, list | tuple)):
            raise ValueError(
                f"reference: must give a text, a number or a list of accepted ones, got "
                f"{shown(value)}"
            )
        return value

    def prompt(self, row: Row) -> str:
        return str(self.value("prompt", row))

    def answer(self, row: Row) -> str:
        """An example's answer."""
        if self.benchmark.answer:
            return str(self.value("answer", row))
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
        name, stratum = f"{benchmark.name}-{number}", self.stratum(row)
        return Question(name, prompt, row, stratum, choices, gold, self.reference(row))


class _Examples:
    """Which rows are shown before a question: the first ones, its own row left out."""

    def __init__(self, benchmark: Benchmark, reader: _Reader, rows: Sequence[Row]) -> None:
        self.benchmark, self.reader = benchmark, reader
        self.own = not benchmark.shots_source
        self.pool: Sequence[Row] = ()
        if benchmark.shots:
            self.pool = rows if self.own else rows_of(benchmark.shots_source)
        source = benchmark.shots_source or benchmark.source
        keys = _of_rows(benchmark.name, source, enumerate(self.pool), lambda _, row: self._key(row))
        self._by_value: dict[str, list[int]] = {}
        for number, key in enumerate(keys):
            self._by_value.setdefault(key, []).append(number)

    def _key(self, row: Row) -> str:
        return str(self.reader.value("shots_match", row)) if self.benchmark.shots_match else ""

    def of(self, number: int, row: Row) -> list[Row]:
        shots = self.benchmark.shots
        if not shots:
            return []
        near = self._by_value.get(self._key(row), [])[: shots + 1]
        chosen = [k for k in near if not (self.own and k == number)][:shots]
        if len(chosen) < shots:
            raise ValueError(f"shots: {shots} examples are asked for, {len(chosen)} are there")
        return [self.pool[k] for k in chosen]
