"""What a final answer is worth exactly: rational numbers with their units, in all spellings.

Whole numbers, decimals, repeating ones too, fractions, mixed numbers, powers of ten, percentages,
money and small numbers in words.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from pts.verifiers.math.places import MOST_ANSWER

MOST_DIGITS = 400
"""Digits of a number, and the largest power of ten, that are written out."""

_ABOUT = re.compile(
    r"^(?:(?:about|approximately|exactly|only|just|equal to|a total of|either|both|therefore"
    r"|simply|\([a-e]\)|≈|\\approx)\s*)+",
    re.IGNORECASE,
)
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
TEXT = re.compile(r"\\(?:text|textrm|textbf|textit|mathrm|mbox)\s{0,2}\{([^{}]*)\}")
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
UNIT = re.compile(
    rf"(?:\^\s?\{{?\s?\\circ\b\s?\}}?|°)\s?[CF]?\b|\s\([^\W\d_]{{3,}}(?: [^\W\d_]+)*\)"
    rf"|(?:(?<=\d)|(?<=\d\}})|\s)(?:{_SHORT}|[ap]\.?m\.?|AD|BC|BCE|CE)(?![\w(*/=+-])(?:\^?\{{?[23²³]\}}?)?"
    rf"|\s(?:(?:{_LINKS})\b|[JNWVLgmsh](?![\w^(*/=+-])|(?=[^\W\d_]{{3,}})[^\W\d_.'’-]+"
    r"(?:/[a-z]+)?(?:\^?\{?[23²³]\}?)?(?![\w(*/=+-]))"
)
CHANGES = re.compile(
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


def plain(text: str) -> str:
    """An answer without money, thin spaces, styles and delimiters of mathematics."""
    text = re.sub(r"\s+", " ", text[:MOST_ANSWER])
    for mark in _VULGAR:
        text = text.replace(mark, f" {unicodedata.normalize('NFKC', mark)}")
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+", lambda m: f"^{{{m[0].translate(_RAISED)}}}", text)
    text = re.sub(r"√\s?(\w+)", r"\\sqrt{\1}", text.replace("√(", "sqrt("))
    text = re.sub(r"(^|[=(,]\s?)[–—](?=\s?[\d.\\])", r"\1-", text.replace("−", "-"))
    text = _THIN.sub(lambda thin: "," if thin[0] == "{,}" else "", text.replace("~", " "))
    text = re.sub(r"\\(?:text|mathrm)\s?\{\s?([A-Za-z])\s?\}", r"\1", text)
    text = re.sub(
        r"^\\text\s?\{[^{}\d:=]*(?:[Aa]nswer|[Tt]otal|[Aa]rea|[Rr]esult|[Vv]alue)\s?[:=]?\s?\}\s?=?",
        "",
        text,
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
    text = TEXT.sub(r" \1", text)
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
    while (unit := UNIT.match(text, at)) and not CHANGES.search(unit[0]):
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
