"""Texts as words, the same for every way of writing them down.

Letters are lower-cased and Unicode's compatibility forms resolved (NFKC with case folding), all
punctuation parts words as spaces do ("1.8" is "1 8"), and the kind of white space does not matter:
a text that is re-cased, re-punctuated between its words or re-wrapped has the same words. Scripts
written without spaces (Chinese characters, kana) give a word a character.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import regex

_ASCII = bytes(
    code if code >= 128 else ord(chr(code).lower()) if chr(code).isalnum() else ord(" ")
    for code in range(256)
)
_WITHOUT_SPACES = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]")


def words_of(text: str) -> list[str]:
    """The words of a text, in order."""
    if not text.isascii():
        text = " ".join(part if part.isascii() else _folded(part) for part in text.split())
    # Bytes of other characters lie above ASCII in UTF-8, so the table leaves them alone.
    return text.encode().translate(_ASCII).decode().split()


@lru_cache(maxsize=2**16)
def _folded(part: str) -> str:
    """A part of a text without white space, as words with spaces between."""
    folded = unicodedata.normalize("NFKC", part).casefold()
    return "".join(map(_said, unicodedata.normalize("NFKC", folded)))


def _said(character: str) -> str:
    kind = unicodedata.category(character)
    if kind == "Cf":  # joiners, soft hyphens: nothing is seen of them
        return ""
    if kind[0] not in "LMN":
        return " "
    return f" {character} " if _WITHOUT_SPACES.match(character) else character


def texts_of(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(column, text) of every text in a row, those in lists and mappings (chats) included."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from texts_of(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from texts_of(inner, f"{path}[{number}]")
