"""What a written answer is worth, beside the verifiers of `pts`: registry `SCORES`.

    SCORES["answers"](["Paris", "City of Paris"], "It is Paris.", {})     # {"exact": 0.0}

A score is a function of the reference, the answer's text and the question's row; it gives named
values from 0 to 1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from align.benchmarks.instructions import instruction_scores
from align.benchmarks.rows import Row

Score: TypeAlias = Callable[[Any, str, Row], Mapping[str, float]]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_REFUSALS = re.compile(
    r"\b(i (do not|don't|cannot|can't|could not|couldn't|am not|'m not) (know|sure|aware|recall|"
    r"answer|find|provide|tell|have)|i'?m (not sure|unsure|sorry)|unknown to me|no (information|"
    r"record)|not (able|aware|certain)|unable to)\b"
)


def normalised(text: str) -> str:
    """Lower case without punctuation, articles and runs of white space (Rajpurkar et al. 2016)."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def answers_score(reference: Any, text: str, row: Row) -> dict[str, float]:
    """`exact`: the answer's first line is one of the accepted ones, normalised."""
    said = normalised(_first_line(text))
    return {"exact": float(any(said == normalised(str(known)) for known in _several(reference)))}


def f1_score(reference: Any, text: str, row: Row) -> dict[str, float]:
    """`exact` and `f1`, the best over the accepted answers, as DROP counts (Dua et al. 2019).

    An accepted answer may be a list of spans. Where it holds numbers, an answer with none of them
    has f1 0. The answer is one span, its first line.
    """
    found = [_drop(known, _first_line(text)) for known in _several(reference)]
    return {"exact": max(e for e, _ in found), "f1": max(f for _, f in found)}


def simpleqa_score(reference: Any, text: str, row: Row) -> dict[str, float]:
    """`correct`, `not_attempted`, `incorrect` (Wei et al. 2024), by rule and not by a judge.

    Correct: an accepted answer stands in the text as words. Not attempted: it says that it does not
    know, or nothing. The F1 of a whole benchmark, 2 / (1 / accuracy given an attempt + 1 /
    correct), is made of the means.
    """
    said = f" {normalised(text)} "
    correct = any(f" {normalised(str(known))} " in said for known in _several(reference))
    refused = not said.strip() or bool(_REFUSALS.search(" ".join(text.lower().split())))
    none = refused and not correct
    return {
        "correct": float(correct),
        "not_attempted": float(none),
        "incorrect": float(not correct and not none),
    }


SCORES: dict[str, Score] = {
    "answers": answers_score,
    "f1": f1_score,
    "simpleqa": simpleqa_score,
    "instructions": instruction_scores,
}
"""By the names that a benchmark's `score` takes; all other names are verifiers."""

MAIN = {"answers": "exact", "f1": "f1", "simpleqa": "correct", "instructions": "binary_strict"}
"""The value that stands for each of them in a table."""


def _several(reference: Any) -> Sequence[Any]:
    found = reference if isinstance(reference, list | tuple) else [reference]
    return found or [""]


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _drop(known: Any, said: str) -> tuple[float, float]:
    spans = [str(span) for span in known] if isinstance(known, list | tuple) else [str(known)]
    gold = [_words(span) for span in spans]
    mine = _words(said)
    exact = float(len(gold) == 1 and " ".join(gold[0]) == " ".join(mine))
    best = max(_bag_f1(bag, mine) for bag in gold)
    return exact, best / max(len(gold), 1)


def _words(text: str) -> list[str]:
    """Words of a span; numbers in one spelling."""
    found = []
    for word in re.split(r"[\s-]+", text.lower()):
        number = _number(word)
        bare = number if number is not None else normalised(word)
        found += bare.split()
    return found


def _number(word: str) -> str | None:
    try:
        value = float(word.strip(string.punctuation.replace(".", "")).replace(",", ""))
    except ValueError:
        return None
    return repr(value) if np.isfinite(value) else None


def _bag_f1(gold: Sequence[str], said: Sequence[str]) -> float:
    numbers = {word for word in gold if _number(word) is not None}
    if numbers and not numbers & set(said):
        return 0.0
    common = (Counter(set(gold)) & Counter(set(said))).total()
    if not common:
        return 0.0
    precision, recall = common / len(set(said)), common / len(set(gold))
    return 2 * precision * recall / (precision + recall)
