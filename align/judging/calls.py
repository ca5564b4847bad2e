"""Calls of a language model: what is asked, what comes back, and what asks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from pts.types import Message

End: TypeAlias = Literal["stop", "length", "refused", "late", "rejected"]


@dataclass(frozen=True, slots=True)
class Said:
    """What came back from one call."""

    text: str
    end: End
    """`length`: cut by the limit; `refused`: the endpoint says that the judge refused; `late`: no
    reply in time; `rejected`: the endpoint will not answer this call, and `text` says why."""
    prompt_tokens: int = 0
    reply_tokens: int = 0
    counted: bool = True
    """The two counts are known; some endpoints tell none."""
    busy: int = 0
    """Tries before it that the endpoint turned away as too many (429)."""


@dataclass(frozen=True, slots=True)
class Call:
    """One thing to ask."""

    digest: str
    messages: tuple[Message, ...]


class Backend(Protocol):
    """What asks a model."""

    identity: Mapping[str, Any]
    """Model and manner of asking: replies under another identity are replies of another one."""

    def ask(self, calls: Iterable[Call]) -> Iterator[tuple[Call, Said]]:
        """What comes back from each call, in any order, each as soon as it is there.

        Raises EngineError for a model that cannot be asked at all.
        """

    def close(self) -> None:
        """Let go of connections; the backend cannot be used afterwards."""


def call_digest(model: Mapping[str, object], prompt: object, number: int) -> str:
    """Stands for one call: the model and how it is asked, the whole prompt (plain data), and which
    attempt or sample it is."""
    text = json.dumps([model, prompt, number], sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
