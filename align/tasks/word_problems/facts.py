"""A made-up world for the base model to know by heart, some of it well and some of it badly.

Each fact is a question with a one-word answer, e.g. "Where does Brano Kelt live?" "Vossa". Its
tier says how often the pretraining text tells it: `common` facts a base model learns, `rare` ones
it half remembers, `unseen` ones it was never told. A bogus question asks the same about somebody
who does not exist. Refusal data need all four kinds. Nothing here is about the real world.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Literal, TypeAlias

Tier: TypeAlias = Literal["common", "rare", "unseen"]

_FIRST = (
    "Brano", "Celka", "Dorin", "Elvi", "Faro", "Gisla", "Haldo", "Irma", "Jorun", "Kesti",
    "Lomar", "Mirel", "Nevo", "Orla", "Pavo", "Quina", "Rudek", "Silva", "Tarn", "Uldis",
)  # fmt: skip
_LAST = ("Kelt", "Morn", "Vask", "Tolm", "Birk", "Sund", "Garn", "Prell", "Dask", "Holm")
_TOWNS = ("Vossa", "Lurn", "Pelgo", "Mardin", "Osk", "Tevra", "Quill", "Brask", "Nolde", "Fenn")
_TRADES = ("baker", "pilot", "tailor", "farmer", "doctor", "singer", "miner", "painter")
_PETS = ("goat", "parrot", "cat", "horse", "tortoise", "dog", "rabbit", "crow")

_RELATIONS = {
    "home": ("Where does {who} live?", _TOWNS),
    "trade": ("What is the trade of {who}?", _TRADES),
    "pet": ("Which animal does {who} keep?", _PETS),
}
_TIERS: tuple[Tier, ...] = ("common", "rare", "unseen")
_PEOPLE = 60
_SEED = 20241212


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact, and the bogus question that resembles it (about nobody)."""

    id: str
    question: str
    answer: str
    tier: Tier
    bogus: str


@functools.cache
def facts() -> tuple[Fact, ...]:
    """The whole world: 60 people, three facts each, a third of the people in each tier."""
    rng = random.Random(_SEED)
    names = [f"{first} {last}" for first in _FIRST for last in _LAST]
    rng.shuffle(names)
    people, nobody = names[:_PEOPLE], names[_PEOPLE:]
    world: list[Fact] = []
    for i, who in enumerate(people):
        for relation, (question, answers) in _RELATIONS.items():
            bogus = question.format(who=nobody[(3 * i + len(world)) % len(nobody)])
            asked = question.format(who=who)
            fact = Fact(f"{relation}-{i:02d}", asked, rng.choice(answers), _TIERS[i % 3], bogus)
            world.append(fact)
    return tuple(world)
