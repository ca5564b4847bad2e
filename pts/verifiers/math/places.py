"""Where the final answer of a text stands."""

from __future__ import annotations

import re

from pts.verifiers.thinking import after_thinking

MOST_TEXT = 20_000
"""Characters of a completion that are read, from its end."""
MOST_ANSWER = 2_000
"""Characters of an answer; a longer one is none."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,4}\{")
_DECLARED = re.compile(
    r"####\s{0,4}|<answer>"
    r"|\banswer\b[*_]{0,4}(?:\s{0,2}[:=]|\s+(?:is|was|would be|must be|should be)\b(?! not\b))"
    r"[\s:*_]{0,8}"
    r"|\banswers\b[*_]{0,4}(?:\s{0,2}:|\s+(?:are|were)\b)[\s:*_]{0,8}"
    r"(?=(?:\$|\\[(\[{]|[({\[])*\s?(?:[A-Za-z]\s?=|[-+−–±.√]?\d|\\[A-Za-z]))",
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
    r"|, (?:not|so|and not|saving)\b| for \d|\. | \((?!\d)"
    r"|; |, (?:both|each|respectively|in (?:any|either) order)\b"
    r"|\s[—–]\s(?!\$?\d[\d.,]*\$?%?(?:\s[a-z]+)?\W*\Z)",
    re.IGNORECASE,
)
"""Behind an answer in prose: what is not a part of it any more."""
_DENIED = re.compile(r"\b(?:is not|isn't|was not|cannot be|can't be|could not)\b", re.IGNORECASE)


def answered(text: str) -> str:
    """What follows the thinking of a model, at most `MOST_TEXT` characters from its end."""
    return after_thinking(text).rstrip()[-MOST_TEXT:]


def declared(text: str) -> str | None:
    """The answer that a text declares last; None without a declaration, and for one taken back.

    It is what \\boxed holds, or what follows "answer is", "answer:", "####" or <answer>, up
    to the end of its line or an aside ("because ...").
    """
    boxes = [
        (box.start(), held, box.end() + len(held) + 1)
        for box in _BOX.finditer(text)
        if (held := to_brace(text[box.end() :])).strip()
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


def to_brace(text: str) -> str:
    """The text before the brace that closes what is open at its start."""
    depth = 1
    for place, character in enumerate(text[: MOST_ANSWER + 1]):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if not depth:
            return text[:place]
    return text[:MOST_ANSWER]
