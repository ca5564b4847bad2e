"""Drawn rows as token ids, and what is lost of them.

    encoder = Encoder(mixture, tokenizer, max_length=1024)
    for row in encoder.rows(): ...          # also those that are dropped
    encoder.check("sft")                    # refuses what is lost above the limits

Rows are encoded a few at a time and none is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from align.data.chat import (
    ChatIds,
    IdPair,
    check_prompts,
    end_of_turn,
    render_each,
)
from align.data.formats import Conversation, Preference
from align.decontamination.index import EvaluationIndex, judged
from align.decontamination.sources import evaluation_texts
from align.errors import StageError
from align.mixture.batches import BATCH, batches
from align.mixture.losses import Settled, count, faults_of, settle
from align.mixture.sources import Example, Mixture
from pts.engines.text import special_token_faults
from pts.types import Message

SHOWN = 20
"""Faults that are listed; the others are counted."""
CHECKED = 100
"""Rows of a source whose prompts are compared with what an engine would continue: that depends on
the template and the tokenizer, so a few rows tell."""


@dataclass(frozen=True, slots=True)
class Row:
    """A drawn row, as ids before and after what was lost of it."""

    example: Example
    ids: ChatIds | IdPair
    settled: Settled


class Encoder:
    """Encodes the rows of a mixture and counts by source what is lost of them."""

    def __init__(self, mixture: Mixture, tokenizer: Any, max_length: int) -> None:
        self.mixture = mixture
        self.counts = mixture.counts()
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._faults: list[str] = []
        self._more = 0
        self._checked = dict.fromkeys(self.counts, 0)
        self._forgiving = {s.name for s in mixture.sources if s.config.faulty == "drop"}

    def rows(self) -> Iterator[Row]:
        """Encode every drawn row, in order, dropped ones included.

        Raises:
            StageError: rows that the template or the tokenizer refuses, at the end and all at once.
            DataError: a source has changed since it was checked.
        """
        cut = self.mixture.config.too_long == "cut"
        first = {s.name: s.config.first_tokens for s in self.mixture.sources}
        stop = self._tokenizer.convert_tokens_to_ids(end_of_turn(self._tokenizer))
        for some in batches(self._judged(), BATCH):
            batch = [example for example, _ in some]
            for (example, clean), ids in zip(some, self._encode(batch), strict=True):
                if isinstance(ids, str):
                    self._refuse(example, ids)
                    continue
                settled = (
                    settle(ids, self._max_length, cut, stop, first.get(example.source, 0))
                    if clean
                    else Settled(None, ("contaminated",))
                )
                count(self.counts[example.source], ids, settled)
                yield Row(example, ids, settled)
        if self._faults:
            more = [f"… and {self._more:,} more rows"] if self._more else []
            raise StageError("\n".join([*self._faults, *more]))

    def _judged(self) -> Iterator[tuple[Example, bool]]:
        """The drawn rows, and whether they hold nothing of the evaluation sets."""
        config = self.mixture.config
        if not config.against:
            yield from ((example, True) for example in self.mixture.examples())
            return
        index = EvaluationIndex(
            evaluation_texts([*map(os.path.expanduser, config.against)]), config.decontamination
        )
        for example, found in judged(self.mixture.examples(), self._texts, index):
            yield example, found is None or found.kind == "partial"

    def _texts(self, example: Example) -> list[str]:
        content = example.content
        if isinstance(content, Conversation):
            return [message.content for message in content.messages]
        if isinstance(content, Preference):
            return [*(m.content for m in content.prompt), content.chosen, content.rejected]
        several = (
            [content.ids]
            if isinstance(content, ChatIds)
            else [content.prompt + side for side in (content.chosen, content.rejected)]
        )
        return [self._tokenizer.decode(ids, skip_special_tokens=True) for ids in several]

    def first_faults(self, count: int) -> list[str]:
        """What is wrong with the first rows of each source, whether they are drawn or not."""
        found = []
        for source in self.mixture.sources:
            contents = islice(source.contents(), count)
            batch = [Example(source.name, place, content) for place, content in contents]
            for example, ids in zip(batch, self._encode(batch), strict=True):
                if isinstance(ids, str) and source.name not in self._forgiving:
                    found.append(f"{example.place}: {ids}")
        return found

    def check(self, stage: str) -> None:
        """Refuse losses above the recipe's limits. Raises StageError with all of them."""
        faults = [*faults_of(self.counts, self.mixture.config.losses, stage)]
        if faults:
            raise StageError("\n".join(faults))

    def _refuse(self, example: Example, fault: str) -> None:
        """Count a row that cannot be encoded, or put its fault down."""
        if example.source in self._forgiving:
            self.counts[example.source].faulty += 1
        elif len(self._faults) < SHOWN:
            self._faults.append(f"{example.place}: {fault}")
        else:
            self._more += 1

    def _encode(self, batch: Sequence[Example]) -> list[ChatIds | IdPair | str]:
        """Ids of each example, or what is wrong with it."""
        chats: list[tuple[Message, ...]] = []
        flags: list[tuple[bool, ...]] = []
        for example in batch:
            content = example.content
            if isinstance(content, Conversation):
                chats.append(content.messages)
                flags.append(content.trained)
            elif isinstance(content, Preference):
                for side in (content.chosen, content.rejected):
                    chats.append((*content.prompt, Message("assistant", side)))
                    flags.append((*_none(content.prompt), True))
        rendered = iter(zip(chats, render_each(self._tokenizer, chats, flags), strict=True))
        return [self._ids(example, rendered) for example in batch]

    def _ids(
        self, example: Example, rendered: Iterator[tuple[tuple[Message, ...], ChatIds | str]]
    ) -> ChatIds | IdPair | str:
        content = example.content
        if isinstance(content, ChatIds | IdPair):
            return self._known(content)
        rows: list[ChatIds] = []
        faults: list[str] = []
        for _ in range(1 if isinstance(content, Conversation) else 2):
            chat, row = next(rendered)
            faults += special_token_faults(self._tokenizer, chat)
            if isinstance(row, str):
                faults.append(row)
            else:
                rows.append(row)
                faults += self._prompt_faults(example, chat, row)
        if faults:
            return faults[0]
        return rows[0] if isinstance(content, Conversation) else _pair(*rows)

    def _prompt_faults(
        self, example: Example, chat: tuple[Message, ...], row: ChatIds
    ) -> list[str]:
        if self._checked[example.source] >= CHECKED:
            return []
        self._checked[example.source] += 1
        found = check_prompts(self._tokenizer, [chat], [row], [""])
        return [fault.removeprefix(": ") for fault in found]

    def _known(self, row: ChatIds | IdPair) -> ChatIds | IdPair | str:
        ids = row.ids if isinstance(row, ChatIds) else row.prompt + row.chosen + row.rejected
        size = len(self._tokenizer)
        if max(ids) >= size:
            return f"holds the token id {max(ids)}, but the tokenizer knows {size:,}"
        return row


def _none(prompt: Sequence[Message]) -> tuple[bool, ...]:
    """Train on none of the assistant's turns of a prompt."""
    return tuple(False for message in prompt if message.role == "assistant")


def _pair(chosen: ChatIds, rejected: ChatIds) -> IdPair | str:
    """Prompt and sides of two rows in which the last turn alone is trained on."""
    prompts, sides = [], []
    for row in (chosen, rejected):
        start = row.mask.index(1)
        prompts.append(row.ids[:start])
        sides.append(tuple(t for t, flag in zip(row.ids, row.mask, strict=True) if flag))
    if prompts[0] != prompts[1]:
        return "the chat template writes the prompt otherwise before each of the two sides"
    return IdPair(prompts[0], *sides)
