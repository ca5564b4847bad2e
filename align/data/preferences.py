"""Full-length preference pairs: verified answers, joined into right/wrong pairs by rule.

    pairs = build_pairs(sampled, per_question=1, limit=0, style_weight=0.0, seed=0)
    write_preferences(path, pairs)

Right means that the task's verifier said so; accuracy comes from nowhere else. Style and detail
scores of 1-5, in the manner of the Phi-4 report's judge, can tilt the choice among right answers.
Here they are rules about the surface of the text (`style_score`, `detail_score`): they cannot tell
whether an explanation is good, nor do they replace a judge that reads.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pts.files import JsonLines, dumps, replacing
from pts.types import Ids, Problem


@dataclass(frozen=True, slots=True)
class Answer:
    """A sampled completion; `ids` end with the stop id unless it was cut."""

    ids: Ids
    right: bool
    truncated: bool
    text: str


@dataclass(frozen=True, slots=True)
class Sampled:
    """A question and the answers that one policy gave; none if they could not be judged."""

    problem_id: str
    prompt_ids: Ids
    answers: tuple[Answer, ...]
    problem: Problem | None = None
    """As it was asked; None for the rollouts of a search, which keep ids alone."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Rule-based scores from 1 to 5."""

    style: int
    detail: int

    @property
    def mean(self) -> float:
        """What weighs in the choice."""
        return (self.style + self.detail) / 2


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A right and a wrong completion of one prompt, as ids exactly as sampled.

    A completion ends with its stop id, or was cut by the length limit (`rejected_truncated`; a cut
    completion is never right).
    """

    problem_id: str
    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids
    rejected_truncated: bool
    chosen_scores: Scores
    rejected_scores: Scores
    policy_digest: str
    """Digest of the policy that both were sampled from."""


_PAIR = TypeAdapter(PreferencePair)
_STATEMENT = re.compile(r"[.!?;](?=\s)|\n+")


def style_score(text: str) -> int:
    """5, less one for each surface fault, at least 1.

    Faults: nothing but blanks; blanks at an end, or doubled; a broken character; a line or
    statement said twice; no full stop, bracket, letter or digit at the end.
    """
    stripped = text.strip()
    statements = _statements(text)
    faults = (
        not stripped,
        text != stripped or "  " in text,
        "\ufffd" in text,
        len(set(statements)) < len(statements),
        bool(stripped) and not (stripped[-1].isalnum() or stripped[-1] in ".!?)]}\"'$"),
    )
    return max(1, 5 - sum(faults))


def detail_score(text: str) -> int:
    """The number of statements (lines or sentences), from 1 to 5."""
    return min(5, max(1, len(_statements(text))))


def scores(text: str) -> Scores:
    """Both scores of one answer."""
    return Scores(style_score(text), detail_score(text))


def _statements(text: str) -> list[str]:
    return [part.strip() for part in _STATEMENT.split(text) if part.strip()]


def build_pairs(
    sampled: Iterable[Sampled],
    policy_digest: str,
    *,
    per_question: int,
    limit: int,
    style_weight: float,
    seed: int,
) -> list[PreferencePair]:
    """At most `per_question` pairs of each question with both right and wrong answers.

    No answer is used twice. Right ones are drawn with probability in proportion to
    exp(style_weight * mean score), wrong ones evenly, those that were cut only after the others.
    With a `limit`, questions are drawn evenly until it is reached; the order stays that of the
    questions. The same arguments give the same pairs.
    """
    found: list[list[PreferencePair]] = []
    for question in sampled:
        rng = random.Random(f"{seed}|{question.problem_id}")
        right = _order(question, True, style_weight, rng)[:per_question]
        wrong = _order(question, False, 0.0, rng)[:per_question]
        found.append(
            [
                preference_pair(question, c, r, policy_digest)
                for c, r in zip(right, wrong, strict=False)
            ]
        )
    return limited([pair for group in found for pair in group], limit, seed)


def limited(pairs: list[PreferencePair], limit: int, seed: int) -> list[PreferencePair]:
    """At most `limit` pairs (0: all), drawn evenly, in their order."""
    if not limit or len(pairs) <= limit:
        return pairs
    kept = set(random.Random(seed).sample(range(len(pairs)), limit))
    return [pair for index, pair in enumerate(pairs) if index in kept]


def _order(question: Sampled, right: bool, style_weight: float, rng: random.Random) -> list[Answer]:
    """Distinct answers in the order of a weighted draw without replacement (Gumbel's trick)."""
    distinct = {answer.ids: answer for answer in question.answers if answer.right == right}
    keyed = []
    for answer in distinct.values():
        noise = -math.log(-math.log(rng.random() or 0.5))
        keyed.append(
            (not answer.truncated, style_weight * scores(answer.text).mean + noise, answer)
        )
    return [answer for *_, answer in sorted(keyed, key=lambda item: item[:2], reverse=True)]


def preference_pair(
    question: Sampled, chosen: Answer, rejected: Answer, policy_digest: str
) -> PreferencePair:
    """A right and a wrong answer of a question, joined."""
    return PreferencePair(
        problem_id=question.problem_id,
        prompt_ids=question.prompt_ids,
        chosen_ids=chosen.ids,
        rejected_ids=rejected.ids,
        rejected_truncated=rejected.truncated,
        chosen_scores=scores(chosen.text),
        rejected_scores=scores(rejected.text),
        policy_digest=policy_digest,
    )


def count_outcomes(sampled: Sequence[Sampled]) -> dict[str, int]:
    """How many questions have both outcomes, only one, or none at all."""
    kinds = [{answer.right for answer in question.answers} for question in sampled]
    return {
        "questions": len(kinds),
        "questions_mixed": sum(kind == {True, False} for kind in kinds),
        "questions_all_right": sum(kind == {True} for kind in kinds),
        "questions_all_wrong": sum(kind == {False} for kind in kinds),
        "questions_unscored": sum(not kind for kind in kinds),
    }


def write_preferences(path: Path, pairs: Iterable[PreferencePair]) -> None:
    """Write pairs as JSONL, atomically."""
    with replacing(path) as file:
        for pair in pairs:
            file.write(dumps(_PAIR.dump_python(pair, mode="json")) + "\n")


def read_preferences(path: Path) -> list[PreferencePair]:
    """Read pairs. Raises pts.errors.DataError with the line number."""
    return list(JsonLines[Any](path, _PAIR.validate_json))
