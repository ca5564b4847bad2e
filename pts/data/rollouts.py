"""The rollouts that a search kept, one question a line: rollouts.jsonl of a run folder.

    for question in read_rollouts("runs/first"):
        question.answers()                      # right answers, distinct, as token ids
        question.answers(purposes=["filter"])   # those that the filter drew
        question.continuations(prefix)          # right continuations of a prefix
        question.values()                       # how often each next token led to a right answer
        question.pairs()                        # right against wrong after the same prefix

A line holds `problem_id`, `format`, `policy_digest`, `keep`, `prompt`, `places` and `ids`. The last
three are lists of numbers (`pts.packing`). `ids` are, for each prefix in ascending order, the
tokens that it does not share with the prefix before it, then those of the rollouts. `places` are
how many tokens a prefix shares and how many it adds, how many rollouts there are of each purpose,
and of each rollout its verdict (0 fail, 1 pass, 2 cut) and its length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TypeAlias

from pydantic import TypeAdapter

from pts.errors import DataError
from pts.files import JsonLines, dumps
from pts.packing import pack_numbers, unpack_numbers
from pts.types import Ids, Keep, Purpose, Rollout, Verdict, kept_length

FORMAT = 1
"""Version of a line of rollouts.jsonl."""
ROLLOUTS = "rollouts.jsonl"

PURPOSES: tuple[Purpose, ...] = ("filter", "search", "confirm", "sample")
"""In the order of a file."""

Drawn: TypeAlias = Mapping[tuple[Ids, Purpose], Sequence[Rollout]]
"""Rollouts of a question, in the order of their indices, by the prefix that they continue."""


@dataclass(frozen=True, slots=True)
class KeptRollout:
    """A rollout, what it was drawn for and the completion prefix that it continues.

    Its `ids` are whole, or the first one alone where a run keeps `right` ones and it failed.
    """

    prefix: Ids
    purpose: Purpose
    rollout: Rollout

    @property
    def completion(self) -> Ids:
        """The prefix and the ids that were kept."""
        return self.prefix + self.rollout.ids


@dataclass(frozen=True, slots=True)
class NextTokenValue:
    """Rollouts through `token` after `prefix`: those drawn from there, and those drawn from
    `prefix` that took it. `passed` / `drawn` estimates p(success) after the token."""

    prefix: Ids
    token: int
    passed: int
    drawn: int


@dataclass(frozen=True, slots=True)
class ContinuationPair:
    """A right and a wrong continuation of one completion prefix; their first tokens differ."""

    prefix: Ids
    chosen: Ids
    rejected: Ids
    rejected_truncated: bool
    """The wrong one was cut by the length limit; the right one never is."""


@dataclass(frozen=True, slots=True)
class QuestionRollouts:
    """All rollouts that a search drew of one question, by prefix, purpose and index.

    Whatever `purposes` limits is limited to rollouts drawn for these; without, all count.
    """

    problem_id: str
    prompt_ids: Ids
    policy_digest: str
    """Digest of the policy that they were drawn from."""
    keep: Keep
    rollouts: tuple[KeptRollout, ...]

    def answers(self, right: bool = True, purposes: Collection[Purpose] = PURPOSES) -> list[Ids]:
        """Distinct whole completions that passed (or failed), those of the filter first.

        Raises DataError for wrong ones of a run that kept the ids of `right` ones alone.
        """
        found = self._whole(right, purposes)
        return list(dict.fromkeys(kept.completion for kept in found))

    def continuations(
        self, prefix: Ids, right: bool = True, purposes: Collection[Purpose] = PURPOSES
    ) -> list[Ids]:
        """What follows `prefix` in the distinct whole completions that begin with it."""
        at = len(prefix)
        found = (ids[at:] for ids in self.answers(right, purposes) if ids[:at] == prefix)
        return [ids for ids in found if ids]

    def values(self, purposes: Collection[Purpose] = PURPOSES) -> list[NextTokenValue]:
        """Every next token that was drawn or continued, in ascending order of prefix and token."""
        counts: dict[tuple[Ids, int], list[int]] = {}
        for kept in self.rollouts:
            if kept.purpose not in purposes:
                continue
            taken = [(kept.prefix, kept.rollout.ids[0])] if kept.rollout.ids else []
            if kept.prefix:
                taken.append((kept.prefix[:-1], kept.prefix[-1]))
            for key in taken:
                count = counts.setdefault(key, [0, 0])
                count[0] += kept.rollout.success
                count[1] += 1
        return [NextTokenValue(*key, *count) for key, count in sorted(counts.items())]

    def pairs(self, purposes: Collection[Purpose] = PURPOSES) -> list[ContinuationPair]:
        """A pair for each prefix after which one next token led to a right answer and another one
        to a wrong answer.

        The right one is the first that took the token which passed most often, the wrong one the
        first that took the token which passed least often (then the one drawn more often, then the
        lower id). Raises DataError as `answers` does.
        """
        at: dict[Ids, list[NextTokenValue]] = {}
        for value in self.values(purposes):
            at.setdefault(value.prefix, []).append(value)
        right = self._first(True, purposes)
        wrong = self._first(False, purposes)
        found = []
        for prefix, values in at.items():
            best = _leading(values, 1, {v.token for v in values if (*prefix, v.token) in right})
            worst = _leading(values, -1, {v.token for v in values if (*prefix, v.token) in wrong})
            if best is None or worst is None or best == worst:
                continue
            chosen, rejected = right[(*prefix, best)], wrong[(*prefix, worst)]
            good, bad = (kept.completion[len(prefix) :] for kept in (chosen, rejected))
            found.append(ContinuationPair(prefix, good, bad, rejected.rollout.truncated))
        return found

    def _first(self, right: bool, purposes: Collection[Purpose]) -> dict[Ids, KeptRollout]:
        """The first rollout through each next token of a prefix of `values`."""
        found: dict[Ids, KeptRollout] = {}
        for kept in self._whole(right, purposes):
            for end in {len(kept.prefix), len(kept.prefix) + 1} - {0}:
                found.setdefault(kept.completion[:end], kept)
        return found

    def _whole(self, right: bool, purposes: Collection[Purpose]) -> Iterator[KeptRollout]:
        if not right and self.keep != "all":
            raise DataError(
                f"question {self.problem_id!r}: wrong answers were not kept (keep: {self.keep}); "
                "search with keep: all"
            )
        for purpose in PURPOSES:
            for kept in self.rollouts:
                wanted = kept.purpose == purpose and purpose in purposes
                if wanted and kept.rollout.success == right:
                    yield kept


def _leading(values: Sequence[NextTokenValue], sign: int, allowed: set[int]) -> int | None:
    """The token that passed most often (sign 1) or least often (-1) among those allowed."""
    found = [v for v in values if v.token in allowed]
    best = min(found, key=lambda v: (-sign * v.passed / v.drawn, -v.drawn, v.token), default=None)
    return best.token if best is not None else None


def read_rollouts(source: Path | str) -> JsonLines[QuestionRollouts]:
    """The rollouts of a run folder, or of a rollouts.jsonl, a question at a time.

    Raises DataError for a run that kept none; iterating raises it for a damaged line, with its
    number.
    """
    path = Path(source)
    if path.is_dir():
        path = path / ROLLOUTS
        if not path.is_file():
            raise DataError(
                f"{path}: no such file; the search kept no rollouts (keep: none), or is not begun"
            )
    return JsonLines(path, _read, growing=True)


def rollouts_line(
    problem_id: str, prompt_ids: Ids, policy_digest: str, keep: Keep, drawn: Drawn
) -> str:
    """A question's rollouts as one line of JSON, without the newline.

    Of what is drawn, the ids that `keep` leaves out are dropped. The line does not depend on the
    order of `drawn`.
    """
    places, ids = list[int](), list[int]()
    before: Ids = ()
    for prefix in sorted({prefix for prefix, _ in drawn}):
        equal = takewhile(lambda both: both[0] == both[1], zip(before, prefix, strict=False))
        shared = sum(1 for _ in equal)
        places += [shared, len(prefix) - shared]
        ids += prefix[shared:]
        before = prefix
        groups = [drawn.get((prefix, purpose), ()) for purpose in PURPOSES]
        places += map(len, groups)
        for rollout in (rollout for group in groups for rollout in group):
            code = 2 if rollout.truncated else int(rollout.success)
            places += [code, rollout.length]
            ids += rollout.ids[: kept_length(keep, rollout.success, rollout.length)]
    packed = map(pack_numbers, (prompt_ids, places, ids))
    line = _Line(problem_id, FORMAT, policy_digest, keep, *packed)
    return dumps(dataclasses.asdict(line))


@dataclass(frozen=True, slots=True)
class _Line:
    problem_id: str
    format: int
    policy_digest: str
    keep: Keep
    prompt: str
    places: str
    ids: str


_LINE = TypeAdapter(_Line)


def _read(line: bytes) -> QuestionRollouts:
    """The rollouts on a line. Raises ValueError for one that is none or contradicts itself."""
    entry = _LINE.validate_json(line)
    if entry.format != FORMAT or entry.keep == "none":
        raise ValueError(
            f"format {entry.format}, keep {entry.keep}; this version reads format {FORMAT}"
        )
    prompt, places, ids = map(unpack_numbers, (entry.prompt, entry.places, entry.ids))
    numbers, tokens = _Taker(places), _Taker(ids)
    rollouts = list[KeptRollout]()
    prefix: Ids = ()
    while numbers.left:
        shared, more, *counts = numbers.take(2 + len(PURPOSES))
        if shared > len(prefix):
            raise ValueError("a prefix shares more than there is")
        prefix = (*prefix[:shared], *tokens.take(more))
        for purpose, n in zip(PURPOSES, counts, strict=True):
            for _ in range(n):
                code, length = numbers.take(2)
                verdict = Verdict.PASS if code == 1 else Verdict.FAIL
                own = tuple(tokens.take(kept_length(entry.keep, code == 1, length)))
                rollout = Rollout(own, verdict, code == 2, length)
                rollouts.append(KeptRollout(prefix, purpose, rollout))
    if tokens.left:
        raise ValueError("there are more ids than its rollouts have")
    return QuestionRollouts(
        entry.problem_id, tuple(prompt), entry.policy_digest, entry.keep, tuple(rollouts)
    )


@dataclass(slots=True)
class _Taker:
    """Takes numbers from the front of a list."""

    numbers: list[int]
    at: int = 0

    @property
    def left(self) -> bool:
        return self.at < len(self.numbers)

    def take(self, n: int) -> list[int]:
        found = self.numbers[self.at : self.at + n]
        if len(found) < n:
            raise ValueError("numbers are missing")
        self.at += n
        return found
