"""Where the steps of a completion end: its lines and sentences, as positions between tokens.

A step ends where a line ends, or where a sentence ends and white space follows. Text is only read
to find positions; a search sees the positions alone (`pts.types.StepQuery`).

Rules of English prose and mathematics, without a model: abbreviations, initials, list numbers,
decimals and factorials end no sentence. An end that is missed makes a longer step, which is still
a step; where a rule is in doubt it misses.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

from pts.engines.base import Engine
from pts.errors import EngineError
from pts.types import Ids

ABBREVIATIONS = frozenset(
    [
        *("mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "dept", "inc", "ltd", "est"),
        *("vs", "cf", "al", "etc", "resp", "approx", "ca"),
        *("fig", "figs", "eq", "eqs", "sec", "ch", "vol", "pp"),
    ]
)

_WORD = re.compile(r"(\S+)(\s*)")
_MARKUP = re.compile(r"[#>*\-+•_]+")
_CLOSING = "\"'”’»」』）)]}*_$`"
_END = re.compile(rf"[.!?…。！？][{re.escape(_CLOSING)}]*$")
_FULL_WIDTH_END = re.compile(rf"[。！？][{re.escape(_CLOSING)}]*+(?=\S)")
_NUMBERED = re.compile(r"\W*(?:\d{1,3}|[A-Za-z]|[ivxlIVXL]+)\.\W*")
_DOTTED = re.compile(r"(?:[A-Za-z]\.){2,}")
_INITIAL = re.compile(r"[A-Z]\.")
_FACTORIAL = re.compile(r"(?:\d|\b[A-Za-z])!$")


def completion_steps(engine: Engine, completion: Ids) -> list[int]:
    """The answer to `StepQuery(completion)`: the ends of its steps, from the engine's texts.

    The stop token belongs to the last step. Raises EngineError unless each token has a text.
    """
    texts = engine.token_texts(completion)
    if len(texts) != len(completion):
        raise EngineError(
            f"{type(engine).__name__}.token_texts gave {len(texts)} texts for {len(completion)} "
            "tokens; it must give one a token"
        )
    if completion and completion[-1] in engine.stop_ids:
        texts = [*texts[:-1], ""]
    return step_ends(texts)


def step_ends(texts: Sequence[str]) -> list[int]:
    """Ends of the steps of a text, in tokens: ascending, the last one is the number of tokens.

    `token_texts` are the texts of its tokens. White space after a step belongs to it, as far as
    tokens allow: a token is never split, one that opens with white space (" The") opens its step,
    and one that holds an end together with text after it closes its step.
    """
    starts = list(accumulate(map(len, texts), initial=0))
    text = "".join(texts)
    ends = {len(texts)}
    for at in _beginnings(text):
        token = bisect_right(starts, at) - 1
        before = text[starts[token] : at]
        ends.add(token + 1 if before.strip() else token)
    return sorted(ends) if texts else []


def _beginnings(text: str) -> Iterator[int]:
    """Characters that steps begin with, but for the first step."""
    first = True  # nothing but markup precedes the word on its line
    for found in _WORD.finditer(text):
        word, space = found.groups()
        for end in _FULL_WIDTH_END.finditer(word):  # these need no white space
            yield found.start() + end.end()
        if found.end() < len(text) and ("\n" in space or (space and _ends_sentence(word, first))):
            yield found.end()
        first = "\n" in space or (first and bool(_MARKUP.fullmatch(word)))


def _ends_sentence(word: str, first: bool) -> bool:
    """Whether a sentence ends with this word, white space following; `first`: on its line."""
    if not _END.search(word) or (first and _NUMBERED.fullmatch(word)):
        return False
    bare = word.strip("([{" + _CLOSING)
    if _FACTORIAL.search(bare) or _DOTTED.fullmatch(bare) or _INITIAL.fullmatch(bare):
        return False
    return bare.removesuffix(".").lower() not in ABBREVIATIONS or not bare.endswith(".")
