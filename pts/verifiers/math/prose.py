"""What belongs to the last number of a sentence: the word behind it, or the list that it ends.

`math-verify` reads one expression of prose. Of "3 or 4", "12–15" and "12 dozen" that is a part.
"""

from __future__ import annotations

import re

from pts.verifiers.math.answers import elements
from pts.verifiers.math.values import CHANGES, MOST_DIGITS, exact

_NUMBER = (
    r"[-+–]?\\?\$?[-–]?(?:\\[dt]?frac\{\d+\}\{\d+\}"
    r"|(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?|\.\d+)\$?\\?%?"
)
_TERM = rf"\**\$?(?:[A-Za-z]\s?=\s?)?{_NUMBER}\**"
_BEFORE = r"(?<![\w.+*/^(–-])(?<![-+*/^×·–]\s)"
_BEHIND = r"(?![\w(\\–:-]|[.,]\d|\s?[+*/^=×·<>!]|\s[-–]\s?\d)"
_AND = r"\s?,?\s(?:and|or)\s"
_CLAUSE = r"(?!\s(?:is|was|remains?|left|ha(?:s|ve|d)|(?:are|were)(?!\s(?:the|both|all|our)))\b)"
"""Behind a number that does not end a list, but begins a clause ("he eats 8 and 2 are left")."""
_LISTS = re.compile(
    rf"{_BEFORE}(?P<linked>{_TERM}(?:,\s{_TERM}){{0,20}}{_AND}{_TERM}){_BEHIND}{_CLAUSE}"
    rf"|(?<!\w)[({{]{_TERM}(?:,\s?{_TERM}){{1,20}}[)}}]{_BEHIND}"
)
_ANNOUNCED = re.compile(
    r"\b(?:solutions|roots|zeroe?s|values|numbers)\b[^.\d\n]{0,60}?(?:\bare\b|:)[\s:*]{1,4}"
    rf"(?P<list>{_TERM}(?:,\s?{_TERM}){{1,20}}){_BEHIND}",
    re.IGNORECASE,
)
_RANGE = re.compile(
    rf"{_BEFORE}{_NUMBER}(?:\s[A-Za-z]+)?(?:[–—]|\s–\s){_NUMBER}(?:\s[A-Za-z]+)?"
    r"(?![\w(\\–]|[.,]\d|\s?[+*/^=×·<>])"
)
_FRACTION = r"(?:half|(?:quarter|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth)s?)"
_CONNECTS = re.compile(
    r"\s(?:and|or|nor|not|if|to|times|over|more|less|least|most|than|above|once)\b"
)
"""Words that begin what the sentence goes on with, unless `_GOES_ON`."""
_GOES_ON = re.compile(
    rf"\sand (?:(?:a|an|one|two|three|\w+ly) )?{_FRACTION}\b|\sor (?:more|less|fewer)\b"
)


def with_minus(text: str) -> str:
    """Text with all its signs of negative numbers as hyphens; the dash of a range stays."""
    return re.sub(r"(?<![\d)}%$])(?<![\d)}%$]\s)–(?=[\d.])", "-", text.replace("−", "-"))


def several(number: str, text: str) -> str | None:
    """The list ("3 and 4", "(3, 4)") or range ("12–15") that holds the last number; None for none.

    Values that are one and the same ("1/2 or 50%") are no list: the last of them is the answer.
    """
    place = _last(number, text)
    if place is None:
        return None
    for pattern in (_RANGE, _LISTS, _ANNOUNCED):
        for found in pattern.finditer(text):
            begin, end = found.span("list" if pattern is _ANNOUNCED else 0)
            if begin <= place.start() and place.end() <= end:
                held = text[begin:end]
                if found.groupdict().get("linked"):  # their commas have a blank behind them
                    held = re.sub(r"(?<=\d),(?=\d)", "", held)
                return _same(held) or held + _word(text[end:])
    return None


def with_its_word(number: str, text: str) -> str:
    """A number with the word behind it, where that changes it ("12 dozen") or is what it counts."""
    place = _last(number, text)
    return number if place is None else number + _word(text[place.end() :])


def _last(number: str, text: str) -> re.Match[str] | None:
    """Where a number, as the library has spelled it, stands last."""
    number = number.strip(" .*()").rstrip("–—-")
    if len(number) > MOST_DIGITS or not re.fullmatch(r"-?\d*\.?\d+(?:\s?/\s?\d+)?", number):
        return None
    whole = "".join(rf"{re.escape(c)}[, ]?" if c.isdigit() else re.escape(c) for c in number[:-1])
    pattern = rf"(?<![\d.]){whole}{number[-1]}(?!\d|[.,]\d)"
    return next(iter([*re.finditer(pattern, text)][::-1]), None)


def _word(text: str) -> str:
    """The word at the head of what follows a number, if it belongs to it."""
    found = re.match(r"[$*)\\]{0,4}(\s[a-z]+)", text)
    if found is None:
        return ""
    behind = text[found.start(1) :]
    if going_on := _GOES_ON.match(behind):
        return going_on[0]
    if exact(f"1{found[1]}"):
        return found[1]
    return found[1] if CHANGES.search(found[1]) and not _CONNECTS.match(behind) else ""


def _same(text: str) -> str | None:
    """The last of several values that are all equal."""
    kind, parts = elements(text) or ("", [])
    values = [exact(part) for part in parts]
    if kind or not values or values[0] is None:
        return None
    return parts[-1] if all(value and value.equals(values[0]) for value in values) else None
