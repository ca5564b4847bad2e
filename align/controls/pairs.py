"""What a control arm makes of one question: pairs of siblings, or the reason why there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pts.types import Ids, Rollout

DrawnArm = Literal["uncertain", "uniform", "coin"]
Arm = Literal[DrawnArm, "cliffs"]
"""Names of the control arms."""


@dataclass(frozen=True, slots=True)
class Siblings:
    """Two next tokens after one completion prefix, with their probabilities."""

    prefix: Ids
    tokens: tuple[int, int]
    probs: tuple[float, float]

    def swapped(self) -> Siblings:
        """The same two, the other one first."""
        return Siblings(self.prefix, self.tokens[::-1], self.probs[::-1])


@dataclass(frozen=True, slots=True)
class Passed:
    """Right answers among n rollouts."""

    successes: int = 0
    n: int = 0

    @classmethod
    def of(cls, rollouts: Sequence[Rollout]) -> Passed:
        """Those among some rollouts."""
        return cls(sum(rollout.success for rollout in rollouts), len(rollouts))

    @property
    def share(self) -> float:
        """Estimate of p(success)."""
        return self.successes / self.n


@dataclass(frozen=True, slots=True)
class Measured:
    """Siblings, the chosen one first, and what their rollouts showed; a coin draws none."""

    siblings: Siblings
    chosen: Passed = Passed()
    rejected: Passed = Passed()


@dataclass(frozen=True, slots=True)
class Control:
    """What became of one question: its pairs, or why there is none."""

    reason: Literal["pair", "no position", "tie", "unscored"]
    pairs: tuple[Measured, ...] = ()
