"""Every case is asked in both orders of its replies; both judgements are kept, and settled here.

The difference of two replies is the sum of both orders' differences. Where they prefer different
sides, the preference follows the position: such pairs are flips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from align.judging.prompt import Case
from align.judging.replies import Judgement, Marks

if TYPE_CHECKING:
    from align.judging.judge import Judge

Axis: TypeAlias = Literal["accuracy", "overall"]
Preference: TypeAlias = Literal["first", "second", "tie", "flip", "unscored"]

UNIT: dict[Axis, int] = {"accuracy": 1, "overall": 3}
"""Points that make a difference of 1: an overall score is the mean of three."""
BEST, WORST = 5, 1
EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class BothOrders:
    """What a judge says of a case as given, and of its replies turned round.

    The marks of both stand in the order of the case.
    """

    given: Judgement
    turned: Judgement

    @property
    def scored(self) -> bool:
        """Whether both orders have marks."""
        return self.given.scored and self.turned.scored

    @property
    def reason(self) -> str:
        """Why there are no marks."""
        return self.given.reason or self.turned.reason

    def points(self, index: int, axis: Axis) -> int:
        """Points of a reply, those of both orders added: 2 · UNIT of them make a score of 1."""
        return sum(_points(one.marks[index], axis) for one in (self.given, self.turned))

    def score(self, index: int, axis: Axis) -> float:
        """Score of a reply, 1 to 5: the mean of both orders."""
        return self.points(index, axis) / (2 * UNIT[axis])


def judge_both(judge: Judge, cases: Sequence[Case]) -> list[BothOrders]:
    """What a judge says of each case in both orders."""
    found = judge.judge([*cases, *(case.turned() for case in cases)])
    given, turned = found[: len(cases)], found[len(cases) :]
    return [
        BothOrders(one, replace(other, marks=other.marks[::-1]))
        for one, other in zip(given, turned, strict=True)
    ]


def with_accuracy(both: BothOrders, right: Sequence[bool]) -> BothOrders:
    """The judgements with a verifier's word for accuracy: 5 where an answer is right, else 1.

    What is UNSCORED stays so.
    """

    def told(judgement: Judgement) -> Judgement:
        if not judgement.scored:
            return judgement
        marks = (
            replace(mark, accuracy=BEST if passed else WORST)
            for mark, passed in zip(judgement.marks, right, strict=True)
        )
        return replace(judgement, marks=tuple(marks))

    return BothOrders(told(both.given), told(both.turned))


def preference(
    both: BothOrders, axis: Axis, margin: float = 0.0, flips: Literal["drop", "mean"] = "drop"
) -> Preference:
    """Which of two replies is preferred on an axis.

    A tie is no difference, or one below `margin`. A pair of which the orders prefer different sides
    is a flip; under `flips="mean"` the mean of both orders decides it like any other.
    """
    if not both.scored:
        return "unscored"
    first, second = differences(both, axis)
    if flips == "drop" and first * second < 0:
        return "flip"
    points = first + second
    if not points or abs(points) < margin * 2 * UNIT[axis] - EPSILON:
        return "tie"
    return "first" if points > 0 else "second"


def differences(both: BothOrders, axis: Axis, i: int = 0, j: int = 1) -> tuple[int, int]:
    """Points of reply i above those of reply j: as given, and turned round."""
    given, turned = (
        _points(one.marks[i], axis) - _points(one.marks[j], axis)
        for one in (both.given, both.turned)
    )
    return given, turned


def _points(mark: Marks, axis: Axis) -> int:
    return mark.accuracy if axis == "accuracy" else mark.total
