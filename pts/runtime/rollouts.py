"""The rollouts of one `RolloutQuery`: seeds, what the journal holds of them, what is
missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pts.files import hash64, prefix_digest
from pts.runtime.journal import RecordedRollouts, Recorder, kept_text
from pts.runtime.results import RolloutCost
from pts.types import WHOLE, Ids, Keep, Purpose, Rollout, RolloutQuery, Verdict, kept_length

ATTEMPTS = 4
"""Draws at most of one rollout: the first and three more while it is UNSCORED."""


def rollout_seed(
    run: int, problem: str, at: str, purpose: Purpose, index: int, attempt: int
) -> int:
    """The 64-bit seed of one rollout: a digest of what it is, not of when it is drawn.

    `at` is the `prefix_digest` of the prefix; `attempt` counts redraws of UNSCORED rollouts.
    """
    return hash64(f"{run}|{at}|{purpose}|{index}|{attempt}|{problem}")


class RolloutBatch:
    """Rollouts `first`, `first`+1, … of a problem at one place for one purpose."""

    def __init__(
        self, problem: str, sample: RolloutQuery, counters: dict[tuple[str, Purpose], int]
    ):
        """Take the next `sample.n` indices of the place, and advance its counter."""
        self.problem, self.sample = problem, sample
        self.key = (prefix_digest(sample.prefix), sample.purpose)
        self.first = counters.get(self.key, 0)
        counters[self.key] = self.first + sample.n
        self.attempt = 0
        self.replayed = 0
        self._found: list[Rollout | None] = [None] * sample.n
        self._whole: dict[int, Ids] = {}
        """All ids of the rollouts that were drawn now, by offset."""
        self._replayed_redraws = RolloutCost()
        self._redraws = RolloutCost()

    @property
    def missing(self) -> list[int]:
        """Offsets from `first` without a rollout."""
        return [k for k, rollout in enumerate(self._found) if rollout is None]

    @property
    def exhausted(self) -> bool:
        """Something is missing that will not be drawn again."""
        return self.attempt >= ATTEMPTS and bool(self.missing)

    @property
    def rollouts(self) -> list[Rollout]:
        """What is there, in order of index."""
        return [rollout for rollout in self._found if rollout is not None]

    def replay(self, replay: RecordedRollouts) -> None:
        """Take the leading rollouts that a journal holds."""
        known = replay.rollouts.get(self.key, {})
        redrawn = replay.redrawn.get(self.key, {})
        for k in range(self.sample.n):
            if self.first + k not in known:
                break
            self._found[k] = known[self.first + k]
            draws, tokens = redrawn.get(self.first + k, (0, 0))
            self._replayed_redraws += RolloutCost(draws, tokens, unscored=draws)
            self.replayed += 1

    def seeds(self, run: int) -> tuple[int, ...]:
        """Seeds of the missing rollouts, at the current attempt."""
        place, purpose = self.key
        return tuple(
            rollout_seed(run, self.problem, place, purpose, self.first + k, self.attempt)
            for k in self.missing
        )

    def take(self, drawn: Sequence[Rollout]) -> None:
        """The missing rollouts, those that are UNSCORED among them."""
        for k, rollout in zip(self.missing, drawn, strict=True):
            if rollout.verdict is Verdict.UNSCORED:
                self._redraws += RolloutCost(1, rollout.length, unscored=1)
            else:
                told = rollout.ids if self.sample.purpose in WHOLE else rollout.ids[:1]
                self._found[k], self._whole[k] = replace(rollout, ids=told), rollout.ids
        self.attempt += 1

    def record(self, journal: Recorder, keep: Keep, trunks: Mapping[int, Ids]) -> None:
        """Put what was drawn now on file, with the ids that are to be kept.

        `trunks` are the rollouts of the question's filter, by index.
        """
        fresh = self.rollouts[self.replayed :]
        if not fresh:
            return
        kept = ""
        if keep != "none":
            tails = (
                self._whole[k][len(told.ids) : kept_length(keep, told.success, told.length)]
                for k, told in enumerate(fresh, self.replayed)
            )
            kept = kept_text(self.sample.prefix, trunks, tails)
        first = self.first + self.replayed
        redraws = (self._redraws.rollouts, self._redraws.tokens)
        journal.record(self.problem, *self.key, first, fresh, redraws, kept)

    @property
    def spent(self) -> RolloutCost:
        """What these rollouts cost, now or when they were journalled."""
        drawn = self.rollouts
        kept = RolloutCost(
            rollouts=len(drawn),
            tokens=sum(rollout.length for rollout in drawn),
            passed=sum(rollout.success for rollout in drawn),
            truncated=sum(rollout.truncated for rollout in drawn),
        )
        return kept + self._redraws + self._replayed_redraws
