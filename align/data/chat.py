"""Chats as token ids, with a mask of what the assistant said.

    [row] = render_chats(tokenizer, [chat])     # row.ids, row.mask
    prompt = open_turn(tokenizer, messages)     # ids, the assistant's turn opened
    prompt = open_turn(tokenizer, messages, partial=(17, 4))    # ... and continued

The tokenizer's own chat template does the writing; its `{% generation %}` marks say which part is
the assistant's. Text is encoded in pieces that are cut at these marks, so no token spans the
border between prompt and answer and a training row starts with the very ids that an engine
continues. Marks are needed: a template without them is refused. Tools and images are not covered,
nor are tokenizers that put a space before every piece of text (`check_prompts` finds them).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from align.errors import StageError
from pts.types import Ids, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Chat: TypeAlias = tuple[Message, ...]

_MARKUP = re.compile(r"<\|[^|<>\s]+\|>")
_MARKS = re.compile(r"{%-?\s*generation\s*-?%}")
_PROBE: Chat = (Message("user", "a"), Message("assistant", "b"))


@dataclass(frozen=True, slots=True)
class ChatIds:
    """A rendered chat: `ids`, and `mask` with 1 on the assistant's tokens, end of turn included."""

    ids: Ids
    mask: tuple[int, ...]


def answer_row(prompt: Ids, answer: Ids) -> ChatIds:
    """A prompt and a sampled answer, as ids."""
    return ChatIds((*prompt, *answer), (0,) * len(prompt) + (1,) * len(answer))


def render_chats(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Sequence[Message]]
) -> list[ChatIds]:
    """Ids and assistant masks of whole chats.

    Raises:
        StageError: the tokenizer has no chat template, or one without generation marks.
        jinja2.TemplateError: the template refuses a chat, e.g. for an unknown role.
    """
    texts, spans = _render(tokenizer, chats)
    return [_encode(tokenizer, text, cuts) for text, cuts in zip(texts, spans, strict=True)]


def open_turn(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], partial: Ids = ()
) -> Ids:
    """The prompt's ids with the assistant's turn opened, and continued by `partial` if given.

    A partial answer is appended as ids. Rendering it as a message would close the turn after it.

    Raises:
        StageError: `partial` already ends its turn.
    """
    text = tokenizer.apply_chat_template(
        _plain(messages), tokenize=False, add_generation_prompt=True
    )
    end = tokenizer.convert_tokens_to_ids(end_of_turn(tokenizer)) if partial else None
    if end in partial:
        raise StageError(
            f"partial answer: holds the end of turn (token {end}); nothing can follow it"
        )
    return (*_ids(tokenizer, str(text)), *partial)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that the template writes after an assistant's content, e.g. `<|im_end|>`.

    Raises:
        StageError: nothing is written there, so a model could not learn to stop.
    """
    [text], [spans] = _render(tokenizer, [_PROBE])
    start, stop = spans[-1] if spans else (0, 0)
    end = text[start:stop].partition("b")[2].strip()
    if not end:
        raise StageError(
            "chat template: no end-of-turn token inside the generation marks, so the model would "
            "not learn to stop; move {% endgeneration %} behind it"
        )
    return end


def template_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens that the template writes, in order of first use."""
    [text], _ = _render(tokenizer, [(Message("system", "s"), *_PROBE)])
    return list(dict.fromkeys([*_MARKUP.findall(text), end_of_turn(tokenizer)]))


def check_prompts(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Chat],
    rows: Sequence[ChatIds],
    places: Sequence[str] | None = None,
) -> list[str]:
    """Complaints about rows that do not start with the ids that an engine would continue."""
    faults = []
    named = places or [f"chat {number}" for number in range(len(chats))]
    for place, chat, row in zip(named, chats, rows, strict=True):
        turns = [i for i, message in enumerate(chat) if message.role == "assistant"]
        heads = [open_turn(tokenizer, chat[:turn]) for turn in turns[:1]]
        if any(row.ids[: len(head)] != head for head in heads):
            faults.append(f"{place}: its first prompt is tokenised differently on its own")
    return faults


def _render(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Sequence[Message]]
) -> tuple[list[str], list[list[tuple[int, int]]]]:
    """Texts, and for each the character spans inside generation marks."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = tokenizer.chat_template
    if not isinstance(template, str) or not _MARKS.search(template):
        found = "no chat template" if not template else "a chat template without generation marks"
        raise StageError(
            f"tokenizer: {found}; set model.chat_template to chatml, or put "
            "{% generation %}...{% endgeneration %} around the assistant's content and end of turn"
        )
    rendered: Any = render_jinja_template(
        [_plain(chat) for chat in chats],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **dict[str, Any](tokenizer.special_tokens_map),
    )
    texts, spans = rendered
    return texts, [[(start, stop) for start, stop in row] for row in spans]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, spans: list[tuple[int, int]]) -> ChatIds:
    ids: list[int] = []
    mask: list[int] = []
    done = 0
    for start, stop in [*spans, (len(text), len(text))]:
        for piece, flag in ((text[done:start], 0), (text[start:stop], 1)):
            piece_ids = _ids(tokenizer, piece)
            ids.extend(piece_ids)
            mask.extend([flag] * len(piece_ids))
        done = stop
    return ChatIds(tuple(ids), tuple(mask))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
