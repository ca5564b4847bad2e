"""Problems and chats from JSONL files, every fault reported at once with its line."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from align.errors import RecipeError
from align.recipe import FilesTask
from align.tasks.base import Chat, Split
from pts.errors import PTSError
from pts.types import Message, Problem, Verdict
from pts.verifiers.base import Verifier
from pts.verifiers.registry import make_verifier

T = TypeVar("T")
ROLES = ("system", "user", "assistant")

SHOWN = 20
"""Faults listed at most of one file; the others are counted."""


class FileTask:
    """Reads and checks all files when it is built; `files` rows are kept in memory.

    Problems: `{"id": ..., "prompt": text or messages, "reference": ...}`; chats:
    `{"messages": [{"role": ..., "content": ...}, ...]}` that end with the assistant's turn. Ids are
    unique within a file; ids and references that are numbers become text.

    Raises:
        RecipeError: every fault of the files and of the verifier at once.
    """

    def __init__(self, config: FilesTask) -> None:
        faults: list[str] = []
        judge: Verifier | None = None
        try:
            self.verifier = make_verifier(config.verifier)
            judge = self.verifier if _judges_quickly(config.verifier) else None
        except PTSError as error:
            faults.append(f"task.verifier: {error}")
        self._problems: dict[str, list[Problem]] = {
            split: _read(path, _ProblemReader(judge), faults)
            for split, path in config.problems.items()
        }
        self._chats = _read(config.chats, _chat, faults)
        faults += _shortened(_overlaps(self._problems), "task.problems: ")
        if faults:
            raise RecipeError(*faults)

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """Up to `n` problems of a split, in seeded order.

        Raises:
            RecipeError: the split has none.
        """
        rows = self._problems.get(split)
        if not rows:
            raise RecipeError(
                f"task.problems: no {split!r} problems; "
                f"name a file that holds some as task.problems.{split}"
            )
        return _draw(rows, n, seed)

    def demonstrations(self, n: int, seed: int) -> list[Chat]:
        """Up to `n` chats, in seeded order.

        Raises:
            RecipeError: there are none.
        """
        if not self._chats:
            raise RecipeError("task.chats: holds no chats; name a file that holds some")
        return _draw(self._chats, n, seed)

    def few_shot(self, problem: Problem) -> Problem:
        """The question as plain text after four solved ones from the chats.

        Raises:
            RecipeError: no chat holds a question and its answer.
        """
        solved = [(c[-2].content, c[-1].content) for c in self._chats if len(c) >= 2][:4]
        if not solved:
            raise RecipeError(
                "task.chats: no chat holds a question and its answer to show in the few-shot "
                "prompt; add some, or set model.few_shot_base=false"
            )
        question = problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1].content
        shots = "".join(f"Question: {q}\nAnswer: {a}\n\n" for q, a in solved)
        return Problem(
            problem.id, f"{shots}Question: {question}\nAnswer:", problem.reference, problem.metadata
        )


def _draw(rows: list[T], n: int, seed: int) -> list[T]:
    return random.Random(seed).sample(rows, min(n, len(rows)))


def _judges_quickly(verifier: str) -> bool:
    """Whether an empty completion is judged at once; `math` starts a process for it."""
    return verifier.partition(":")[0] != "math"


def _read(path: Path, parse: Callable[[Any, int], T], faults: list[str]) -> list[T]:
    rows: list[T] = []
    found: list[str] = []
    path = Path(os.path.expanduser(path))  # Path.expanduser raises where there is no such user
    for number, line in _lines(path, found):
        try:
            rows.append(parse(json.loads(line), number))
        except json.JSONDecodeError as error:
            found.append(f"{path}:{number}: not valid JSON: {error}")
        except RecursionError:
            found.append(f"{path}:{number}: brackets are nested too deeply")
        except ValueError as error:
            found.append(f"{path}:{number}: {error}")
    faults += _shortened(found, f"{path}: ")
    return rows


def _shortened(faults: Sequence[str], place: str) -> list[str]:
    """A file of another format has a fault in every line: the first ones say enough."""
    more = len(faults) - SHOWN
    return [*faults[:SHOWN], *([f"{place}… and {more:,} more"] if more > 0 else [])]


def _lines(path: Path, faults: list[str]) -> Iterator[tuple[int, str]]:
    """Numbers and texts of the lines that are not blank, up to one that is not UTF-8."""
    number = 0
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                text = line.decode("utf-8-sig")  # some editors begin a file with U+FEFF
                if text.strip():
                    yield number, text
    except OSError as error:
        faults.append(f"{path}: cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        faults.append(
            f"{path}:{number}: byte {error.object[error.start]:#04x} is not UTF-8 (another "
            "encoding, Parquet, or compressed?); save the file as JSON lines in UTF-8"
        )


class _ProblemReader:
    """Rows of one file as problems; with `judge`, references that it cannot read are faults."""

    def __init__(self, judge: Verifier | None) -> None:
        self._judge = judge
        self._lines: dict[str, int] = {}

    def __call__(self, row: Any, line: int) -> Problem:
        prompt = _key(row, "prompt")
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        messages = _messages(turns, "prompt")
        problem = Problem(_plain(row, "id"), messages, _plain(row, "reference"))
        first = self._lines.setdefault(problem.id, line)
        if first != line:
            raise ValueError(f"id {problem.id!r} stands in line {first} too; ids must be unique")
        if not any(message.content for message in messages):
            raise ValueError("prompt is empty")
        judged = self._judge(problem, "") if self._judge else None
        if judged and judged.verdict is Verdict.UNSCORED:
            raise ValueError(judged.reason)
        return problem


def _chat(row: Any, line: int) -> Chat:
    messages = _messages(_key(row, "messages"), "messages")
    if messages[-1].role != "assistant":
        raise ValueError("messages must end with the assistant's turn")
    return messages


def _messages(turns: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        what = "an empty list" if turns == [] else type(turns).__name__
        also = "text or " if name == "prompt" else ""
        raise ValueError(f"{name} must be {also}a list of messages, got {what}")
    messages = tuple(Message(_key(turn, "role"), _key(turn, "content")) for turn in turns)
    for message in messages:
        if message.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {message.role!r}")
        if not isinstance(message.content, str):
            raise ValueError(f"content must be text, got {type(message.content).__name__}")
        _check_characters(message.content, name)
    return messages


def _plain(row: Any, key: str) -> str:
    """Text of text or a finite number; whole numbers have no decimal point."""
    value = _key(row, key)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value) if value.is_integer() else value)
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f"{key} must be text or a number, got {json.dumps(value)[:60]}")
    text = str(value)
    _check_characters(text, key)
    return text


def _check_characters(text: str, name: str) -> None:
    """Half of a surrogate pair can stand in JSON as an escape, but no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(
            f"{name} holds {half!r}, half of a surrogate pair; write the whole character"
        ) from None


def _key(row: Any, key: str) -> Any:
    if not isinstance(row, dict):
        raise ValueError(f"must be an object with {key!r}, got {type(row).__name__}")
    if key not in row:
        raise ValueError(f"has no {key!r}; it has {', '.join(map(repr, row))}")
    return row[key]


def _overlaps(problems: dict[str, list[Problem]]) -> list[str]:
    """A question that stands in two splits is refused: tables would not be held out."""
    home: dict[Any, str] = {}
    faults = []
    for split, rows in problems.items():
        for problem in rows:
            other = home.setdefault(problem.prompt, split)
            if other != split:
                faults.append(f"problem {problem.id!r} of split {split} stands in {other} too")
    return faults
