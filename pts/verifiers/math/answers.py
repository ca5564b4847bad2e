"""How final answers are compared where no number decides, and what `math-verify` is given of them.

Times and ratios, numbers with a base, lists that go on and words are compared as they are spelled;
tuples, sets and relations are taken apart. `latex` writes what the library would misread, and
`unreadable` and `unknowns` tell what it would pass over.
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import accumulate

from pts.verifiers.math.places import to_brace
from pts.verifiers.math.values import CHANGES, TEXT, UNIT, exact, plain

_BASE = re.compile(r"([0-9A-Za-z]+)\s?_\s?\{?\s?(?:\\text\{)?\s?(\d{1,2})[\s}]{0,4}")
_TIME = re.compile(r"(\d+)\s?:\s?(\d+)(?:\s?:\s?(\d+))?\s?([ap]\.?m\.?)?", re.IGNORECASE)
_DOTS = re.compile(r"\\[lc]?dots[bc]?\b|\.\.\.|…")
_WORDS = re.compile(r"[^\W\d_]+(?:[\s.,'’-]{1,3}\w+){0,20}\.?")
_RELATION = re.compile(
    r"\s*(?:\\(?:leq?|geq?|lt|gt|neq?|approx|sim|to|pm)\b(?!\{)|[<>≤≥≠])|.*(?:[-+*/]|\\times|\\cdot)\s*\Z"
    r"|.*(?:\\to(?![a-z])|//|\?)",
    re.DOTALL,
)
_FUNCTION = re.compile(
    r"(?<![A-Za-z\\])(a(?=sin|cos|tan))?(?:pi|theta|ln|log|(?:sin|cos|tan)h?|cot|sec|csc)(?![A-Za-z])"
)
_INFINITY = re.compile(r"(?<![A-Za-z\\])(?:inf|oo|infinity)(?![A-Za-z])|∞")


def spelled(reference: str, answer: str) -> bool | None:
    """The verdict on answers that are compared as they are spelled; None for all others.

    That is: words, times of day, ratios, numbers with a base, and lists with dots ("1, 2, ..., n").
    An answer without a base is read in the base of the reference.
    """
    reference, answer = (
        re.sub(r"\s+", " ", TEXT.sub(r" \1", plain(text))).strip() for text in (reference, answer)
    )
    wanted, given = _TIME.fullmatch(reference), _TIME.fullmatch(answer)
    if wanted and given:
        return _same_time(wanted, given)
    if wanted:
        value = exact(answer)
        ratio = len(wanted[2]) != 2 and not wanted[3] and int(wanted[2])
        return bool(ratio and value and value.value == Fraction(int(wanted[1]), int(wanted[2])))
    wanted, given = _BASE.fullmatch(reference), _BASE.fullmatch(answer)
    if wanted and given:
        return _in_base(wanted) == _in_base(given)
    if wanted or given:
        return (wanted[1] if wanted else reference) == (given[1] if given else answer)
    if _DOTS.search(reference) or _DOTS.search(answer):
        return _spelling(_DOTS.sub("...", reference)) == _spelling(_DOTS.sub("...", answer))
    if re.fullmatch(r"-?\d+ ?[A-Za-z]", reference) and re.fullmatch(
        r"-?\d*\.?\d+ ?[A-Za-z]?", answer
    ):
        return reference.replace(" ", "") == answer.replace(" ", "")  # a unit or an unknown
    wanted_words = words(reference)
    return None if wanted_words is None else wanted_words == words(answer)


def _same_time(wanted: re.Match[str], given: re.Match[str]) -> bool:
    parts = [[int(part or 0) for part in found.groups()[:3]] for found in (wanted, given)]
    halves = [(found[4] or "").replace(".", "").casefold() for found in (wanted, given)]
    if parts[0] == parts[1]:
        return "" in halves or halves[0] == halves[1]
    ratio = not any(found[3] or found[4] or len(found[2]) == 2 for found in (wanted, given))
    return ratio and parts[0][0] * parts[1][1] == parts[1][0] * parts[0][1]


def _in_base(found: re.Match[str]) -> object:
    try:
        return int(found[1], int(found[2]))
    except ValueError:
        return found[0]


def _spelling(text: str) -> str:
    return re.sub(r"[\s{}]|\\(?:text|mathrm)\b", "", text).casefold()


def words(text: str) -> str | None:
    """An answer that is words (or capitals, a name) and no formula, in small letters; else None."""
    text = TEXT.sub(r"\1", plain(text)).strip()
    parts = re.findall(r"\w+", text)  # "June 3" begins with a word
    if not _WORDS.fullmatch(text) or _FUNCTION.fullmatch(text) or _INFINITY.fullmatch(text):
        return None
    if re.fullmatch(r"[A-Z]{2,4}", text):
        return text
    named = any(part.isalpha() and len(part) >= 3 for part in parts)
    return " ".join(parts).casefold() if named else None


def elements(text: str) -> tuple[str, list[str]] | None:
    """Brackets and parts of a list, a tuple or a set of answers; None for one answer.

    Half-open and infinite intervals are none: they are for `math-verify`.
    """
    text = plain(text)
    opened = re.fullmatch(r"(\(|\\\{|\{)(.*?)(\)|\\\}|\})", text)
    pairs = {"(": ")", "\\{": "\\}", "{": "}"}
    kind, inner = "", text
    if opened and pairs[opened[1]] == opened[3]:
        depths = accumulate({"(": 1, "{": 1, ")": -1, "}": -1}.get(c, 0) for c in opened[2])
        if min(depths, default=0) >= 0:
            kind, inner = opened[1].lstrip("\\"), opened[2]
    if "\\infty" in inner or "\\cup" in inner or "[" in inner or "]" in inner:
        return None
    parts, depth, part = list[str](), 0, ""
    for character in re.sub(r"(?:,\s?)?(?:\band\b|\bor\b|\\text\{\s?(?:and|or)\s?\})", ",", inner):
        depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += character
    parts = [p.strip() for p in [*parts, part]]
    whole = re.fullmatch(r"\d{1,3}(?:,\d{3})+", inner.strip())
    return (kind, parts) if len(parts) > 1 and all(parts) and not whole else None


def ends(text: str) -> tuple[str, str] | None:
    """Both ends of a range of numbers that is written with a dash ("12–15"); None for no range.

    A hyphen and a minus sign subtract.
    """
    text = TEXT.sub(r" \1", plain(text))
    found = re.fullmatch(r"(?:[A-Za-z]\s?=\s?)?(.*[^\s=(,;+*/^–—-])\s?[–—]\s?(.+)", text)
    if found is None or not all(re.search(r"\d", part) and exact(part) for part in found.groups()):
        return None
    return found[1], found[2]


def ranges(reference: str, answer: str) -> list[tuple[str, str]] | None:
    """Their ends in pairs, where one of two answers is a range: none if the other is no range.

    None where neither is one. Beside a range with a dash, a hyphen and "to" are dashes.
    """
    texts = (reference, answer)
    if not any(ends(text) for text in texts):
        return None
    dashed = [re.sub(r"(?<=[\w%}])\s*(?:-|\bto\b)\s*", "–", TEXT.sub(r" \1", t)) for t in texts]
    wanted, given = (ends(text) or ends(other) for text, other in zip(texts, dashed, strict=True))
    return [(wanted[0], given[0]), (wanted[1], given[1])] if wanted and given else []


def unreadable(text: str) -> bool:
    """Whether the library would read an answer as the number that is a part of it.

    It passes over \\text{...}, and over relations and operators at the ends.
    """
    text = plain(text)
    bare = TEXT.sub(lambda held: "" if not re.search(r"[A-Za-z0-9/!]", held[1]) else held[0], text)
    return bool(TEXT.search(bare) or _RELATION.match(text))


def relation(text: str) -> tuple[str, str]:
    """A relation at the head of an answer, in one spelling, and the rest."""
    text = plain(text)
    found = re.match(r"(?:\\(leq?|geq?|lt|gt|neq?)\b|([<>≤≥≠]))\s?", text)
    if not found:
        return "", text
    names = {"leq": "le", "geq": "ge", "neq": "ne", "<": "lt", ">": "gt", "≤": "le", "≥": "ge"}
    sign = found[1] or found[2]
    return names.get(sign, "ne" if sign == "≠" else sign), text[found.end() :]


def latex(text: str) -> str:
    """A plain formula ("pi/2", "sqrt(2)", "x**2", "exp(3)") as LaTeX. LaTeX stays as it is."""
    text = _bracketed(plain(text), r"\\sqrt ?\(", r"\sqrt")
    if "\\" in text:
        return text
    text = text.replace("**", "^")
    text = re.sub(r"(?<![A-Za-z])exp ?(?=\()", "e^", text)
    text = _bracketed(text, r"(?<![A-Za-z])sqrt ?\(", r"\sqrt")
    text = _bracketed(text, r"\^ ?\(", "^")
    text = re.sub(r"\^(-?\w{2,})", r"^{\1}", text)
    text = re.sub(r"(?:, ?)?\b(?:and|or)\b", ",", text)
    text = _FUNCTION.sub(lambda name: f"\\arc{name[0][1:]}" if name[1] else f"\\{name[0]}", text)
    return _INFINITY.sub(r"\\infty", text)


def _bracketed(text: str, before: str, command: str) -> str:
    """Round brackets that follow a pattern (their opening is its end) as a command's braces."""
    braces = {40: 123, 41: 125, 123: 40, 125: 41}
    for _ in range(20):
        bracket = re.search(before, text)
        if not bracket:
            break
        held = to_brace(text[bracket.end() :].translate(braces)).translate(braces)
        rest = text[bracket.end() + len(held) + 1 :]
        text = f"{text[: bracket.start()]}{command}{{{held}}}{rest}"
    return text


def unknowns(text: str) -> bool:
    """Whether an answer holds letters that are neither commands, units nor known constants."""
    bare = re.sub(r"\\[A-Za-z]+", " ", TEXT.sub(" ", latex(text)))
    letters = re.findall(r"[A-Za-z]", UNIT.sub(" ", bare))
    return bool(set(letters) - {"e", "i", "E"} or CHANGES.search(bare))


def unknown_words(text: str) -> list[str]:
    """Words of a formula that are neither functions nor commands nor inside \\text{...}."""
    bare = re.sub(
        r"\\(?:text|mathrm|textrm|mbox|operatorname|begin|end)\s?\{[^{}]*\}|\\[A-Za-z]+", " ", text
    )
    return re.findall(r"[^\W\d_]{3,}", bare)
