"""What is made of a judge's scores: preference pairs in the report's proportion, or a best answer.

drawn = draw_comparisons(questions, most=2, seed=0)
found = judge_both(judge, [comparison.case for comparison in drawn])
pairs, counts = choose_pairs(drawn, found, settings, limit=0, seed=0)
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from pydantic import TypeAdapter

from align.judging.orders import Axis, BothOrders, preference
from align.judging.prompt import Case, conversation_of
from align.judging.settings import JudgedPairsConfig
from pts.files import dumps, replacing
from pts.types import Ids, Problem


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer that may be shown to the judge; it was not cut."""

    source: str
    """"policy", or the name of the generator that gave it."""
    ids: Ids
    """The policy's, end of turn included."""
    text: str
    right: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """A question and the answers to it, no text twice."""

    problem: Problem
    prompt_ids: Ids
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to a question."""

    question: Answered
    first: Candidate
    second: Candidate

    @property
    def case(self) -> Case:
        """What the judge is shown."""
        return Case(
            conversation_of(self.question.problem.prompt), (self.first.text, self.second.text)
        )


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a judged pair: who gave it, and its scores, means of the two orders."""

    source: str
    accuracy: float
    overall: float


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A preferred and another answer to one prompt, as ids."""

    problem_id: str
    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids
    by: Axis
    """The score by which the chosen side is better."""
    chosen: Side
    rejected: Side


_PAIR = TypeAdapter(JudgedPair)


def draw_comparisons(questions: Iterable[Answered], most: int, seed: int) -> list[Comparison]:
    """At most so many pairs of answers of each question, drawn evenly from all that there are."""
    found = []
    for question in questions:
        pairs = list(combinations(question.candidates, 2))
        if len(pairs) > most:
            rng = random.Random(f"{seed}|{question.problem.id}")
            pairs = [pairs[k] for k in sorted(rng.sample(range(len(pairs)), most))]
        found += [Comparison(question, first, second) for first, second in pairs]
    return found


def choose_pairs(
    compared: Sequence[Comparison],
    found: Sequence[BothOrders],
    config: JudgedPairsConfig,
    limit: int,
    seed: int,
) -> tuple[list[JudgedPair], dict[str, int]]:
    """As many pairs as the proportion of the two kinds allows, at most `limit` (0: all).

    A comparison makes one pair at most. Which of those that could serve for either kind serve for
    which is drawn by the seed. The counts add up: each comparison is a pair, tied, flipped,
    UNSCORED, or left out for the proportion (or the limit).
    """
    said: dict[Axis, list[str]] = {
        axis: [preference(both, axis, config.margin, config.flips) for both in found]
        for axis in ("accuracy", "overall")
    }
    order = list(range(len(compared)))
    random.Random(seed).shuffle(order)
    clear = {axis: {k for k in order if said[axis][k] in ("first", "second")} for axis in said}
    kinds = _shares(order, clear["accuracy"], clear["overall"], config.accuracy_share, limit)
    pairs = [
        _pair(compared[k], found[k], kinds[k], said[kinds[k]][k] == "second") for k in sorted(kinds)
    ]
    counts = Counter(
        _fate(said["accuracy"][k], said["overall"][k]) for k in order if k not in kinds
    )
    by = Counter(kinds.values())
    return pairs, {
        "comparisons": len(compared),
        "pairs": len(pairs),
        "pairs_by_accuracy": by["accuracy"],
        "pairs_by_overall": by["overall"],
        **{f"comparisons_{why}": counts[why] for why in ("tied", "flipped", "unscored", "spare")},
    }


def _fate(accuracy: str, overall: str) -> str:
    """Why a comparison became no pair."""
    said = {accuracy, overall}
    if said & {"first", "second"}:
        return "spare"
    return "unscored" if "unscored" in said else "flipped" if "flip" in said else "tied"


def _shares(
    order: Sequence[int], accuracy: set[int], overall: set[int], share: float, limit: int
) -> dict[int, Axis]:
    """The kind of each comparison that becomes a pair: as many as can be in the proportion."""
    both = accuracy & overall
    most = len(accuracy | overall)
    for total in range(min(most, limit) if limit else most, 0, -1):
        wanted = round(share * total)
        # What the comparisons of one kind alone cannot give comes from those that serve for both.
        lacking = max(0, wanted - len(accuracy - both))
        lacking += max(0, total - wanted - len(overall - both))
        if lacking <= len(both):
            break
    else:
        return {}
    first = [k for k in order if k in accuracy - both] + [k for k in order if k in both]
    chosen: dict[int, Axis] = dict.fromkeys(first[:wanted], "accuracy")
    second = [k for k in order if k in overall - both] + [k for k in order if k in both]
    left = [k for k in second if k not in chosen]
    return chosen | dict.fromkeys(left[: total - wanted], "overall")


def _pair(compared: Comparison, both: BothOrders, by: Axis, turned: bool) -> JudgedPair:
    sides = [(compared.first, _side(both, 0, compared.first))]
    sides.append((compared.second, _side(both, 1, compared.second)))
    (chosen, chosen_side), (rejected, rejected_side) = sides[::-1] if turned else sides
    question = compared.question
    return JudgedPair(
        question.problem.id,
        question.prompt_ids,
        chosen.ids,
        rejected.ids,
        by,
        chosen_side,
        rejected_side,
    )


def _side(both: BothOrders, index: int, candidate: Candidate) -> Side:
    return Side(candidate.source, both.score(index, "accuracy"), both.score(index, "overall"))


def best_of(both: BothOrders) -> tuple[int, bool] | None:
    """Index of the reply with the highest overall mean, the earliest among equals, and whether
    there were equals; None where it is UNSCORED."""
    if not both.scored:
        return None
    points = [both.points(index, "overall") for index in range(len(both.given.marks))]
    return points.index(max(points)), points.count(max(points)) > 1


def write_judged(path: Path, pairs: Iterable[JudgedPair]) -> None:
    """Write pairs as JSONL, atomically."""
    with replacing(path) as file:
        file.writelines(dumps(_PAIR.dump_python(pair, mode="json")) + "\n" for pair in pairs)
