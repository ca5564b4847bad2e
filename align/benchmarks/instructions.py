"""Instruction following as IFEval checks it (Zhou et al. 2023), by the package `if-verifiable`.

    rows = generated("200")           # prompts of our own with one to three checkable instructions

IFEval's own prompts lie on the hub (`hf:google/IFEval:train`). Without a network, prompts are
generated: a request and up to three instructions that do not contradict each other, their
parameters drawn. They are easier than IFEval's and their scores are not IFEval's. Instructions
whose checks load data from the network (sentences, capital words) are left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from align.errors import RecipeError
from pts.errors import DataError, MissingExtra

TASKS = (
    "Write a short letter to a friend about", "Describe to a child", "Write an advertisement for",
    "Explain the history of", "Write a short story about", "List the advantages of",
    "Write a short news report about", "Give advice to a beginner about",
)  # fmt: skip
TOPICS = (
    "a bicycle", "a public library", "a vegetable garden", "the sea in winter", "a small bakery",
    "learning to swim", "a train journey", "an old clock", "rainwater", "a street market",
    "keeping bees", "a paper map", "a mountain hut", "cooking soup", "a lighthouse",
)  # fmt: skip
KEYWORDS = ("morning", "colour", "friend", "water", "simple", "often", "quiet", "careful")


def _existence(rng: random.Random) -> dict[str, Any]:
    return {"keywords": rng.sample(KEYWORDS, 2)}


def _forbidden(rng: random.Random) -> dict[str, Any]:
    return {"forbidden_words": rng.sample(("very", "really", "thing", "nice", "good"), 2)}


def _words(rng: random.Random) -> dict[str, Any]:
    relation = rng.choice(("less than", "at least"))
    return {"num_words": rng.choice((40, 60, 80)), "relation": relation}


def _paragraphs(rng: random.Random) -> dict[str, Any]:
    return {"num_paragraphs": rng.choice((2, 3))}


def _bullets(rng: random.Random) -> dict[str, Any]:
    return {"num_bullets": rng.choice((2, 3))}


def _plain(rng: random.Random) -> dict[str, Any]:
    return {}


DRAWN: Mapping[str, tuple[str, Callable[[random.Random], dict[str, Any]]]] = {
    "keywords:existence": ("words", _existence),
    "keywords:forbidden_words": ("words", _forbidden),
    "length_constraints:number_words": ("length", _words),
    "length_constraints:number_paragraphs": ("length", _paragraphs),
    "detectable_content:postscript": ("end", lambda rng: {"postscript_marker": "P.S."}),
    "detectable_format:number_bullet_lists": ("format", _bullets),
    "detectable_format:title": ("title", _plain),
    "detectable_format:number_highlighted_sections": ("marks", lambda rng: {"num_highlights": 2}),
    "change_case:english_lowercase": ("case", _plain),
    "change_case:english_capital": ("case", _plain),
    "punctuation:no_comma": ("commas", _plain),
    "startend:quotation": ("quotation", _plain),
    "startend:end_checker": ("end", lambda rng: {"end_phrase": "That is all."}),
}  # fmt: skip
"""Instructions by IFEval's ids: a group of which a prompt has one at most, and its parameters."""


def generated(spec: str) -> list[dict[str, Any]]:
    """Prompts in IFEval's own columns: `key`, `prompt`, `instruction_id_list`, `kwargs`.

    Args:
        spec: how many, or `N:SEED`.

    Raises:
        RecipeError: it is neither.
        MissingExtra: the package is not installed.
    """
    number, _, seed = spec.partition(":")
    if not number.isdecimal() or not int(number):
        raise RecipeError(f"source 'instructions:{spec}': give a number of prompts, or N:SEED")
    checkers = _checkers()
    rows, rng = [], random.Random(f"instructions|{seed or 0}")
    for key in range(int(number)):
        chosen = _draw(rng, 1 + key % 3)
        parts = [f"{rng.choice(TASKS)} {rng.choice(TOPICS)}."]
        kwargs = []
        for name in chosen:
            given = DRAWN[name][1](rng)
            parts.append(checkers[name](name).build_description(**given))
            kwargs.append(given)
        rows.append(
            {"key": key, "prompt": " ".join(parts), "instruction_id_list": chosen, "kwargs": kwargs}
        )
    return rows


def _draw(rng: random.Random, n: int) -> list[str]:
    found: dict[str, str] = {}
    for name in rng.sample(list(DRAWN), len(DRAWN)):
        if len(found) < n:
            found.setdefault(DRAWN[name][0], name)
    return list(found.values())


def instruction_scores(reference: Any, text: str, row: Mapping[str, Any]) -> dict[str, float]:
    """IFEval's four scores: all instructions followed, or their share, read strictly or loosely.

    The row has IFEval's columns; the reference is not used.

    Raises:
        DataError: an instruction that has no check.
        MissingExtra: the package is not installed.
    """
    checkers = _checkers()
    from if_verifiable.common import evaluate_instructions

    strange = [name for name in row["instruction_id_list"] if name not in checkers]
    if strange:
        raise DataError(f"instruction {strange[0]!r}: if-verifiable has no check of it")
    given = [{k: v for k, v in one.items() if v is not None} for one in row["kwargs"]]
    _, scores = evaluate_instructions(
        response=text,
        instruction_id_list=list(row["instruction_id_list"]),
        kwargs_list=given,
        prompt=row["prompt"],
        instruction_registry=checkers,
    )
    names = ("binary_strict", "binary_loose", "partial_strict", "partial_loose")
    return {name: float(getattr(scores, name)) for name in names}


def _checkers() -> Mapping[str, Any]:
    try:
        from if_verifiable.ifeval.instructions_registry import (
            INSTRUCTION_DICT,
        )
    except ImportError:
        raise MissingExtra("if-verifiable", "benchmarks") from None
    found: Mapping[str, Any] = INSTRUCTION_DICT
    return found
