"""The stories behind the word problems: what happens, the sum it asks for, and the English.

A `Story` is the canonical content of one problem (family, names, item, numbers, distractor). Its
text, its identity and its split are functions of that content alone, so no story can ever sit in
two splits. Families differ in structure and share one vocabulary:

    shop      one owner; things are bought, found, sold, given away, multiplied
    boxes     so many boxes of so many each, then the same changes
    compare   a chain of owners, each told relative to the one before
    van       a load that changes from stop to stop
    swap      two owners who hand things to each other; half of what happens does not concern the
              one who is asked about
    relay     an owner told relative to another one, and then changes: sentences of `compare` and
              `shop` in an order that neither has

The last two are held out: they exist to be tested on. `swap` is in the base model's text, `relay`
in no text that any model is trained on.

Quantities are whole numbers from 2 to the difficulty's ceiling. Not covered: division, fractions,
units, any wording beyond these templates.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

from align.tasks.base import Split

Family: TypeAlias = Literal["shop", "boxes", "compare", "van", "swap", "relay"]
Difficulty: TypeAlias = Literal["easy", "medium", "hard", "long"]
Op: TypeAlias = Literal["+", "-", "*"]

FAMILIES: tuple[Family, ...] = ("shop", "boxes", "compare", "van")
HELD_OUT: tuple[Family, ...] = ("swap", "relay")

SHE = ("Ann", "Eva", "Mia", "Zoe", "Ida", "Amy", "Lucy", "Rosa", "Nina", "Kate")
HE = ("Tom", "Ben", "Leo", "Sam", "Max", "Dan", "Paul", "Hugo", "Omar", "Jack")
ITEMS = (
    "apples", "books", "cards", "coins", "eggs", "keys", "lamps", "maps",
    "nuts", "pens", "plums", "rings", "seeds", "shells", "stamps", "toys",
)  # fmt: skip

_GAINS = ("buys {n} more", "finds {n} more", "gets {n} more")
_LOSSES = ("sells {n}", "loses {n}", "gives away {n}")
_STOPS = ("first", "second", "third", "fourth", "fifth", "sixth")


@dataclass(frozen=True, slots=True)
class Level:
    """A difficulty: the least and most steps, and the largest quantity."""

    min_steps: int
    max_steps: int
    ceiling: int


LEVELS: dict[Difficulty, Level] = {
    "easy": Level(1, 2, 199),
    "medium": Level(2, 4, 299),
    "hard": Level(3, 5, 299),
    "long": Level(4, 6, 299),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One calculation of the solution: `left op right`."""

    left: int
    op: Op
    right: int

    @property
    def value(self) -> int:
        match self.op:
            case "+":
                return self.left + self.right
            case "-":
                return self.left - self.right
            case _:
                return self.left * self.right


@dataclass(frozen=True, slots=True)
class Story:
    """The content of one problem.

    `steps` leads from the first quantity to the answer. `words` picks among synonymous phrases,
    one index a step. `others` are quantities that are told and not needed; `aside` is a distractor
    `(quantity, item, sentence it follows)`.
    """

    family: Family
    names: tuple[str, ...]
    item: str
    steps: tuple[Step, ...]
    words: tuple[int, ...]
    others: tuple[int, ...] = ()
    aside: tuple[int, str, int] | None = None

    @property
    def answer(self) -> int:
        return self.steps[-1].value

    @property
    def digest(self) -> str:
        """20 hexadecimal digits that depend on the content alone."""
        content = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(content.encode(), digest_size=10).hexdigest()

    @property
    def split(self) -> Split:
        """Eight tenths of all stories are train, one tenth each dev and test."""
        bucket = int(self.digest[:8], 16) % 10
        return "dev" if bucket == 8 else "test" if bucket == 9 else "train"

    @property
    def text(self) -> str:
        """The question, in English."""
        sentences = _TELL[self.family](self)
        if self.aside is not None:
            number, item, after = self.aside
            owner = "There are" if self.family == "van" else f"{self.names[0]} also has"
            sentences.insert(after, f"{owner} {number} {item}{_ALSO[self.family]}.")
        return " ".join(sentences)


def draw(rng: random.Random, family: Family, difficulty: Difficulty, distractors: float) -> Story:
    """Draw a story; `distractors` is the probability of a distractor sentence."""
    level = LEVELS[difficulty]
    n = rng.randint(level.min_steps, level.max_steps)
    steps = _chain(rng, family, n, level.ceiling)
    item = rng.choice(ITEMS)
    people = _people(rng, family, n)
    aside = None
    if family != "swap" and rng.random() < distractors:
        other = rng.choice([i for i in ITEMS if i != item])
        aside = (rng.randint(11, 99), other, rng.randint(1, n))
    words = tuple(rng.randrange(3) for _ in steps)
    others = _others(rng, steps) if family == "swap" else ()
    return Story(
        family, tuple(people) if family != "van" else (), item, steps, words, others, aside
    )


def _people(rng: random.Random, family: Family, n: int) -> list[str]:
    """Names in the order of their entrance; those of a relay answer to different pronouns."""
    match family:
        case "compare":
            return rng.sample(SHE + HE, n + 1)
        case "swap":
            return rng.sample(SHE + HE, 2)
        case "relay":
            return rng.sample([rng.choice(SHE), rng.choice(HE)], 2)
        case _:
            return rng.sample(SHE + HE, 1)


def _others(rng: random.Random, steps: tuple[Step, ...]) -> tuple[int, ...]:
    """What the other owner of a swap starts with (always enough), and may lose at each step."""
    losses = [rng.randint(2, 19) for _ in steps]
    handed = sum(step.right for step in steps if step.op == "+")
    return (handed + sum(losses) + rng.randint(5, 50), *losses)


def _chain(rng: random.Random, family: Family, n: int, ceiling: int) -> tuple[Step, ...]:
    while True:
        value = rng.randint(11, min(99, ceiling))
        steps: list[Step] = []
        while len(steps) < n:
            times = family == "boxes" and not steps
            step = _step(rng, value, ceiling, "*" if times else _op(rng, family))
            if step is None:
                break
            steps.append(step)
            value = step.value
        if len(steps) == n:
            return tuple(steps)


def _op(rng: random.Random, family: Family) -> Op:
    ops: tuple[Op, ...] = ("+", "-") if family in ("van", "swap") else ("+", "+", "-", "-", "*")
    return rng.choice(ops)


def _step(rng: random.Random, value: int, ceiling: int, op: Op) -> Step | None:
    match op:
        case "+":
            top = min(99, ceiling - value)
            return Step(value, op, rng.randint(11, top)) if top >= 11 else None
        case "-":
            top = min(99, value - 2)
            return Step(value, op, rng.randint(11, top)) if top >= 11 else None
        case _:
            top = min(9, ceiling // value)
            return Step(value, op, rng.randint(2, top)) if value < 100 and top >= 2 else None


def _pronoun(name: str) -> str:
    return "She" if name in SHE else "He"


def _change(step: Step, word: int) -> str:
    match step.op:
        case "+":
            return _GAINS[word].format(n=step.right)
        case "-":
            return _LOSSES[word].format(n=step.right)
        case _:
            return f"ends up with {step.right} times as many"


def _changes(story: Story, first: int, owner: str) -> list[str]:
    who = _pronoun(owner)
    pairs = list(zip(story.steps, story.words, strict=True))[first:]
    return [f"{who} {_change(step, word)}." for step, word in pairs]


def _tell_shop(story: Story) -> list[str]:
    name = story.names[0]
    start = f"{name} has {story.steps[0].left} {story.item}."
    return [start, *_changes(story, 0, name), f"How many {story.item} does {name} have?"]


def _tell_boxes(story: Story) -> list[str]:
    name, first = story.names[0], story.steps[0]
    start = f"{name} has {first.right} boxes with {first.left} {story.item} each."
    return [start, *_changes(story, 1, name), f"How many {story.item} does {name} have?"]


def _compared(step: Step, name: str, before: str) -> str:
    how = {"+": "more than", "-": "fewer than", "*": "times as many as"}[step.op]
    return f"{name} has {step.right} {how} {before}."


def _tell_compare(story: Story) -> list[str]:
    lines = [f"{story.names[0]} has {story.steps[0].left} {story.item}."]
    for step, before, name in zip(story.steps, story.names, story.names[1:], strict=False):
        lines.append(_compared(step, name, before))
    return [*lines, f"How many {story.item} does {story.names[-1]} have?"]


def _tell_van(story: Story) -> list[str]:
    lines = [f"A van leaves with {story.steps[0].left} {story.item}."]
    for stop, step in zip(_STOPS, story.steps, strict=False):
        what = "put in" if step.op == "+" else "taken out"
        lines.append(f"At the {stop} stop {step.right} are {what}.")
    return [*lines, f"How many {story.item} are in the van?"]


def _tell_swap(story: Story) -> list[str]:
    asked, other = story.names
    item, handed = story.item, story.others[1:]
    lines = [f"{other} has {story.others[0]} {item} and {asked} has {story.steps[0].left}."]
    for step, word, n in zip(story.steps, story.words, handed, strict=True):
        if word == 0:
            lines.append(f"{other} loses {n}.")
        giver, taker = (other, asked) if step.op == "+" else (asked, other)
        lines.append(f"{giver} gives {step.right} to {taker}.")
    return [*lines, f"How many {item} does {asked} have?"]


def _tell_relay(story: Story) -> list[str]:
    first, last = story.names
    start = f"{first} has {story.steps[0].left} {story.item}."
    changes = [_compared(story.steps[0], last, first), *_changes(story, 1, last)]
    return [start, *changes, f"How many {story.item} does {last} have?"]


_TELL: dict[Family, Callable[[Story], list[str]]] = {
    "shop": _tell_shop,
    "boxes": _tell_boxes,
    "compare": _tell_compare,
    "van": _tell_van,
    "swap": _tell_swap,
    "relay": _tell_relay,
}

_ALSO: dict[Family, str] = {
    "shop": "", "boxes": "", "compare": "", "van": " on the road", "swap": "", "relay": "",
}  # fmt: skip
