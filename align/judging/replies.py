"""Reading a judge's reply: strict JSON, or the reason why it cannot be read. Never a guess.

Three repairs change nothing of what was said: a code fence around the object is taken off, prose
before the object is passed over, a comma before a closing bracket is dropped. Prose behind the
object may take scores back, so it is none of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Kind: TypeAlias = Literal[
    "scored", "malformed", "out_of_range", "refused", "timed_out", "cut", "rejected"
]
"""What became of a call: `cut` by the length limit, `rejected` by the endpoint (or too long for
the judge's context)."""

_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"```[A-Za-z]*\n(.*?)```\s*\Z", re.DOTALL)
_STRING_OR_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])', re.DOTALL)
_REFUSAL = re.compile(
    r"\b(?:sorry|apologi[sz]e|cannot|can't|can’t|unable|won't|won’t|not able|decline)\b", re.I
)

Score = Annotated[int, Field(ge=1, le=5)]
M = TypeVar("M", bound=BaseModel)


class Fault(BaseModel):
    """A fault that a judge names."""

    model_config = ConfigDict(strict=True, extra="forbid")

    kind: Literal["comprehension", "logical", "factual", "stylistic"]
    fault: str


class JudgeReply(BaseModel):
    """What a judge must reply: faults, then scores, each by the number of the reply."""

    model_config = ConfigDict(strict=True, extra="forbid")

    faults: dict[str, list[Fault]]
    accuracy: dict[str, Score]
    style: dict[str, Score]
    detail: dict[str, Score]


@dataclass(frozen=True, slots=True)
class Marks:
    """The scores of one answer, 1 to 5."""

    accuracy: int
    style: int
    detail: int

    @property
    def total(self) -> int:
        """The sum of the three: means are compared by it, without rounding."""
        return self.accuracy + self.style + self.detail


@dataclass(frozen=True, slots=True)
class Found:
    """What became of a call, and what was read of its reply."""

    kind: Kind
    reason: str = ""
    """Why there is nothing."""
    repairs: tuple[str, ...] = ()
    """"fence", "prose", "comma": what had to be taken off."""


@dataclass(frozen=True, slots=True)
class Outcome(Found):
    """The same, with the marks of each answer."""

    marks: tuple[Marks, ...] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """The marks of each reply of a case, in its order; without marks it is UNSCORED."""

    marks: tuple[Marks, ...] = ()
    kind: Kind = "scored"
    """What became of the last attempt."""
    reason: str = ""

    @property
    def scored(self) -> bool:
        """Whether there are marks."""
        return bool(self.marks)


def read_reply(text: str, replies: int) -> Outcome:
    """The marks that a judge's reply gives to so many answers, or what is wrong with it."""
    reply, found = read_object(text, JudgeReply, lambda reply: _check_numbers(reply, replies))
    if reply is None:
        return Outcome(found.kind, found.reason)
    numbers = [str(k) for k in range(1, replies + 1)]
    marks = tuple(Marks(reply.accuracy[k], reply.style[k], reply.detail[k]) for k in numbers)
    return Outcome("scored", repairs=found.repairs, marks=marks)


def read_object(
    text: str, form: type[M], check: Callable[[M], None] = lambda reply: None
) -> tuple[M | None, Found]:
    """The one JSON object of a reply, in the form of a strict model; and what became of it.

    `check` raises ValueError for what the model cannot tell is wrong.
    """
    body, repairs = _object_in(text)
    if not body:
        refused = _REFUSAL.search(text) is not None
        return None, Found("refused" if refused else "malformed", "holds no JSON object")
    without = _STRING_OR_COMMA.sub(lambda found: found[1] or "", body)
    if without != body:
        repairs = (*repairs, "comma")
    try:
        data, end = _DECODER.raw_decode(without)
        if without[end:].strip():
            raise ValueError("goes on behind the JSON object")
        reply = form.model_validate(data)
        check(reply)
    except ValidationError as error:
        return None, _invalid(error)
    except (ValueError, RecursionError) as error:
        return None, Found("malformed", f"no sound JSON: {error}")
    return reply, Found("scored", repairs=repairs)


def _object_in(text: str) -> tuple[str, tuple[str, ...]]:
    """What follows the first brace of the reply, fence and prose taken off; what was taken off."""
    said = _THOUGHT.sub("", text).strip()
    repairs: tuple[str, ...] = ()
    fenced = _FENCE.search(said)
    if fenced and "{" in fenced[1]:
        repairs = ("prose", "fence") if said[: fenced.start()].strip() else ("fence",)
        said = fenced[1].strip()
    start = said.find("{")
    if start > 0 and "prose" not in repairs:
        repairs = ("prose", *repairs)
    return said[start:] if start >= 0 else "", repairs


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held = dict(pairs)
    if len(held) < len(pairs):
        raise ValueError("a key stands twice")
    return held


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _check_numbers(reply: JudgeReply, replies: int) -> None:
    wanted = {str(k) for k in range(1, replies + 1)}
    for name in JudgeReply.model_fields:
        if set(getattr(reply, name)) != wanted:
            raise ValueError(f"{name!r} must tell of the replies 1 to {replies}")


def _invalid(error: ValidationError) -> Found:
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    ranges = {"greater_than_equal", "less_than_equal"}
    kind: Kind = "out_of_range" if {f["type"] for f in faults} <= ranges else "malformed"
    first = faults[0]
    return Found(kind, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
