"""What the stages with a judge share: asking it, and the best of several answers.

The calls are journalled in the stage's folder (`judge/calls.jsonl`): a killed stage asks only the
rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from align.context import StageContext
from align.data.chat import ChatIds, answer_row
from align.errors import StageError
from align.judging.backends import open_backend
from align.judging.choice import Answered, Candidate, best_of
from align.judging.journal import CallJournal
from align.judging.judge import PromptedJudge
from align.judging.orders import BothOrders, judge_both, with_accuracy
from align.judging.prompt import Case, conversation_of
from align.judging.vices import vices

CALLS = Path("judge", "calls.jsonl")


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge says of cases: in both orders, and the figures of it."""

    found: list[BothOrders]
    figures: dict[str, Any]
    """Calls, tokens and vices, for the metrics."""

    def metrics(self) -> dict[str, Any]:
        """The figures, and what the ledger reads of them."""
        tokens = self.figures["prompt_tokens"] + self.figures["reply_tokens"]
        calls = self.figures["calls"]
        return {"judge": self.figures, "judge_calls": calls, "judge_tokens": tokens}

    def reasons(self) -> str:
        """The commonest reason why answers are UNSCORED; empty if none is."""
        said = [both.reason for both in self.found if not both.scored]
        return max(said, key=said.count) if said else ""


def ask_judge(
    context: StageContext, cases: Sequence[Case], right: Sequence[Sequence[bool]]
) -> Judged:
    """Ask the stage's judge about cases, in both orders.

    Args:
        right: the verifier's word on each reply of each case, for `accuracy: verifier`.

    Raises:
        PTSError: the judge cannot be asked; the same command goes on.
    """
    config = context.settings.judge
    backend = open_backend(config, context.recipe.model)
    with closing(backend), CallJournal(context.folder / CALLS) as journal:
        judge = PromptedJudge(backend, journal, config.attempts, context.progress)
        found = judge_both(judge, cases)
        figures = {"cases": len(cases), **judge.counts, **vices(cases, found)}
    if config.accuracy == "verifier":
        found = [with_accuracy(both, told) for both, told in zip(found, right, strict=True)]
    return Judged(found, figures)


def no_data(context: StageContext, counts: dict[str, Any], judged: Judged) -> StageError:
    """What a stage says when a judge leaves it nothing to train on."""
    why = f"; UNSCORED because: {reason}" if (reason := judged.reasons()) else ""
    told = ", ".join(f"{key.replace('_', ' ')} {n}" for key, n in counts.items() if n)
    return StageError(
        f"{context.entry.name}: the judge left nothing to train on ({told}){why}; read "
        f"{context.folder / CALLS}, or take another judge"
    )


def best_answers(
    context: StageContext, answered: Sequence[Answered], most: int, among: Literal["right", "all"]
) -> tuple[list[ChatIds], dict[str, Any]]:
    """A row of the best answer to each question by the judge's overall mean, the first drawn among
    equals; and the counts.

    Args:
        most: answers of a question that the judge is shown at most: the first of each source, then
            the second of each, and so on.
        among: the right ones alone, or all.

    A question with one such answer keeps it without a call; one whose answers are UNSCORED has
    none.

    Raises:
        StageError: no answer is left.
    """
    shown = [
        (q, in_turn([c for c in q.candidates if c.right or among == "all"])[:most])
        for q in answered
    ]
    several = [(q, offered) for q, offered in shown if len(offered) > 1]
    cases = [
        Case(conversation_of(q.problem.prompt), tuple(c.text for c in offered))
        for q, offered in several
    ]
    judged = ask_judge(context, cases, [[c.right for c in offered] for _, offered in several])
    best = [(q, offered[0]) for q, offered in shown if len(offered) == 1]
    told = {"questions_with_one_answer": len(best), "questions_tied": 0}
    for (question, offered), both in zip(several, judged.found, strict=True):
        if (found := best_of(both)) is not None:
            best.append((question, offered[found[0]]))
            told["questions_tied"] += found[1]
    told["questions_unscored_by_judge"] = len(several) - sum(both.scored for both in judged.found)
    if not best:
        raise no_data(context, told, judged)
    rows = [answer_row(question.prompt_ids, answer.ids) for question, answer in best]
    chosen = dict(Counter(answer.source for _, answer in best))
    return rows, {**told, "chosen_by_source": chosen, **judged.metrics()}


def in_turn(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The first of each source, then the second of each; in their order otherwise."""
    numbers, before = list[int](), Counter[str]()
    for candidate in candidates:
        numbers.append(before[candidate.source])
        before[candidate.source] += 1
    order = sorted(range(len(candidates)), key=numbers.__getitem__)
    return [candidates[k] for k in order]
