"""Conversations and texts of a table, one a row: what a model is asked about.

for found in read_conversations("prompts.jsonl", "prompt"): ...
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from align.data.turns import Turns, read_turns
from pts.data.rows import Faults, missing, spells_messages
from pts.data.sources import open_table
from pts.data.tables import shown
from pts.types import Message


@dataclass(frozen=True, slots=True)
class ConversationRow:
    """A row's conversation, and where it stands."""

    source: str
    number: int
    """Of the row; in text files, of the line."""
    messages: tuple[Message, ...]
    """A text is one message of the user."""
    row: Mapping[str, Any]

    @property
    def text(self) -> str:
        """What the last message says."""
        return self.messages[-1].content

    @property
    def digest(self) -> str:
        """Of what is said, and by whom."""
        said = json.dumps([[m.role, m.content] for m in self.messages])
        return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def read_conversations(
    source: str,
    column: str,
    last: str = "user",
    check: Callable[[ConversationRow], str | None] = lambda found: None,
) -> list[ConversationRow]:
    """All rows of a source, in order.

    Args:
        source: a file, a folder or `hf:NAME`, as `pts.load_problems` takes it.
        column: holds a text, or messages.
        last: who must speak last.
        check: what else is wrong with a row, None if nothing.

    Raises:
        DataError: everything that is wrong, with its rows.
    """
    table, faults, found = open_table(source), None, []
    faults = Faults(table)
    rows = 0
    for number, row in table:
        rows += 1
        if isinstance(row, str):
            faults.add(number, row)
            continue
        if row.get(column) is None:
            faults.add(number, missing(column, row), absent="" if column in row else column)
            continue
        messages = _messages(row[column], column, last)
        if isinstance(messages, str):
            faults.add(number, messages)
            continue
        one = ConversationRow(source, number, messages, row)
        if (fault := check(one)) is not None:
            faults.add(number, fault)
        found.append(one)
    if not rows:
        faults.add(None, "holds no rows")
    faults.raise_all(rows)
    return found


def _messages(value: object, column: str, last: str) -> tuple[Message, ...] | str:
    if isinstance(value, str):
        if spells_messages(value):
            return f"{column}: messages are given as text; give a list of messages (JSONL, Parquet)"
        return (Message(last, value),) if value.strip() else f"{column}: is empty"
    turns = read_turns(value, column)
    if not isinstance(turns, Turns):
        return turns
    if not turns.messages or turns.messages[-1].role != last:
        return (
            f"{column}: must be a text, or messages that end with the {last}'s, not {shown(value)}"
        )
    return turns.messages
