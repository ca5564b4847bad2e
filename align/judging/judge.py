"""A judge: scores of answers to a conversation, from one that can read.

    with CallJournal(folder / "calls.jsonl") as journal:
        judge = PromptedJudge(open_backend(config, recipe.model), journal, config.attempts)
        [judgement] = judge.judge([Case(conversation, ("Four.", "Five."))])

`Judge` is the protocol: anything with its one method and its counts will do. `PromptedJudge` asks a
language model, keeps every reply in its journal, and asks again for what it could not read. Answers
that have no scores then are UNSCORED, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from align.judging.asker import Asker, Prompt
from align.judging.calls import Backend
from align.judging.prompt import VERSION, Case, write_prompt
from align.judging.replies import Found, Judgement, Marks, read_reply

if TYPE_CHECKING:
    from align.judging.journal import CallJournal


class Judge(Protocol):
    """What scores answers."""

    def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        """A judgement of each case, in their order; it depends on the case alone.

        Raises PTSError if it cannot go on; called again, it goes on.
        """

    @property
    def counts(self) -> dict[str, int]:
        """What it took so far, by the names in `align.judging.asker.COUNTS`."""


class PromptedJudge:
    """A `Judge` that is a language model."""

    def __init__(
        self, backend: Backend, journal: CallJournal, attempts: int, progress: bool = False
    ) -> None:
        self._asker = Asker(backend, journal, attempts, VERSION, progress=progress)

    def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        """See `Judge`. Raises EngineError for a judge that cannot be asked."""
        asked = {Prompt(write_prompt(case)): len(case.replies) for case in cases}

        def read(prompt: Prompt, text: str) -> tuple[tuple[Marks, ...] | None, Found]:
            outcome = read_reply(text, asked[prompt])
            return outcome.marks or None, outcome

        said = self._asker.ask([Prompt(write_prompt(case)) for case in cases], read)
        return [Judgement(marks or (), found.kind, found.reason) for marks, found in said]

    @property
    def counts(self) -> dict[str, int]:
        """See `Judge`; calls that the journal held already are counted like others."""
        return self._asker.counts
