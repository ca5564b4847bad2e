"""Problems and chats from a user's files, every fault reported at once with its line."""

from __future__ import annotations

import os
import random
from functools import partial
from pathlib import Path
from typing import TypeVar

from align.data.chat import Chat
from align.data.turns import roles_fault, unsupported
from align.errors import RecipeError
from align.settings import FilesTask
from align.tasks.base import Split
from pts.data.problems import load_problems
from pts.data.rows import SHOWN, Faults, missing, read_messages
from pts.data.sources import open_table
from pts.data.tables import Row, shown
from pts.errors import DataError, PTSError
from pts.types import Problem
from pts.verifiers.registry import ReferenceCheck, make_verifier

T = TypeVar("T")


class FileTask:
    """Reads and checks all files when it is built; their rows are kept in memory.

    Problems: `{"id": ..., "prompt": text or messages, "reference": ...}`, further columns are
    metadata; chats: `{"messages": [{"role": ..., "content": ...}, ...]}` that end with the
    assistant's turn. Ids are unique within a file; ids and references that are numbers become
    text. Both are read as `pts.load_problems` reads its sources.

    Raises:
        RecipeError: every fault of the files and of the verifier at once.
    """

    def __init__(self, config: FilesTask) -> None:
        faults: list[str] = []
        references: ReferenceCheck | None = None
        try:
            self.verifier = make_verifier(config.verifier)
            references = ReferenceCheck(self.verifier)
        except PTSError as error:
            faults.append(f"task.verifier: {error}")
        self._problems: dict[str, list[Problem]] = {}
        for split, path in config.problems.items():
            check = partial(_problem_fault, references)
            try:
                found = load_problems(_expanded(path), {"id": "id"}, chat=True, check=check)
                self._problems[split] = list(found)
            except DataError as error:
                faults += str(error).splitlines()
        if references is not None:
            references.warn()
        try:
            found_at = [] if config.chats is None else _read_chats(_expanded(config.chats))
            self._chats = [chat for _, chat in found_at]
            self._places = {chat: f"{config.chats}, {place}" for place, chat in reversed(found_at)}
        except DataError as error:
            faults += str(error).splitlines()
        overlaps = _overlaps(self._problems)
        faults += overlaps[:SHOWN]
        if len(overlaps) > SHOWN:
            faults.append(f"task.problems: … and {len(overlaps) - SHOWN:,} more")
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

    def place_of(self, chat: Chat) -> str:
        """File and line of a chat; where it stands several times, of the first."""
        return self._places[chat]

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


def _expanded(path: Path) -> str:
    return os.path.expanduser(path)  # Path.expanduser raises where there is no such user


def _problem_fault(references: ReferenceCheck | None, problem: Problem) -> str | None:
    """What no stage could use; with `references`, also one that the verifier cannot read."""
    assert not isinstance(problem.prompt, str)  # they are read as chats
    if not any(message.content for message in problem.prompt):
        return "prompt is empty"
    fault = roles_fault(problem.prompt)
    if fault is None and problem.prompt[-1].role == "assistant":
        return "prompt must not end with the assistant's turn, which is sampled; leave it out"
    return fault or (references(problem) if references else None)


def _read_chats(source: str) -> list[tuple[str, Chat]]:
    """Chats with their places. Raises DataError with every fault."""
    table = open_table(source)
    faults, chats = Faults(table), []
    for number, row in table:
        chat = _chat(row)
        if isinstance(chat, str):
            faults.add(number, chat)
        else:
            chats.append((f"{table.unit} {number}", chat))
    faults.raise_all()
    return chats


def _chat(row: Row) -> Chat | str:
    """The chat of a row, or what is wrong with it."""
    if isinstance(row, str):
        return row
    if "messages" not in row:
        return missing("messages", row)
    if (fault := unsupported(row, row["messages"])) is not None:
        return fault
    messages = read_messages(row["messages"])
    if not messages:
        return f"messages: messages with role and content are needed, not {shown(row['messages'])}"
    if messages[-1].role != "assistant":
        return roles_fault(messages) or "messages must end with the assistant's turn"
    return roles_fault(messages) or messages


def _overlaps(problems: dict[str, list[Problem]]) -> list[str]:
    """A question that stands in two splits is refused: tables would not be held out."""
    home: dict[object, str] = {}
    faults = []
    for split, rows in problems.items():
        for problem in rows:
            other = home.setdefault(problem.prompt, split)
            if other != split:
                faults.append(
                    f"problem {problem.id!r} of split {split} stands in {other} too; drop one"
                )
    return faults
