"""Final answers as people write them: where they stand, and what they are worth exactly.

What is read here needs no computer algebra: whole numbers, decimals, repeating ones too, fractions,
mixed numbers, powers of ten, percentages, money, units, numbers with a base, times and ratios, and
words. It is compared exactly. The rest is for `math-verify`, to which `latex` hands what it would
misread, and from which `unreadable` keeps what it would pass over.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

MOST_TEXT = 20_000
"""Characters of a completion that are read, from its end."""
MOST_ANSWER = 2_000
"""Characters of an answer; a longer one is none."""
MOST_DIGITS = 400
"""Digits of a number, and the largest power of ten, that are written out."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,4}\{")
_DECLARED = re.compile(
    r"####\s{0,4}|<answer>"
    r"|\banswer\b[*_]{0,4}(?:\s{0,2}[:=]|\s+(?:is|was|would be|must be|should be)\b(?! not\b))"
    r"[\s:*_]{0,8}",
    re.IGNORECASE,
)
_CORRECTED = re.compile(
    r"\b(?:wait|actually|correction|made a mistake|that(?:'s| is) (?:wrong|incorrect|not right))\b",
    re.IGNORECASE,
)
_JOINED = re.compile(r"[\s,$]*(?:(?:or|and)[\s,$]*)?(?:[a-z]\s*=\s*)?")
"""Between two boxes of one answer."""
_ASIDE = re.compile(
    r"[,;]? (?:where|because|since|as|which|when|if|instead|rather|so that|but|extraneous|after)\b"
    r"|, (?:not|so|and not|saving)\b| for \d|\. | \((?!\d)|\s[—–]\s|; ",
    re.IGNORECASE,
)
"""Behind an answer in prose: what is not a part of it any more."""
_ABOUT = re.compile(
    r"^(?:(?:about|approximately|exactly|only|just|equal to|a total of|therefore|simply|\([a-e]\)"
    r"|≈|\\approx)\s*)+",
    re.IGNORECASE,
)
_DENIED = re.compile(r"\b(?:is not|isn't|was not|cannot be|can't be|could not)\b", re.IGNORECASE)

_THIN = re.compile(r"\\[,;:!>]|\{,\}(?=\d)")
_VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_MONEY = re.compile(
    r"(?:\b(?:US|AU?|CA?|NZ|HK))?\s?\\?\$|[€£¥₹₩]|\\(?:pounds|euro)\b|\b(?:USD|EUR|GBP)\s(?=[\d.])"
)
_STYLE = re.compile(
    r"\\(?:underline|mathbf|boldsymbol|bm|textbf|emph|mathit)(?=\s?\{)|\\(?:text)?color\s?\{\w+\}"
    r"|\\(?:left|right|displaystyle|big|Big)\b|\\[()\[\]]|`|\*\*(?![\w(])"
)
_TEXT = re.compile(r"\\(?:text|textrm|textbf|textit|mathrm|mbox)\s{0,2}\{([^{}]*)\}")
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?![\d.]| \d)|\d+)(?:\.\d+)?|\.\d+"
_RATIONAL = re.compile(
    r"(?P<sign>(?:[-+]|\b(?:minus|negative)\b)?)\s{0,2}(?:"
    r"(?P<point>\d*\.\d*)\\overline\s?\{(?P<period>\d{1,50})\}"
    r"|(?P<whole>\d+)?\s{0,2}\\[dtc]?frac\s?(?:\{\s?(?P<top>-?\d+)\s?\}|(?P<t>\d))"
    r"\s?(?:\{\s?(?P<bottom>\d+)\s?\}|(?P<b>\d))"
    r"|(?P<mixed>\d+)\s{1,2}(?P<above>\d+)\s?[/⁄]\s?(?P<below>\d+)"
    rf"|(?P<number>{_NUMBER})"
    r"(?:[eE](?P<e>[-+]?\d+)|\s?(?:\\times|\\cdot|[×x*·])\s?10\s?(?:\^|\*\*)\s?\{?(?P<ten>-?\d+)\}?)?"
    rf"(?:\s?[/⁄]\s?(?P<divisor>{_NUMBER}))?"
    r"(?:\s(?P<scale>thousand|million|billion|trillion)\b)?"
    r")(?P<percent>\s?\\?%|\sper ?cent\b)?"
)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ONES = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty",
)
_SHORT = r"mm|cm|dm|km|kg|mg|ml|mL|ft|lbs?|oz|hrs?|mins?|secs?|mph|km/h|m/s|Hz|kHz|GB|MB|kB|yds?|mi"
_LINKS = r"a|an|per|each|of|in|the|every"
_UNIT = re.compile(
    rf"(?:\^\s?\{{?\s?\\circ\b\s?\}}?|°)\s?[CF]?\b|\s\([^\W\d_]{{3,}}(?: [^\W\d_]+)*\)"
    rf"|(?:(?<=\d)|(?<=\d\}})|\s)(?:{_SHORT}|[ap]\.?m\.?|AD|BC|BCE|CE)(?![\w(*/=+-])(?:\^?\{{?[23²³]\}}?)?"
    rf"|\s(?:(?:{_LINKS})\b|[JNWVLgmsh](?![\w^(*/=+-])|(?=[^\W\d_]{{3,}})[^\W\d_.'’-]+"
    r"(?:/[a-z]+)?(?:\^?\{?[23²³]\}?)?(?![\w(*/=+-]))"
)
_CHANGES = re.compile(
    r"\b(?:and|or|nor|not|if|to|plus|minus|times|over|more|less|least|most|than|below|above|divided"
    r"|squared|cubed|factorial|remainder|thousands?|hundreds?|dozens?|tens|lakhs?|crores?|gross"
    r"|scores?|pairs?|couples?|permille|kilo|halves|half|twice|thrice|once|(?:quarter|third|fourth|fifth|sixth|seventh"
    r"|eighth|ninth|tenth|hundredth|thousandth)s?|sqrt|pi|ln|log|exp|sinh?|cosh?|tanh?|alpha|beta"
    r"|gamma|delta|theta|phi|omega|lambda|sigma|mod)\b",
    re.IGNORECASE,
)
"""Words behind a number that make it another one."""
_OPPOSITES = [
    ("am", "pm"), ("increase", "decrease"), ("profit", "loss"), ("gain", "loss"),
    ("bc", "ad"), ("bce", "ce"), ("circ", "rad"),
    ("north", "south"), ("east", "west"), ("left", "right"), ("up", "down"),
]  # fmt: skip
_FACTORS = {
    "mm": ("length", Fraction(1, 1000)), "cm": ("length", Fraction(1, 100)),
    "m": ("length", Fraction(1)), "km": ("length", Fraction(1000)),
    "mg": ("mass", Fraction(1, 1000)), "g": ("mass", Fraction(1)), "kg": ("mass", Fraction(1000)),
    "sec": ("time", Fraction(1)), "s": ("time", Fraction(1)), "min": ("time", Fraction(60)),
    "hr": ("time", Fraction(3600)), "h": ("time", Fraction(3600)), "day": ("time", Fraction(86400)),
    "km/h": ("speed", Fraction(5, 18)), "m/s": ("speed", Fraction(1)),
}  # fmt: skip
_NAMES = {
    "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km", "centimeter": "cm",
    "centimetre": "cm", "millimeter": "mm", "gram": "g", "kilogram": "kg", "milligram": "mg",
    "second": "sec", "minute": "min", "hour": "hr",
}  # fmt: skip
"""Units that can be converted, by their long names."""

_BASE = re.compile(r"([0-9A-Za-z]+)\s?_\s?\{?\s?(?:\\text\{)?\s?(\d{1,2})[\s}]{0,4}")
_TIME = re.compile(r"(\d+)\s?:\s?(\d+)(?:\s?:\s?(\d+))?\s?([ap]\.?m\.?)?", re.IGNORECASE)
_DOTS = re.compile(r"\\[lc]?dots[bc]?\b|\.\.\.|…")
_WORDS = re.compile(r"[^\W\d_]+(?:[\s.,'’-]{1,3}[^\W\d_]+){0,20}\.?")
_RELATION = re.compile(
    r"\s*(?:\\(?:leq?|geq?|lt|gt|neq?|approx|sim|to|pm)\b(?!\{)|[<>≤≥≠])|.*(?:[-+*/]|\\times|\\cdot)\s*\Z"
    r"|.*(?:\\to(?![a-z])|//|\?)",
    re.DOTALL,
)
_FUNCTION = re.compile(
    r"(?<![A-Za-z\\])(a(?=sin|cos|tan))?(?:pi|theta|ln|log|(?:sin|cos|tan)h?|cot|sec|csc)(?![A-Za-z])"
)
_INFINITY = re.compile(r"(?<![A-Za-z\\])(?:inf|oo|infinity)(?![A-Za-z])|∞")


@dataclass(frozen=True, slots=True)
class Exact:
    """The exact value of an answer; a percentage is worth its number and its hundredth."""

    value: Fraction
    percent: bool = False
    unit: str = ""
    name: str = ""
    """The unknown that it is said of, as in "x = 5"."""

    def equals(self, other: Exact) -> bool:
        """Equal in value. Units count where both are known, or say the opposite."""
        if self.name and other.name and self.name != other.name:
            return False
        words = [set(one.unit.split()) for one in (self, other)]
        if any(a in words[i] and b in words[1 - i] for a, b in _OPPOSITES for i in (0, 1)):
            return False
        known = [_FACTORS.get(one.unit) for one in (self, other)]
        if known[0] and known[1]:
            (kind, factor), (other_kind, other_factor) = known[0], known[1]
            return kind == other_kind and self.value * factor == other.value * other_factor
        if self.percent == other.percent:
            return self.value == other.value
        part, whole = (self, other) if self.percent else (other, self)
        return whole.value in (part.value, part.value / 100)


def answered(text: str) -> str:
    """What follows the thinking of a model, at most `MOST_TEXT` characters from its end."""
    text = text.rstrip()[-MOST_TEXT:]
    thought, end, said = text.rpartition("</think>")
    if end:
        return said if said.strip() else thought
    return text.partition("<think>")[0]


def declared(text: str) -> str | None:
    """The answer that a text declares last; None without a declaration, and for one taken back.

    It is what \\boxed holds, or what follows "answer is", "answer:", "####" or <answer>, up
    to the end of its line or an aside ("because ...").
    """
    boxes = [
        (box.start(), held, box.end() + len(held) + 1)
        for box in _BOX.finditer(text)
        if (held := _to_brace(text[box.end() :])).strip()
    ]
    said = [
        (match.start(), head, match.end() + len(head))
        for match in _DECLARED.finditer(text)
        if (head := _head(text[match.end() :])) and (not boxes or re.match(r"[-+$\\(]*[\d.]", head))
    ]
    found = sorted([*boxes, *said])
    if not found:
        return None
    _, answer, end = found[-1]
    if _CORRECTED.search(text, end):
        return None
    for (_, before, stop), (start, _, _) in zip(boxes[-2::-1], boxes[:0:-1], strict=False):
        if found[-1] not in boxes or not _JOINED.fullmatch(text[stop:start]):
            break
        answer = f"{before}, {answer}"
    return answer[:MOST_ANSWER]


def _head(text: str) -> str:
    """The answer at the head of what follows a declaration."""
    begun = re.match(r"[\W_]*", text[:MOST_ANSWER])  # "\\[" may stand on a line of its own
    skipped = begun[0].rfind("\n") + 1 if begun else 0
    line = text[skipped:].lstrip().split("\n")[0].split("</answer>")[0]
    line = re.sub(r"\\boxed\s?", "", line[:MOST_ANSWER])
    aside = _ASIDE.search(line.replace("\\(", "  "))
    return (line[: aside.start()] if aside else line).strip().rstrip("!")


def undeclared(text: str) -> str:
    """What may hold the answer of a text that declares none: neither denied nor asked, no items of
    a list that only count ("2. Spheres (5)"); behind the last correction.
    """
    corrections = list(_CORRECTED.finditer(text))
    text = text[corrections[-1].end() :] if corrections else text
    text = re.sub(r"(?m)^[ \t]{0,8}(?:\d+[.)]|[-*•])[ \t]+[^\d=\n]*\(\d+\)[ \t]*$", "", text)
    sentences = re.findall(r"[^.!?\n]*(?:[.!?](?!\s|$)[^.!?\n]*)*[.!?\n]?", text)
    kept = (s for s in sentences if not _DENIED.search(s) and not s.rstrip().endswith("?"))
    return "".join(kept)


def _to_brace(text: str) -> str:
    """The text before the brace that closes what is open at its start."""
    depth = 1
    for place, character in enumerate(text[: MOST_ANSWER + 1]):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return text[:place]
    return text[:MOST_ANSWER]


def plain(text: str) -> str:
    """An answer without money, thin spaces, styles and delimiters of mathematics."""
    text = re.sub(r"\s+", " ", text[:MOST_ANSWER])
    for mark in _VULGAR:
        text = text.replace(mark, f" {unicodedata.normalize('NFKC', mark)}")
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda m: f"^{{{m[0].translate(_RAISED)}}}", text)
    text = re.sub(r"√\s?(\w+)", r"\\sqrt{\1}", text.replace("√(", "sqrt("))
    text = re.sub(r"^[–—](?=\s?[\d.\\])", "-", text.replace("−", "-"))
    text = _THIN.sub(lambda thin: "," if thin[0] == "{,}" else "", text.replace("~", " "))
    text = re.sub(r"\\(?:text|mathrm)\s?\{\s?([A-Za-z])\s?\}", r"\1", text)
    text = re.sub(
        r"^\\text\s?\{[^{}\d:=]*(?:answer|total|area|result|value)\s?[:=]?\s?\}\s?=?", "", text
    )
    text = text.replace("\\varnothing", "\\emptyset")
    text = _MONEY.sub("", _STYLE.sub("", text)).replace("$", "")
    text = text.strip().rstrip(",;:").strip()
    text = text if re.search(r"\.\.\.$", text) else text.rstrip(".").strip()
    inner = re.fullmatch(r"\{([^{}]*)\}|\\text\s?\{([^{}]*\d[^{}]*)\}", text)
    return next(filter(None, inner.groups()), "").strip() if inner else text


def exact(text: str) -> Exact | None:
    """The value of an answer that is a rational number, perhaps with a unit; None for the rest."""
    text = _ABOUT.sub("", plain(text))
    text = _TEXT.sub(r" \1", text)
    text = re.sub(r"\s+", " ", text).strip().rstrip(".,;:").strip()
    if len(text) > MOST_DIGITS:
        return None
    named = re.match(r"([A-Za-z])\s?=\s?(?=[-+\d.\\])", text)
    name = named[1] if named else ""
    text = _digits(text[named.end() :] if named else text)
    found = _RATIONAL.match(text)
    if found is None:
        return None
    at = found.end()
    while (unit := _UNIT.match(text, at)) and not _CHANGES.search(unit[0]):
        at = unit.end()
    if text[at:].strip(" .,;:*_"):
        return None
    value = _value(found)
    percent = found["percent"] is not None
    return value if value is None else Exact(value, percent, _unit(text[found.end() :]), name)


def _digits(text: str) -> str:
    """A number in words as one in digits: "negative five" as -5."""
    sign, _, word = text.rpartition(" ")
    first, *rest = text.split(" ")
    if word.lower() in _ONES and sign.lower() in ("", "negative", "minus"):
        return f"{'-' if sign else ''}{_ONES.index(word.lower())}"
    if first.lower() in _ONES and rest:
        return " ".join([str(_ONES.index(first.lower())), *rest])
    return text


def _unit(text: str) -> str:
    """A unit in one spelling: small, singular, short where it can be converted."""
    words = re.sub(r"[().^{}\\]", " ", text).split()
    singular = [
        w.casefold() if len(w) > 2 or w in ("AM", "PM", "BC", "AD", "CE") else w for w in words
    ]
    singular = [
        w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in singular
    ]
    joined = "".join(text.split()).replace(".", "").casefold()
    if joined in ("am", "pm"):
        return joined
    return " ".join(_NAMES.get(word, word) for word in singular)


def _value(found: re.Match[str]) -> Fraction | None:
    group = found.groupdict()
    power = int(group["e"] or group["ten"] or 0)
    if abs(power) > MOST_DIGITS:
        return None
    below: Fraction | int = 1
    whole = 0
    if group["period"]:
        ahead = group["point"].partition(".")[2]
        repeated = Fraction(int(group["period"]), 10 ** len(group["period"]) - 1)
        value = Fraction(group["point"] + "0") + repeated / 10 ** len(ahead)
    elif group["number"]:
        value = Fraction(re.sub("[, ]", "", group["number"])) * Fraction(10) ** power
        below = Fraction(re.sub("[, ]", "", group["divisor"] or "1"))
        value *= _SCALES.get(group["scale"], 1)
    else:
        value = Fraction(group["top"] or group["t"] or group["above"])
        below = int(group["bottom"] or group["b"] or group["below"])
        whole = int(group["whole"] or group["mixed"] or 0)
    if not below:
        return None
    value = whole + Fraction(value) / below
    return -value if group["sign"] not in ("", "+") else value


def spelled(reference: str, answer: str) -> bool | None:
    """The verdict on answers that are compared as they are spelled; None for all others.

    That is: words, times of day, ratios, numbers with a base, and lists with dots ("1, 2, ..., n").
    An answer without a base is read in the base of the reference.
    """
    reference, answer = (
        re.sub(r"\s+", " ", _TEXT.sub(r" \1", plain(text))).strip() for text in (reference, answer)
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
    text = _TEXT.sub(r"\1", plain(text)).strip()
    parts = re.findall(r"[^\W\d_]+", text)
    if not _WORDS.fullmatch(text) or _FUNCTION.fullmatch(text) or _INFINITY.fullmatch(text):
        return None
    if re.fullmatch(r"[A-Z]{2,4}", text):
        return text
    return " ".join(parts).casefold() if max(map(len, parts)) >= 3 else None


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


def unreadable(text: str) -> bool:
    """Whether the library would read an answer as the number that is a part of it.

    It passes over \\text{...}, and over relations and operators at the ends.
    """
    text = plain(text)
    bare = _TEXT.sub(lambda held: "" if not re.search(r"[A-Za-z0-9/!]", held[1]) else held[0], text)
    return bool(_TEXT.search(bare) or _RELATION.match(text))


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
        held = _to_brace(text[bracket.end() :].translate(braces)).translate(braces)
        rest = text[bracket.end() + len(held) + 1 :]
        text = f"{text[: bracket.start()]}{command}{{{held}}}{rest}"
    return text


def unknowns(text: str) -> bool:
    """Whether an answer holds letters that are neither commands, units nor known constants."""
    bare = re.sub(r"\\[A-Za-z]+", " ", _TEXT.sub(" ", latex(text)))
    letters = re.findall(r"[A-Za-z]", _UNIT.sub(" ", bare))
    return bool(set(letters) - {"e", "i", "E"} or _CHANGES.search(bare))


def unknown_words(text: str) -> list[str]:
    """Words of a formula that are neither functions nor commands nor inside \\text{...}."""
    bare = re.sub(
        r"\\(?:text|mathrm|textrm|mbox|operatorname|begin|end)\s?\{[^{}]*\}|\\[A-Za-z]+", " ", text
    )
    return re.findall(r"[^\W\d_]{3,}", bare)
