"""Messages of a row, as users of other toolkits have them, with the turns that are trained on.

    found = read_turns(row["messages"], "messages")     # Turns, or the text of a fault

A turn is `{role, content}` or, as ShareGPT has it, `{from, value}`. Keys that change what is
trained on are honoured (`train`, `loss` and `weight` of 0 and 1, for the assistant's turns) or
refused, never passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from align.data.chat import Chat
from pts.data.tables import shown
from pts.types import Message

ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
FLAGS = ("loss", "weight", "train")
"""Keys that say whether a turn is trained on."""
CALLS = ("tools", "functions", "tool_calls", "function_call", "tool_call_id")
MEANINGFUL = (*CALLS, *FLAGS, "reasoning_content")
"""Keys of rows and messages that change what is trained on."""
PART = {"type", "text"}
MEDIA = ("images", "videos", "audios")


@dataclass(frozen=True, slots=True)
class Turns:
    """Messages, and for each of the assistant's whether a key of it says if it is trained on."""

    messages: Chat
    flags: tuple[bool | None, ...]
    """One for each assistant's turn; None where no key says so."""

    @property
    def trained(self) -> tuple[bool, ...]:
        """A flag for each assistant's turn; those that say nothing are trained on."""
        return tuple(flag is not False for flag in self.flags)


def unsupported(row: Mapping[str, Any], turns: object = None) -> str | None:
    """The first meaningful key of a row, and of its turns, that says more than the default."""
    listed = turns if isinstance(turns, list) else []
    places = [("", row)]
    places += [(f"messages.{i}.", turn) for i, turn in enumerate(listed) if isinstance(turn, dict)]
    for place, held in places:
        for key in MEANINGFUL:
            if (fault := refused(place, key, held.get(key))) is not None:
                return fault
    return None


def refused(place: str, key: str, value: Any) -> str | None:
    """What is wrong with a meaningful key that is not honoured; None if it says the default."""
    if value in (None, True, 1, "", [], {}):
        return None
    return (
        f"{place}{key} is {shown(value)}, which this task does not honour; "
        "leave the row out, or mend it"
    )


def roles_fault(messages: Chat) -> str | None:
    """The first role that no chat template knows."""
    unknown = (message.role for message in messages if message.role not in ROLES)
    return next((f"role must be one of {', '.join(ROLES)}, got {role!r}" for role in unknown), None)


def read_turns(value: object, place: str) -> Turns | str:
    """The turns of a list, or what is wrong with the first one that is wrong; never none."""
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not turns:
        return f"{place}: messages with role and content are needed, not {shown(value)}"
    messages: list[Message] = []
    flags: list[bool | None] = []
    for number, turn in enumerate(turns):
        read = _turn(turn, f"{place}.{number}")
        if isinstance(read, str):
            return read
        message, flag = read
        messages.append(message)
        if message.role == "assistant":
            flags.append(flag)
        elif flag:
            return f"{place}.{number}: only the assistant's turns are trained on; leave the key out"
    return roles_fault(tuple(messages)) or Turns(tuple(messages), tuple(flags))


def _turn(turn: object, place: str) -> tuple[Message, bool | None] | str:
    if not isinstance(turn, dict):
        return f"{place}: an object with role and content is needed, not {shown(turn)}"
    said = {key: value for key, value in turn.items() if value is not None}
    flag = _flag({key: said.pop(key) for key in FLAGS if key in said}, place)
    if isinstance(flag, str):
        return flag
    for key in (*CALLS, "reasoning_content"):
        if (fault := refused(f"{place}.", key, said.pop(key, None))) is not None:
            return fault
    names = ("from", "value") if {"from", "value"} <= said.keys() else ("role", "content")
    role, content = (said.pop(name, None) for name in names)
    if said:
        key, value = next(iter(said.items()))
        return f"{place}.{key} is {shown(value)}, and no key of that name is known; leave it out"
    content = _joined(content)
    if not isinstance(role, str) or not isinstance(content, str):
        return f"{place}: {' and '.join(names)} are needed, both text, not {shown(turn)}"
    return Message(SHAREGPT_ROLES.get(role, role) if names[0] == "from" else role, content), flag


def _flag(told: dict[str, Any], place: str) -> bool | str | None:
    """Whether a turn is trained on, None if nothing says so, or a fault."""
    for key, value in told.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            return (
                f"{place}.{key} is {shown(value)}; a turn is trained on or not: give true or "
                "false, and shares between sources as their weight"
            )
    values = {bool(value) for value in told.values()}
    if len(values) > 1:
        return f"{place}: {' and '.join(told)} contradict each other; keep one"
    return next(iter(values), None)


def _joined(content: object) -> object:
    """Text of parts `{type: text, text: ...}`; other content as it is."""
    if not isinstance(content, list) or not content:
        return content
    texts = [
        part.get("text")
        if isinstance(part, dict) and {k for k, v in part.items() if v is not None} == PART
        else None
        for part in content
    ]
    return "".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else content
