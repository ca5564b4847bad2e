"""Chats as token ids, with a mask of what the assistant said.

    [row] = render_chats(tokenizer, [chat])     # row.ids, row.mask
    prompt = open_turn(tokenizer, messages)     # ids, the assistant's turn opened
    prompt = open_turn(tokenizer, messages, partial=(17, 4))    # ... and continued

The tokenizer's own chat template does the writing; its `{% generation %}` marks say which part is
the assistant's. Text is encoded in pieces that are cut at these marks, so no token spans the
border between prompt and answer and a training row starts with the very ids that an engine
continues. Marks are needed: a template without them is refused. What some templates have inside
their marks but no model writes is taken out: the end of the header that opens the turn, and blanks
behind the end of turn. Tokenizers of the SentencePiece kind put a blank before a text: behind a
special token a piece has the ids that it has in the whole text. Where a turn begins behind other
text, a tokenizer that puts a blank before every piece is not covered (`check_prompts` finds it);
nor are tools and images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from align.errors import StageError
from pts.engines.text import special_token_faults as special_token_faults  # stages take it here
from pts.types import Ids, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Chat: TypeAlias = tuple[Message, ...]

_MARKUP = re.compile(r"<\|[^|<>\s]+\|>|<(?:start|end)_of_turn>")
_MARKS = re.compile(r"{%-?\s*generation\s*-?%}")
_Piece: TypeAlias = tuple[str, int]
_PROBE: Chat = (Message("user", "a"), Message("assistant", "b"))


@dataclass(frozen=True, slots=True)
class ChatIds:
    """A rendered chat: `ids`, and `mask` with 1 on the assistant's tokens, end of turn included."""

    ids: Ids
    mask: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class IdPair:
    """Two answers to one prompt, as ids."""

    prompt: Ids
    chosen: Ids
    rejected: Ids


def answer_row(prompt: Ids, answer: Ids) -> ChatIds:
    """A prompt and a sampled answer, as ids."""
    return ChatIds((*prompt, *answer), (0,) * len(prompt) + (1,) * len(answer))


def render_chats(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Sequence[Message]],
    trained: Sequence[Sequence[bool]] | None = None,
) -> list[ChatIds]:
    """Ids and assistant masks of whole chats.

    Args:
        tokenizer: with a chat template.
        chats: the messages of each.
        trained: for each chat, a flag for each of its assistant's turns; those without it are
            masked like a prompt. None trains on all.

    Raises:
        StageError: the tokenizer has no chat template, one without generation marks, or, under
            `trained`, one that does not mark each assistant's turn once.
        jinja2.TemplateError: the template refuses a chat, e.g. for an unknown role.
    """
    texts, spans = _render(tokenizer, chats)
    flags = trained if trained is not None else [[True] * len(cuts) for cuts in spans]
    for cuts, told in zip(spans, flags, strict=True):
        if len(cuts) != len(told):
            raise StageError(
                f"chat template: marks {len(cuts)} parts of a chat with {len(told)} turns of the "
                "assistant; mark each of these once"
            )
    pieces = [_pieces(*row) for row in zip(texts, spans, flags, strict=True)]
    return _encode(tokenizer, pieces)


def opening_fault(chat: Chat) -> str | None:
    """What is wrong with how a chat begins: no engine continues an empty prompt."""
    if not chat or chat[0].role != "assistant":
        return None
    return (
        "begins with the assistant's turn, which answers no prompt; leave that turn out, or put "
        "the user's before it"
    )


def render_each(
    tokenizer: Any,
    chats: Sequence[Chat],
    trained: Sequence[Sequence[bool]] | None = None,
) -> list[ChatIds | str]:
    """A row for each chat, or why the chat template refuses it.

    Raises:
        StageError: as `render_chats`.
    """
    try:
        return [*render_chats(tokenizer, chats, trained)]
    except StageError:
        raise
    except Exception:  # what a template raises; one by one tells which of the chats it refuses
        found: list[ChatIds | str] = []
    for number, chat in enumerate(chats):
        try:
            flags = None if trained is None else [trained[number]]
            found += render_chats(tokenizer, [chat], flags)
        except Exception as error:
            found.append(f"the chat template refuses it ({error})")
    return found


def render_checked(
    tokenizer: Any, chats: Sequence[Chat], places: Sequence[str]
) -> tuple[list[ChatIds], list[str]]:
    """Rows of chats; and a fault for each that holds a special token as text, that begins with the
    assistant's turn, or that the chat template refuses (it has no row).

    Raises:
        StageError: as `render_chats`.
    """
    faults = [
        f"{place}: {fault}"
        for place, chat in zip(places, chats, strict=True)
        for fault in special_token_faults(tokenizer, chat)
    ]
    faults += [
        f"{place}: {fault}"
        for place, chat in zip(places, chats, strict=True)
        if (fault := opening_fault(chat)) is not None
    ]
    rendered = render_each(tokenizer, chats)
    named = zip(places, rendered, strict=True)
    faults += [f"{place}: {row}" for place, row in named if isinstance(row, str)]
    return [row for row in rendered if isinstance(row, ChatIds)], faults


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
    from jinja2 import TemplateError

    try:
        [text], _ = _render(tokenizer, [(Message("system", "s"), *_PROBE)])
    except TemplateError:  # it knows no system prompt
        [text], _ = _render(tokenizer, [_PROBE])
    return list(dict.fromkeys([*_MARKUP.findall(text), end_of_turn(tokenizer)]))


def check_prompts(
    tokenizer: PreTrainedTokenizerBase,
    chats: Sequence[Chat],
    rows: Sequence[ChatIds],
    places: Sequence[str] | None = None,
) -> list[str]:
    """Complaints about rows that do not start with the ids that an engine would continue.

    One that begins with the assistant's turn has none; `render_checked` complains about it.
    """
    faults = []
    named = places or [f"chat {number}" for number in range(len(chats))]
    for place, chat, row in zip(named, chats, rows, strict=True):
        turns = [i for i, message in enumerate(chat) if message.role == "assistant"]
        heads = [open_turn(tokenizer, chat[:turn]) for turn in turns[:1] if turn]
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
    held = dict[str, Any](tokenizer.special_tokens_map)
    rendered: Any = render_jinja_template(
        [_plain(chat) for chat in chats],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **held,
    )
    texts, spans = rendered
    header = _header(template, held)
    return texts, [
        [_tight(text, start, stop, header) for start, stop in row]
        for text, row in zip(texts, spans, strict=True)
    ]


def _header(template: str, held: dict[str, Any]) -> str:
    """What opens the assistant's turn behind a user's."""
    from transformers.utils.chat_template_utils import render_jinja_template

    texts = []
    for opened in (False, True):
        rendered: Any = render_jinja_template(
            [_plain(_PROBE[:1])], chat_template=template, add_generation_prompt=opened, **held
        )
        texts.append(str(rendered[0][0]))
    return texts[1].removeprefix(texts[0])


def _tight(text: str, start: int, stop: int, header: str) -> tuple[int, int]:
    """A span without the rest of the header at its start and blanks behind its end of turn."""
    inside = (
        n for n in range(min(len(header), stop - start) + 1) if text.endswith(header, 0, start + n)
    )
    start += next(inside, 0)
    return start, start + len(text[start:stop].rstrip())


def _pieces(text: str, spans: list[tuple[int, int]], trained: Sequence[bool]) -> list[_Piece]:
    """Parts of a text in order, each with 1 if it is trained on; none is empty."""
    cut, done = [], 0
    for (start, stop), flag in zip(spans, trained, strict=True):
        cut += [(text[done:start], 0), (text[start:stop], int(flag))]
        done = stop
    return [piece for piece in (*cut, (text[done:], 0)) if piece[0]]


def _encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[list[_Piece]]) -> list[ChatIds]:
    """Pieces as ids, encoded in one call: for a library in another language calls are dear."""
    guard = _guard(tokenizer) if rows else ""
    texts = [guard * (k > 0) + text for row in rows for k, (text, _) in enumerate(row)]
    encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
    found = []
    for row in rows:
        parts = [(next(encoded)[bool(guard and k) :], flag) for k, (_, flag) in enumerate(row)]
        ids = tuple(token for part, _ in parts for token in part)
        found.append(ChatIds(ids, tuple(flag for part, flag in parts for _ in part)))
    return found


def _guard(tokenizer: PreTrainedTokenizerBase) -> str:
    """A special token to put before pieces that do not begin their text, and to take off again.

    SentencePiece tokenizers that are not `legacy` (later Llamas and Mistrals) put a blank before a
    text but not behind a special token. Encoded on its own such a piece would begin with it, and
    the turn would have other ids than in the prompt of the next turn. "" for other tokenizers.
    """
    special = str(tokenizer.eos_token or tokenizer.bos_token or "")
    alone, behind = tokenizer(["a", f"{special}a"], add_special_tokens=False)["input_ids"]
    return special if len(behind) > 1 and behind[1:] != alone and special else ""


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
