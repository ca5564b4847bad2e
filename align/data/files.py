"""Problems and chats from JSONL files, every fault reported at once with its line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from align.data.task import Chat, Split
from align.errors import RecipeError
from align.recipe import FilesTask
from pts.errors import PTSError
from pts.types import Message, Problem
from pts.verifiers.named import make_verifier

T = TypeVar("T")
ROLES = ("system", "user", "assistant")


class FileTask:
    """Reads and checks all files when it is built; `files` rows are kept in memory.

    Problems: `{"id": ..., "prompt": text or messages, "reference": ...}`; chats:
    `{"messages": [{"role": ..., "content": ...}, ...]}` that end with the assistant's turn.
    """

    def __init__(self, config: FilesTask) -> None:
        faults: list[str] = []
        try:
            self.verifier = make_verifier(config.verifier)
        except PTSError as error:
            faults.append(f"task.verifier: {error}")
        self._problems: dict[str, list[Problem]] = {
            split: _read(Path(path), _problem, faults) for split, path in config.problems.items()
        }
        self._chats = _read(config.chats, _chat, faults)
        faults += _overlaps(self._problems)
        if faults:
            raise RecipeError(*faults)

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        """Up to `n` problems of a split, in seeded order."""
        return _draw(self._problems.get(split, []), n, seed)

    def demonstrations(self, n: int, seed: int) -> list[Chat]:
        """Up to `n` chats, in seeded order."""
        return _draw(self._chats, n, seed)

    def few_shot(self, problem: Problem) -> Problem:
        """The question as plain text after four solved ones from the chats."""
        solved = [(c[-2].content, c[-1].content) for c in self._chats if len(c) >= 2][:4]
        question = problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1].content
        shots = "".join(f"Question: {q}\nAnswer: {a}\n\n" for q, a in solved)
        return Problem(
            problem.id, f"{shots}Question: {question}\nAnswer:", problem.reference, problem.metadata
        )


def _draw(rows: list[T], n: int, seed: int) -> list[T]:
    return random.Random(seed).sample(rows, min(n, len(rows)))


def _read(path: Path, parse: Callable[[Any], T], faults: list[str]) -> list[T]:
    rows: list[T] = []
    for number, line in _lines(path, faults):
        try:
            rows.append(parse(json.loads(line)))
        except json.JSONDecodeError as error:
            faults.append(f"{path}:{number}: not valid JSON: {error}")
        except (KeyError, TypeError, ValueError) as error:
            faults.append(f"{path}:{number}: {error}")
    return rows


def _lines(path: Path, faults: list[str]) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as stream:
            yield from ((i, line) for i, line in enumerate(stream, 1) if line.strip())
    except OSError as error:
        faults.append(f"{path}: cannot be read: {error.strerror}")


def _problem(row: Any) -> Problem:
    prompt, reference = _key(row, "prompt"), _key(row, "reference")
    turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    return Problem(str(_key(row, "id")), _messages(turns), str(reference))


def _chat(row: Any) -> Chat:
    messages = _messages(_key(row, "messages"))
    if not messages or messages[-1].role != "assistant":
        raise ValueError("messages must end with the assistant's turn")
    return messages


def _messages(turns: Any) -> tuple[Message, ...]:
    messages = tuple(Message(_key(turn, "role"), _key(turn, "content")) for turn in turns)
    for message in messages:
        if message.role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(ROLES)}, got {message.role!r}")
        if not isinstance(message.content, str):
            raise ValueError(f"content must be text, got {type(message.content).__name__}")
    return messages


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
