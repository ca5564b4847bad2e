"""What a stage or an arm has cost: counts, under one name each in every manifest.

    Ledger.of(stage.metrics) + Ledger.of(other.metrics)

Each stage puts the counts that it has into its metrics: those that sample count while they sample,
those that train when they are done. A count that a stage has not is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pts.runtime.results import RolloutCost


@dataclass(frozen=True, slots=True)
class Ledger:
    """Costs that do not depend on the machine."""

    generated_tokens: int = 0
    """Sampled from the policy, those of completions that could not be judged included."""
    verifier_calls: int = 0
    """Completions that were judged; those cut by the length limit fail unread."""
    distinct_questions: int = 0
    """Train problems that were sampled at least once."""
    trained_tokens: int = 0
    """Tokens that carry loss, times the passes over them: answers' tokens in SFT, both completions'
    in full DPO, both tokens of a pair in token DPO."""
    judge_calls: int = 0
    """Of judges, those that were made again included."""
    judge_tokens: int = 0
    """Of their prompts and replies, as the endpoint or the tokenizer counts them."""
    generator_calls: int = 0
    """Answers that generators were asked for."""
    generator_tokens: int = 0
    """That generators wrote."""

    @classmethod
    def of(cls, metrics: Mapping[str, Any]) -> Ledger:
        """The counts among a stage's metrics."""
        return cls(**{name: int(metrics.get(name, 0)) for name in cls.__dataclass_fields__})

    def __add__(self, other: Ledger) -> Ledger:
        first, second = asdict(self), asdict(other)
        return Ledger(**{name: first[name] + second[name] for name in first})


def sampled_counts(cost: RolloutCost, questions: int) -> dict[str, int]:
    """What sampling has cost, for the metrics of a stage that samples."""
    return {
        "generated_tokens": cost.tokens,
        "verifier_calls": cost.rollouts - cost.truncated,
        "distinct_questions": questions,
    }
