"""Training data from the rollouts that a search kept: no engine is loaded, no token generated.

rows = right_answers_of(run_folder, purposes=["filter"])
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from align.data.chat import ChatIds, answer_row
from align.data.preferences import Answer, PreferencePair, Sampled, preference_pair
from pts.data.pairs import stream_pairs
from pts.data.rollouts import PURPOSES, QuestionRollouts, read_rollouts
from pts.types import Ids, Purpose, TokenPair


@dataclass(frozen=True, slots=True)
class AnswerRows:
    """Rows of a search's answers, and what was counted on the way."""

    rows: list[ChatIds]
    questions: int
    """Those with such an answer."""
    duplicates: int
    """Answers that were there already."""
    left_out: int
    """Distinct ones above the limit of a question."""


def right_answers_of(run: Path, purposes: Collection[Purpose] = PURPOSES) -> list[ChatIds]:
    """A row for each distinct right answer of a question, in the order of the run folder `run`.

    Its mask holds 1 on the whole answer, a prefix that it was made to begin with included.

    Raises:
        pts.errors.DataError: the run kept no rollouts, or the file is damaged.
    """
    return collect_answers(run, purposes).rows


def collect_answers(
    run: Path,
    purposes: Collection[Purpose] = PURPOSES,
    max_per_question: int = 0,
    seed: int = 0,
    outcomes: Sequence[bool] = (True,),
) -> AnswerRows:
    """As `right_answers_of`, at most `max_per_question` of a question (0: all), drawn evenly; also
    or only the wrong ones, as `outcomes` says.

    `run` is a run folder or its rollouts.jsonl.
    """
    rows, questions, duplicates, left_out = list[ChatIds](), 0, 0, 0
    for question in read_rollouts(run):
        drawn = sum(
            k.rollout.success in outcomes and k.purpose in purposes for k in question.rollouts
        )
        answers = [ids for right in outcomes for ids in question.answers(right, purposes)]
        kept = _some(answers, max_per_question, f"{seed}|{question.problem_id}")
        rows += [answer_row(question.prompt_ids, ids) for ids in kept]
        questions += bool(answers)
        duplicates += drawn - len(answers)
        left_out += len(answers) - len(kept)
    return AnswerRows(rows, questions, duplicates, left_out)


def _some(answers: Sequence[Ids], most: int, seed: str) -> list[Ids]:
    if not most or len(answers) <= most:
        return list(answers)
    chosen = random.Random(seed).sample(range(len(answers)), most)
    return [answers[index] for index in sorted(chosen)]


def answers_of(
    run: Path,
    purposes: Collection[Purpose],
    decode: Callable[[Ids], str],
    outcomes: Sequence[bool] = (True, False),
) -> Iterator[Sampled]:
    """Each question with its distinct whole answers, right and wrong (or one of both `outcomes`).

    Raises:
        pts.errors.DataError: as `right_answers_of`; or the wrong answers were not kept.
    """
    for question in read_rollouts(run):
        cut = _cut(question)
        answers = (
            Answer(ids, right, ids in cut, decode(ids))
            for right in outcomes
            for ids in question.answers(right, purposes)
        )
        yield Sampled(question.problem_id, question.prompt_ids, tuple(answers))


def _cut(question: QuestionRollouts) -> set[Ids]:
    """The whole answers that the length limit cut."""
    return {kept.completion for kept in question.rollouts if kept.rollout.truncated}


def continuation_pairs(
    run: Path, pairs: Path, purposes: Collection[Purpose], decode: Callable[[Ids], str]
) -> tuple[list[PreferencePair], int]:
    """A right continuation that begins with the better token of each pair of the file `pairs`
    against a wrong one that begins with the worse token; and the pairs for which there is none.

    Both are the first that were drawn, those of the filter before others.
    """
    confirmed = {
        name: list(group) for name, group in groupby(stream_pairs(pairs), lambda p: p.problem_id)
    }
    found: list[PreferencePair] = []
    for question in read_rollouts(run):
        for pair in confirmed.get(question.problem_id, ()):
            made = _continued(question, pair, purposes, decode)
            found += [made] if made is not None else []
    return found, sum(map(len, confirmed.values())) - len(found)


def _continued(
    question: QuestionRollouts,
    pair: TokenPair,
    purposes: Collection[Purpose],
    decode: Callable[[Ids], str],
) -> PreferencePair | None:
    prefix = pair.prompt_ids[len(question.prompt_ids) :]
    right = question.continuations(prefix, True, purposes)
    wrong = question.continuations(prefix, False, purposes)
    good = next((ids for ids in right if ids[0] == pair.chosen), None)
    bad = next((ids for ids in wrong if ids[0] == pair.rejected), None)
    if good is None or bad is None:
        return None
    cut = (*prefix, *bad) in _cut(question)
    chosen = Answer(good, True, False, decode(good))
    rejected = Answer(bad, False, cut, decode(bad))
    asked = Sampled(question.problem_id, pair.prompt_ids, (chosen, rejected))
    return preference_pair(asked, chosen, rejected, question.policy_digest)
