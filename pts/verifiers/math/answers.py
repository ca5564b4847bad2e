"""Final answers as people write them: where they stand, and what they are worth exactly.

What is read here needs no computer algebra: whole numbers, decimals, fractions, mixed numbers,
powers of ten, percentages, money, numbers with a base, times, and words. It is compared exactly.
The rest is for `math-verify`, to which `latex` hands what it would misread.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

MOST_DIGITS = 400
"""The largest power of ten that is written out; a number beyond it is left to `math-verify`."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_DECLARED = re.compile(
    r"####\s*|<answer>"
    r"|\banswer\b[*_]*(?:\s*[:=]|\s+(?:is|was|would be|must be|should be)\b)[\s:*_]*",
    re.IGNORECASE,
)
_THIN = re.compile(r"\\[,;:!>]|\{,\}(?=\d)")
_VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_MONEY = re.compile(
    r"(?:\b(?:US|AU?|CA?|NZ|HK))?\s*\\?\$|[€£¥₹₩]|\\(?:pounds|euro)\b|\b(?:USD|EUR|GBP)\s(?=[\d.])"
)
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_RATIONAL = re.compile(
    r"(?P<sign>[-+]?)\s*(?:"
    r"(?P<whole>\d+)?\s*\\[dtc]?frac\s*(?:\{\s*(?P<top>-?\d+)\s*\}|(?P<t>\d))"
    r"\s*(?:\{\s*(?P<bottom>\d+)\s*\}|(?P<b>\d))"
    r"|(?P<mixed>\d+)\s+(?P<above>\d+)\s*[/⁄]\s*(?P<below>\d+)"
    rf"|(?P<number>{_NUMBER})"
    r"(?:[eE](?P<e>[-+]?\d+)|\s*(?:\\times|\\cdot|[×x*·])\s*10\s*(?:\^|\*\*)\s*\{?(?P<ten>-?\d+)\}?)?"
    rf"(?:\s*[/⁄]\s*(?P<divisor>{_NUMBER}))?"
    r"(?:\s+(?P<scale>thousand|million|billion|trillion)\b)?"
    r")(?P<percent>\s*\\?%|\s+percent\b)?"
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_UNIT = re.compile(
    r"\s*(?:\^\s*\{?\s*\\circ\b\s*\}?|°|\\(?:text|textrm|mathrm|mbox)\s*\{[^{}]*\}"
    r"|\([^\W\d_][^\d()=]*\)|(?:(?<=\d)(?:[cmdk]?m|[km]?g|ml|mL|km/h|m/s|ft|lbs?|oz|hrs?|min|sec|mph)"
    r"|\s(?:[JNWVKLgmsh]|[^\W\d_][^\W\d_.'’-]+)(?:/[a-z]+)?)(?![\w(*/=+]))(?:\^?\{?[23²³]\}?)?"
)
_NO_UNIT = re.compile(
    r"\b(?:and|or|nor|not|to|plus|minus|times|over|divided|squared|cubed|factorial|hundred|dozen"
    r"|halves|half|thirds?|quarters?|fourths?|fifths?|sqrt|pi|ln|log|exp|sin|cos|tan)\b"
)
"""Words behind a number that make it another one."""
_BASE = re.compile(r"([0-9A-Za-z]+)\s*_\s*\{?\s*(?:\\text\{)?\s*(\d{1,2})[\s}]*")
_TIME = re.compile(r"(\d+)\s*:\s*(\d+)(?:\s*:\s*(\d+))?")
_DOTS = re.compile(r"\\[lc]?dots[bc]?\b|\.\.\.|…")
_WORDS = re.compile(r"[^\W\d_]+(?:[\s.,'’-]+[^\W\d_]+)*\.?")
_NAME = re.compile(
    r"(?<![A-Za-z\\])(a(?=sin|cos|tan))?(?:pi|theta|ln|log|(?:sin|cos|tan)h?|cot|sec|csc)(?![A-Za-z])"
)
_INFINITY = re.compile(r"(?<![A-Za-z\\])(?:inf|oo|infinity)(?![A-Za-z])")


@dataclass(frozen=True, slots=True)
class Exact:
    """The exact value of an answer; a percentage is worth its number and its hundredth."""

    value: Fraction
    percent: bool = False

    def equals(self, other: Exact) -> bool:
        if self.percent == other.percent:
            return self.value == other.value
        part, whole = (self, other) if self.percent else (other, self)
        return whole.value in (part.value, part.value / 100)


def declared(text: str) -> str | None:
    """The answer that a text declares last; None without a declaration.

    It is what \\boxed holds, else what follows "answer is", "answer:", "####" or <answer>, to the
    end of its line.
    """
    for box in reversed(list(_BOX.finditer(text))):
        held = _to_brace(text[box.end() :])
        if held.strip():
            return held
    found = list(_DECLARED.finditer(text))
    if not found:
        return None
    return text[found[-1].end() :].lstrip().split("\n")[0].split("</answer>")[0].strip()


def _to_brace(text: str) -> str:
    """The text before the brace that closes what is open at its start."""
    depth = 1
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return text[:place]
    return text


def without_counts(text: str) -> str:
    """A text without items of a list that only count: "2. Spheres (5)" is a part of an answer."""
    return re.sub(r"(?m)^\s*(?:\d+[.)]|[-*•])\s+[^\d=\n]*\(\d+\)\s*$", "", text)


def plain(text: str) -> str:
    """An answer without money, thin spaces, emphasis and delimiters of mathematics."""
    for mark in _VULGAR:
        text = text.replace(mark, f" {unicodedata.normalize('NFKC', mark)}")
    text = _THIN.sub(lambda thin: "," if thin[0] == "{,}" else "", text.replace("−", "-"))
    text = re.sub(r"\\(?:left|right|displaystyle)\b|\\[()\[\]]|`|\*\*(?![\w(])", "", text)
    return _MONEY.sub("", text).replace("$", "").strip().rstrip(".,;:").strip()


def exact(text: str) -> Exact | None:
    """The value of an answer that is a rational number, perhaps with a unit; None for the rest.

    A unit is words, words in brackets, \\text{...} or a degree sign; it is not compared.
    """
    text = re.sub(r"^[A-Za-z]\s*=\s*(?=[-+\d.\\])", "", plain(text))
    found = _RATIONAL.match(text)
    if found is None:
        return None
    at = found.end()
    while (unit := _UNIT.match(text, at)) and not _NO_UNIT.search(unit[0]):
        at = unit.end()
    return None if text[at:].strip(" .,;:*_") else _value(found)


def _value(found: re.Match[str]) -> Exact | None:
    group = found.groupdict()
    power = int(group["e"] or group["ten"] or 0)
    if abs(power) > MOST_DIGITS:
        return None
    if group["number"]:
        value = Fraction(group["number"].replace(",", "")) * Fraction(10) ** power
        below = Fraction((group["divisor"] or "1").replace(",", ""))
        value *= _SCALES.get(group["scale"], 1)
        whole = "0"
    else:
        value = Fraction(group["top"] or group["t"] or group["above"])
        below = Fraction(group["bottom"] or group["b"] or group["below"])
        whole = group["whole"] or group["mixed"] or "0"
    if not below:
        return None
    value = int(whole) + value / below
    return Exact(-value if group["sign"] == "-" else value, group["percent"] is not None)


def spelled(reference: str, answer: str) -> bool | None:
    """The verdict on answers that are compared as they are spelled; None for all others.

    That is: words, times of day, numbers with a base, and lists that go on ("1, 2, ..., n"). An
    answer without a base is read in the base of the reference.
    """
    reference, answer = plain(reference), plain(answer)
    for pattern in (_BASE, _TIME):
        wanted, given = pattern.fullmatch(reference), pattern.fullmatch(answer)
        if wanted and given:
            return _number(wanted) == _number(given)
        if wanted and pattern is _TIME:
            return False
        if wanted or (given and pattern is _BASE):
            base = wanted or given
            assert base is not None
            return base[1] == (answer if wanted else reference)
    if _DOTS.search(reference) or _DOTS.search(answer):
        return _spelling(_DOTS.sub("...", reference)) == _spelling(_DOTS.sub("...", answer))
    wanted_words = words(reference)
    return None if wanted_words is None else wanted_words == words(answer)


def _number(found: re.Match[str]) -> object:
    """A number with its base as its value, a time as its parts."""
    if found.re is _TIME:
        return [int(part or 0) for part in found.groups()]
    try:
        return int(found[1], int(found[2]))
    except ValueError:
        return found[0]


def _spelling(text: str) -> str:
    return re.sub(r"[\s{}]|\\(?:text|mathrm)\b", "", text).casefold()


def words(text: str) -> str | None:
    """An answer that is words and no formula, in small letters; None for the rest."""
    text = re.sub(
        r"\\(?:text|textbf|textit|mathrm|mbox)\s*\{([^{}]*)\}", r"\1", plain(text)
    ).strip()
    parts = re.findall(r"[^\W\d_]+", text)
    if not _WORDS.fullmatch(text) or max(map(len, parts)) < 3 or _NAME.fullmatch(text):
        return None
    return " ".join(parts).casefold()


def latex(text: str) -> str:
    """A plain formula ("pi/2", "sqrt(2)", "x**2", "exp(3)") as LaTeX. LaTeX stays as it is."""
    text = _bracketed(plain(text), r"\\sqrt\s*\(", r"\sqrt")
    if "\\" in text:
        return text
    text = text.replace("**", "^")
    text = re.sub(r"(?<![A-Za-z])exp\s*(?=\()", "e^", text)
    text = _bracketed(text, r"(?<![A-Za-z])sqrt\s*\(", r"\sqrt")
    text = _bracketed(text, r"\^\s*\(", "^")
    text = re.sub(r"\^(-?\w{2,})", r"^{\1}", text)
    text = re.sub(r"(?:,\s*)?\b(?:and|or)\b", ",", text)
    text = _NAME.sub(lambda name: f"\\arc{name[0][1:]}" if name[1] else f"\\{name[0]}", text)
    return _INFINITY.sub(r"\\infty", text)


def _bracketed(text: str, before: str, command: str) -> str:
    """Round brackets that follow a pattern (their opening is its end) as a command's braces."""
    braces = {40: 123, 41: 125, 123: 40, 125: 41}
    while bracket := re.search(before, text):
        held = _to_brace(text[bracket.end() :].translate(braces)).translate(braces)
        rest = text[bracket.end() + len(held) + 1 :]
        text = f"{text[: bracket.start()]}{command}{{{held}}}{rest}"
    return text


def unknown_words(text: str) -> list[str]:
    """Words of a formula that are neither functions nor commands nor inside \\text{...}."""
    bare = re.sub(
        r"\\(?:text|mathrm|textrm|mbox|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text
    )
    return re.findall(r"[^\W\d_]{3,}", bare)
