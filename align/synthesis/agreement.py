"""Which answers to a question agree: groups of equal final answers, and what becomes of it.

    found = agree(make_verifier("math"), ["... \\boxed{1/2}", "... the answer is 0.5", "... 3"])
    found.fate, found.votes[0].answer           # "kept", "1/2"

Final answers are read and compared by a verifier, one answer taken as the other's reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from pts.errors import ConfigError, VerifierError
from pts.types import Problem, Verdict
from pts.verifiers.base import Verifier
from pts.verifiers.choice import ChoiceVerifier
from pts.verifiers.registry import make_verifier

Fate: TypeAlias = Literal["kept", "all_agree", "all_disagree", "tied", "unread"]
"""`all_agree`: too easy; `all_disagree`: no answer stands twice; `tied`: several stand equally
often, and none more often; `unread`: fewer than two final answers could be read."""
FATES: tuple[Fate, ...] = get_args(Fate)


@dataclass(frozen=True, slots=True)
class Vote:
    """An answer, as the first that gave it spells it, and the numbers of all that gave it."""

    answer: str
    samples: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Agreement:
    """What answers to a question say together."""

    fate: Fate
    votes: tuple[Vote, ...]
    """The commonest first; of equally common ones the first drawn."""
    unread: int
    """Answers that vote for nothing: without a readable final answer, cut, or refused."""


def answer_reader(spec: str) -> Verifier:
    """The verifier that reads final answers. Raises ConfigError for one that reads none."""
    if spec.partition(":")[0] == "code":
        raise ConfigError(
            f"answer: {spec!r} reads no final answer; give math, choice or exact:REGEX"
        )
    return make_verifier(spec)


def agree(verifier: Verifier, texts: Sequence[str | None]) -> Agreement:
    """Group the final answers of texts (None: nothing to read), and tell the question's fate."""
    probe = verifier.options[0] if isinstance(verifier, ChoiceVerifier) else "0"
    groups: list[tuple[str, list[int]]] = []
    unread = 0
    for number, text in enumerate(texts):
        answer = None if text is None else _read(verifier, probe, text)
        if text is None or answer is None:
            unread += 1
            continue
        for known, members in groups:
            if known == answer or _equal(verifier, known, text):
                members.append(number)
                break
        else:
            groups.append((answer, [number]))
    ranked = sorted(groups, key=lambda group: -len(group[1]))  # stable: the first drawn first
    votes = tuple(Vote(answer, tuple(members)) for answer, members in ranked)
    return Agreement(_fate(votes), votes, unread)


def _fate(votes: Sequence[Vote]) -> Fate:
    sizes = [len(vote.samples) for vote in votes]
    if sum(sizes) < 2:
        return "unread"
    if len(sizes) == 1:
        return "all_agree"
    if sizes[0] == 1:
        return "all_disagree"
    return "tied" if sizes[0] == sizes[1] else "kept"


def _read(verifier: Verifier, probe: str, text: str) -> str | None:
    try:
        return verifier(Problem("", "", probe), text).answer
    except VerifierError:
        return None


def _equal(verifier: Verifier, reference: str, text: str) -> bool:
    return passes(verifier, reference, text) is True


def passes(verifier: Verifier, reference: str, text: str) -> bool | None:
    """A verifier's word on an answer; None where it cannot judge."""
    try:
        verdict = verifier(Problem("", "", reference), text).verdict
    except VerifierError:
        return None
    return None if verdict is Verdict.UNSCORED else verdict is Verdict.PASS
