"""From what a model knows to rows and pairs: pure functions (Phi-4 report, appendix A.1).

| the model, asked several times | SFT                      | DPO                            |
|--------------------------------|--------------------------|--------------------------------|
| usually right                  | question → right reply   |                                |
| usually wrong                  | question → refusal       |                                |
| sometimes right                |                          | right reply over refusal       |
| sometimes wrong                |                          | refusal over the wrong answer  |
| asked a bogus question         | bogus question → refusal |                                |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from align.context import seed_of
from align.refusals.settings import RefusalConfig

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What a model answered to one question, and what is to be said to it."""

    id: str
    question: str
    """As a user asks it."""
    right: tuple[str, ...]
    """Replies made of the right ones of its answers, one each."""
    wrong: tuple[str, ...]
    samples: int
    """Answers in all, those included that attempted nothing."""
    correct: str = ""
    """The right reply; empty: the commonest of `right`."""
    refusal: str = ""
    """Empty: drawn from the settings' list."""
    bogus: str = ""
    """A question like it without an answer; empty: none."""
    bogus_refusal: str = ""
    """The reply to that; empty: as `refusal`."""

    def share(self, kind: Sequence[str]) -> float:
        """Of `right` or `wrong` in all answers."""
        return len(kind) / self.samples


@dataclass(slots=True)
class RefusalCounts:
    """Questions, rows and pairs by their kind."""

    questions: int = 0
    usually_right: int = 0
    usually_wrong: int = 0
    neither: int = 0
    bogus: int = 0
    right_over_refusal: int = 0
    refusal_over_wrong: int = 0
    identical: int = 0
    """Pairs whose two sides would be the same text: none is made."""

    def plain(self) -> dict[str, int]:
        """For a file."""
        return asdict(self)


def refusal_rows(
    known: Iterable[Knowledge], config: RefusalConfig
) -> tuple[list[Row], list[Row], RefusalCounts]:
    """SFT rows (`messages`), DPO rows (`prompt`, `chosen`, `rejected`), and their counts.

    Every row also tells its `kind`, the `question_id`, and the shares `right` and `wrong` of the
    model's `samples` answers.
    """
    chats, pairs, counts = list[Row](), list[Row](), RefusalCounts()
    for one in known:
        counts.questions += 1
        chats += _chats(one, config, counts)
        pairs += _pairs(one, config, counts)
    return chats, pairs, counts


def _chats(one: Knowledge, config: RefusalConfig, counts: RefusalCounts) -> Iterable[Row]:
    if one.share(one.right) > config.usually:
        counts.usually_right += 1
        yield _chat(one, "known", one.question, _right_reply(one))
    elif one.share(one.wrong) > config.usually:
        counts.usually_wrong += 1
        yield _chat(one, "unknown", one.question, _refusal(one, config))
    else:
        counts.neither += 1
    if one.bogus:
        counts.bogus += 1
        yield _chat(one, "bogus", one.bogus, one.bogus_refusal or _refusal(one, config, "bogus"))


def _pairs(one: Knowledge, config: RefusalConfig, counts: RefusalCounts) -> Iterable[Row]:
    refusal = _refusal(one, config)
    found = []
    if (reply := _right_reply(one)) and one.share(one.right) > config.sometimes:
        found.append(("right_over_refusal", reply, refusal))
    if (wrong := _commonest(one.wrong)) and one.share(one.wrong) > config.sometimes:
        found.append(("refusal_over_wrong", refusal, wrong))
    for kind, chosen, rejected in found:
        if chosen == rejected:
            counts.identical += 1
            continue
        setattr(counts, kind, getattr(counts, kind) + 1)
        yield {"prompt": one.question, "chosen": chosen, "rejected": rejected, **_about(one, kind)}


def _chat(one: Knowledge, kind: str, question: str, reply: str) -> Row:
    said = [("user", question), ("assistant", reply)]
    return {
        "messages": [{"role": role, "content": text} for role, text in said],
        **_about(one, kind),
    }


def _about(one: Knowledge, kind: str) -> Row:
    shares = {"right": one.share(one.right), "wrong": one.share(one.wrong)}
    return {"kind": kind, "question_id": one.id, **shares, "samples": one.samples}


def _right_reply(one: Knowledge) -> str:
    return one.correct or _commonest(one.right)


def _refusal(one: Knowledge, config: RefusalConfig, purpose: str = "refusal") -> str:
    if one.refusal:
        return one.refusal
    return config.refusals[seed_of(config.seed, one.id, purpose) % len(config.refusals)]


def _commonest(texts: Sequence[str]) -> str:
    """The text that stands most often, the first of several; empty without any."""
    ranked = Counter(texts).most_common(1)
    return ranked[0][0] if ranked else ""
