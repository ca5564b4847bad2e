"""One row of a table as what a stage trains on: a chat, a preference, or token ids.

    reader = RowFormat("pairs", columns={"prompt": "question"})
    content = reader.read(row)          # content, or the text of a fault

The form of a row is known by its columns, row by row, unless it is named:

| form              | columns |
|-------------------|---------|
| messages          | messages (ShareGPT's from/value included), or conversations |
| prompt_completion | prompt, completion: text or messages |
| alpaca            | instruction, output; input and history if there |
| preference        | chosen, rejected: text or messages; prompt, or conversations, if apart |
| ids               | input_ids with labels or a mask; prompt_ids, chosen_ids, rejected_ids |

Text becomes one message of the user, and one of the assistant. `system` may stand beside all but
ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeGuard

from align.data.chat import Chat, ChatIds, IdPair, opening_fault
from align.data.turns import FLAGS, MEANINGFUL, MEDIA, Turns, read_turns, refused
from pts.data.rows import missing, spells_messages
from pts.data.tables import Row, shown
from pts.types import Message

Form: TypeAlias = Literal["messages", "prompt_completion", "alpaca", "preference", "ids"]
Kind: TypeAlias = Literal["chats", "pairs"]

IGNORED = -100
"""Label of tokens without a loss (PyTorch's convention)."""
FIELDS = (
    *("messages", "conversations", "prompt", "completion", "chosen", "rejected", "system"),
    *("instruction", "input", "output", "history", "input_ids", "labels", "completion_mask"),
    *("assistant_masks", "prompt_ids", "chosen_ids", "rejected_ids"),
)
FORMS: dict[Kind, tuple[tuple[Form, tuple[tuple[str, ...], ...]], ...]] = {
    "chats": (
        ("ids", (("input_ids",),)),
        ("messages", (("messages",), ("conversations",))),
        ("prompt_completion", (("prompt", "completion"),)),
        ("alpaca", (("instruction", "output"),)),
    ),
    "pairs": (
        ("ids", (("prompt_ids", "chosen_ids", "rejected_ids"),)),
        ("preference", (("chosen", "rejected"),)),
    ),
}
"""Forms of the rows of each kind, with the fields by which each is known; the first that fits."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat, with a flag for each assistant's turn: whether it is trained on."""

    messages: Chat
    trained: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt."""

    prompt: Chat
    chosen: str
    rejected: str


Content: TypeAlias = Conversation | Preference | ChatIds | IdPair


class RowFormat:
    """Reads rows of one source.

    Args:
        kind: what is wanted: `chats` for SFT, `pairs` for DPO.
        form: of all rows; None to know each by its columns.
        columns: columns of the fields that are called otherwise.
        ignored: columns that are not read, whatever they are called.
        last_turn: train on the last of the assistant's turns alone.
    """

    def __init__(
        self,
        kind: Kind,
        form: Form | None = None,
        columns: Mapping[str, str] | None = None,
        ignored: tuple[str, ...] = (),
        last_turn: bool = False,
    ) -> None:
        self._kind, self._form = kind, form
        self._columns = dict(columns or {})
        self._ignored = frozenset(ignored)
        self._last_turn = last_turn

    def read(self, row: Row) -> Content | str:
        """What the row holds, or what is wrong with it."""
        if isinstance(row, str):
            return row
        held = {k: v for k, v in row.items() if v is not None and k not in self._ignored}
        known = [name for name in row if name not in self._ignored]
        for field, column in self._columns.items():
            if column not in held:
                return _absent(column, known, f" (the {field})")
        taken = set(self._columns.values())
        fields = {k: v for k, v in held.items() if k not in taken and k not in self._columns}
        for key in (*MEANINGFUL, *MEDIA):
            if (fault := refused("", key, fields.get(key))) is not None:
                return f"{fault}; or name the column in the source's `ignore`"
        if _is_kto(label := fields.get("label")):
            return (
                f"label is true or false: rows of KTO (here {shown(label)}) train no stage here; "
                "give pairs, or name the column in the source's `ignore`"
            )
        fields |= {field: held[column] for field, column in self._columns.items()}
        form = self._form or self._known(fields)
        if form is None:
            wanted = ", or ".join(
                " and ".join(names) for _, ways in FORMS[self._kind] for names in ways
            )
            return (
                f"no columns that are known: it has {', '.join(map(repr, row))}; give {wanted}, "
                "or name them in the source's `columns`"
            )
        lacking = self._lacking(form, fields)
        if lacking:
            return _absent(lacking[0], known)
        found = _READERS[self._kind, form](fields)
        if isinstance(found, Conversation) and self._last_turn:
            return Conversation(found.messages, _last(found.trained))
        return found

    def _known(self, fields: Mapping[str, Any]) -> Form | None:
        return next(
            (
                form
                for form, ways in FORMS[self._kind]
                if any(set(names) <= fields.keys() for names in ways)
            ),
            None,
        )

    def _lacking(self, form: Form, fields: Mapping[str, Any]) -> list[str]:
        """Fields that a form needs and a row lacks: the fewest with which it would be known."""
        ways = dict(FORMS[self._kind])[form]
        return min(([name for name in names if name not in fields] for names in ways), key=len)


def _absent(column: str, known: Iterable[str], use: str = "") -> str:
    """The message for a column that holds nothing; `known` are those that a row has."""
    names = list(known)
    if column in names:
        return f"column {column!r}{use} is null or empty"
    return missing(column, names, use)


def _is_kto(label: object) -> bool:
    """Whether a label says good or bad, as true, 1 or, in CSV, their text."""
    if isinstance(label, str):
        return label.strip().lower() in ("true", "false", "1", "0")
    return label in (0, 1)


def _last(trained: tuple[bool, ...]) -> tuple[bool, ...]:
    return (*(False,) * (len(trained) - 1), trained[-1])


def _messages(fields: Mapping[str, Any]) -> Content | str:
    name = "messages" if "messages" in fields else "conversations"
    turns = read_turns(fields.get(name), name)
    return turns if isinstance(turns, str) else _conversation(turns, fields)


def _prompt_completion(fields: Mapping[str, Any]) -> Content | str:
    prompt = _said(fields.get("prompt"), "prompt", "user")
    answer = _said(fields.get("completion"), "completion", "assistant")
    if isinstance(prompt, str):
        return prompt
    if isinstance(answer, str):
        return answer
    if answer.messages[0].role != "assistant":
        return "completion must begin with the assistant's turn"
    before = (False,) * len(prompt.flags)
    return _conversation(Turns(prompt.messages + answer.messages, before + answer.flags), fields)


def _alpaca(fields: Mapping[str, Any]) -> Content | str:
    """As LLaMA-Factory writes it: the input below the instruction, the history before both."""
    texts = {name: fields.get(name, "") for name in ("instruction", "input", "output")}
    wrong = next((name for name, text in texts.items() if not isinstance(text, str)), None)
    if wrong:
        return f"{wrong}: text is needed, not {shown(texts[wrong])}"
    messages: list[Message] = []
    history = fields.get("history", [])
    if not isinstance(history, list):
        return f"history: pairs of texts are needed, not {shown(history)}"
    for exchange in history:
        if not isinstance(exchange, list) or [type(text) for text in exchange] != [str, str]:
            return f"history: pairs of texts are needed, not {shown(exchange)}"
        messages += [Message("user", exchange[0]), Message("assistant", exchange[1])]
    asked = "\n".join(filter(None, (texts["instruction"], texts["input"])))
    messages += [Message("user", asked), Message("assistant", texts["output"])]
    return _conversation(Turns(tuple(messages), (None,) * (len(messages) // 2)), fields)


def _conversation(turns: Turns, fields: Mapping[str, Any]) -> Content | str:
    messages = _with_system(turns.messages, fields)
    if isinstance(messages, str):
        return messages
    if messages[-1].role != "assistant":
        return "messages must end with the assistant's turn"
    return Conversation(messages, turns.trained)


def _with_system(messages: Chat, fields: Mapping[str, Any]) -> Chat | str:
    system = fields.get("system")
    if not system:
        fault = opening_fault(messages)
        return messages if fault is None else f"messages: {fault}"
    if not isinstance(system, str):
        return f"system: text is needed, not {shown(system)}"
    if messages and messages[0].role == "system":
        return "system: the messages begin with a system prompt too; keep one"
    return (Message("system", system), *messages)


def _said(value: object, name: str, role: str) -> Turns | str:
    """Messages, or a text as the one message of a role."""
    if not isinstance(value, str):
        return read_turns(value, name)
    if spells_messages(value):
        return f"{name}: messages are given as text; give a list of messages (JSONL, Parquet)"
    return Turns((Message(role, value),), (None,) if role == "assistant" else ())


def _preference(fields: Mapping[str, Any]) -> Content | str:
    asked = fields.get("prompt", fields.get("conversations"))
    sides = {name: fields.get(name) for name in ("chosen", "rejected")}
    if asked is None and all(isinstance(side, str) for side in sides.values()):
        sides = {name: _transcript(side) for name, side in sides.items()}
        if None in sides.values():
            return (
                "chosen and rejected are text without a prompt; give it in a column `prompt`, or "
                "give messages"
            )
    prompt: Turns | str = Turns((), ())
    if asked is not None:
        prompt = _said(asked, "prompt", "user")
    if isinstance(prompt, str):
        return prompt
    chats = []
    for name, side in sides.items():
        turns = side if isinstance(side, Turns) else _said(side, name, "assistant")
        if isinstance(turns, str):
            return turns
        if any(flag is not None for flag in turns.flags):
            return f"{name}: {', '.join(FLAGS)} have no meaning in pairs; leave them out"
        before = prompt.messages
        chats.append(before + turns.messages[_shared(before, turns.messages) :])
    chosen, rejected = chats
    if any(not chat or chat[-1].role != "assistant" for chat in chats):
        return "chosen and rejected must end with the assistant's turn"
    if chosen[:-1] != rejected[:-1]:
        return (
            "chosen and rejected must differ in their last turn alone, behind the same prompt; "
            "cut both behind the turn in which they part"
        )
    messages = _with_system(chosen[:-1], fields)
    if isinstance(messages, str):
        return messages
    if not messages or messages[-1].role != "user":
        return "the prompt must end with the user's turn"
    return Preference(messages, chosen[-1].content, rejected[-1].content)


def _shared(prompt: Chat, messages: Chat) -> int:
    """Messages of the prompt that a side repeats: all or none."""
    return len(prompt) if prompt and messages[: len(prompt)] == prompt else 0


_SPEAKERS = re.compile(r"\n\n(Human|Assistant):")


def _transcript(text: Any) -> Turns | None:
    """The turns of a text in the manner of Anthropic's hh-rlhf; None for any other."""
    before, *parts = _SPEAKERS.split(text)
    if before or not parts:
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    messages = tuple(
        Message(roles[speaker], said.removeprefix(" "))
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    )
    return Turns(messages, (None,) * sum(message.role == "assistant" for message in messages))


def _chat_ids(fields: Mapping[str, Any]) -> Content | str:
    ids = fields.get("input_ids")
    if not _is_ids(ids):
        return f"input_ids: token ids are needed, not {shown(ids)}"
    masks = [name for name in ("labels", "completion_mask", "assistant_masks") if name in fields]
    if len(masks) > 1:
        return f"{' and '.join(masks)} say both what is trained on; keep one, or ignore the others"
    if not masks:
        return ChatIds(tuple(ids), (1,) * len(ids))
    [name], told = masks, fields[masks[0]]
    if not isinstance(told, list) or len(told) != len(ids):
        return f"{name}: one value for each of {len(ids)} ids is needed, not {shown(told)}"
    if name == "labels":
        wrong = next((k for k, t in enumerate(told) if t not in (IGNORED, ids[k])), None)
        if wrong is not None:
            return f"labels.{wrong} is {shown(told[wrong])}; give the id there, or {IGNORED}"
        told = [label != IGNORED for label in told]
    if not all(flag in (0, 1) for flag in told):
        return f"{name}: 0 and 1 are needed, not {shown(told)}"
    return ChatIds(tuple(ids), tuple(map(int, told)))


def _id_pair(fields: Mapping[str, Any]) -> Content | str:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    for name in names:
        if not _is_ids(fields.get(name)):
            return f"{name}: token ids are needed, not {shown(fields.get(name))}"
    return IdPair(*(tuple(fields[name]) for name in names))


def _is_ids(value: object) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value)
    )


_READERS: dict[tuple[Kind, Form], Callable[[Mapping[str, Any]], Content | str]] = {
    ("chats", "messages"): _messages,
    ("chats", "prompt_completion"): _prompt_completion,
    ("chats", "alpaca"): _alpaca,
    ("chats", "ids"): _chat_ids,
    ("pairs", "preference"): _preference,
    ("pairs", "ids"): _id_pair,
}
