"""A judge: scores of answers to a conversation, from one that can read.

    with CallJournal(folder / "calls.jsonl") as journal:
        judge = PromptedJudge(open_backend(config, recipe.model), journal, config.attempts)
        [judgement] = judge.judge([Case(conversation, ("Four.", "Five."))])

`Judge` is the protocol: anything with its one method and its counts will do. `PromptedJudge` asks a
language model, keeps every reply in its journal, and asks again for what it could not read. Answers
that have no scores then are UNSCORED, with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from align.judging.calls import Backend, Call, Said
from align.judging.journal import CallJournal, call_digest
from align.judging.prompt import VERSION, Case, write_prompt
from align.judging.replies import Judgement, Outcome, read_reply
from pts.types import Message

COUNTS = (
    "calls", "prompt_tokens", "reply_tokens", "calls_without_usage", "asked_again", "repaired",
    "malformed", "out_of_range", "refused", "timed_out", "cut", "rejected", "busy",
)  # fmt: skip
"""What is counted of calls: what became of those that gave no scores, by kind; `repaired` ones that
did; `busy`, how often the endpoint turned a call away (429) before it answered."""


class Judge(Protocol):
    """What scores answers."""

    def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        """A judgement of each case, in their order; it depends on the case alone.

        Raises PTSError if it cannot go on; called again, it goes on.
        """

    @property
    def counts(self) -> dict[str, int]:
        """What it took so far, by the names in `COUNTS`."""


class PromptedJudge:
    """A `Judge` that is a language model."""

    def __init__(
        self, backend: Backend, journal: CallJournal, attempts: int, progress: bool = False
    ) -> None:
        self._backend, self._journal, self._attempts = backend, journal, attempts
        self._progress = progress
        self._identity = {**backend.identity, "prompt": VERSION}
        self._made: dict[str, tuple[Said, Outcome, int]] = {}
        """Calls that the judgements rest on: what came back, what it says, which attempt."""

    def judge(self, cases: Sequence[Case]) -> list[Judgement]:
        """See `Judge`. Raises EngineError for a judge that cannot be asked."""
        found: dict[Case, Judgement] = {}
        left = list(dict.fromkeys(cases))
        for attempt in range(1, self._attempts + 1):
            prompts = {case: write_prompt(case, again=attempt > 1) for case in left}
            calls = {
                case: Call(call_digest(self._identity, prompt, attempt), (Message("user", prompt),))
                for case, prompt in prompts.items()
            }
            self._ask([call for call in calls.values() if not self._journal.get(call.digest)])
            for case, call in calls.items():
                said = self._journal.get(call.digest)
                assert said is not None
                outcome = read_outcome(said, len(case.replies))
                self._made[call.digest] = (said, outcome, attempt)
                found[case] = Judgement(outcome.marks, outcome.kind, outcome.reason)
            left = [case for case in left if found[case].kind not in ("scored", "rejected")]
        return [found[case] for case in cases]

    def _ask(self, calls: Sequence[Call]) -> None:
        from tqdm import tqdm

        bar = tqdm(total=len(calls), desc="judge", unit="call", disable=not self._progress)
        with bar:
            for call, said in self._backend.ask(calls):
                self._journal.put(call.digest, said)
                bar.update()

    @property
    def counts(self) -> dict[str, int]:
        """See `Judge`; calls that the journal held already are counted like others."""
        counted = Counter[str](dict.fromkeys(COUNTS, 0))
        for said, outcome, attempt in self._made.values():
            counted["calls"] += 1
            counted["prompt_tokens"] += said.prompt_tokens
            counted["reply_tokens"] += said.reply_tokens
            counted["calls_without_usage"] += not said.counted
            counted["asked_again"] += attempt > 1
            counted["repaired"] += bool(outcome.repairs)
            counted["busy"] += said.busy
            if outcome.kind != "scored":
                counted[outcome.kind] += 1
        return dict(counted)


def read_outcome(said: Said, replies: int) -> Outcome:
    """What a call's reply says of so many answers."""
    if said.end == "late":
        return Outcome("timed_out", reason="no reply in time")
    if said.end == "length":
        return Outcome("cut", reason="the reply was cut by max_tokens")
    if said.end == "refused":
        return Outcome("refused", reason="the endpoint says that the judge refused")
    if said.end == "rejected":
        return Outcome("rejected", reason=said.text)
    return read_reply(said.text, replies)
