"""Answers of a model to problems, as text, each asked for once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.judging.asker import ask_all
from align.judging.calls import Backend, Call, Said, call_digest
from align.judging.prompt import conversation_of
from pts.types import Problem

if TYPE_CHECKING:
    from align.judging.journal import CallJournal


def chat_answers(
    backend: Backend,
    journal: CallJournal,
    problems: Sequence[Problem],
    samples: int,
    progress: bool = False,
) -> list[list[Said]]:
    """So many answers to each problem, in order; what the journal holds is not asked for again.

    Raises EngineError for a model that cannot be asked.
    """
    wanted = [
        [_call(backend, problem, number) for number in range(samples)] for problem in problems
    ]
    calls = {call.digest: call for row in wanted for call in row}
    missing = [call for digest, call in calls.items() if journal.get(digest) is None]
    ask_all(backend, journal, missing, "answers", progress)
    held = [[journal.get(call.digest) for call in row] for row in wanted]
    return [[said for said in row if said is not None] for row in held]


def _call(backend: Backend, problem: Problem, number: int) -> Call:
    messages = conversation_of(problem.prompt)
    turns = [[message.role, message.content] for message in messages]
    return Call(call_digest(backend.identity, [problem.id, turns], number), messages)
