"""What `align defects` measured, as data and as text."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from align.defects.rates import JudgeErrors, Rate
from align.evaluation.tables import TextTable, percent, text_of
from pts.types import Estimate


@dataclass(frozen=True, slots=True)
class DefectResult:
    """What was measured."""

    prompts: int
    replies: int
    rates: tuple[Rate, ...]
    """DR-1 to DR-7."""
    counts: dict[str, int]
    """Replies that are `unscored`, `cut` or `unanswered`."""
    unscored_by: dict[str, int]
    errors: JudgeErrors | None
    corrected: Estimate | None
    why_not: str
    """Why there is no corrected rate."""
    judge: dict[str, int]
    """Calls and tokens."""

    def plain(self) -> dict[str, Any]:
        """For a file."""
        told: dict[str, Any] = dataclasses.asdict(self)
        if (errors := self.errors) is not None:
            rates = {"missed": errors.missed, "false_alarms": errors.false_alarms}
            told["errors"] |= {k: v and dataclasses.asdict(v) for k, v in rates.items()}
        return told


def to_text(result: DefectResult) -> str:
    """For a terminal."""
    rates = tuple(
        (f"DR-{one.threshold}", percent(one.rate), f"{100 * one.low:.1f} to {100 * one.high:.1f}")
        for one in result.rates
    )
    head = ("", "share", "if all UNSCORED had none, or one")
    title = f"Defect rates in %, {result.replies:,} replies to {result.prompts:,} prompts"
    blocks = [text_of(TextTable(title, head, rates))]
    said = [f"{n:,} {what}" for what, n in result.counts.items() if n]
    said += [
        f"UNSCORED as {kind.replace('_', ' ')}: {n:,}" for kind, n in result.unscored_by.items()
    ]
    if said:
        blocks.append("; ".join(said))
    if (errors := result.errors) is not None:
        cells = (
            ("severe", str(errors.true_positives), str(errors.false_negatives)),
            ("not severe", str(errors.false_positives), str(errors.true_negatives)),
        )
        title = (
            f"The judge at severity {errors.threshold}, beside {errors.unscored} UNSCORED labels"
        )
        blocks.append(text_of(TextTable(title, ("label", "judged severe", "not"), cells)))
        missed, alarms = errors.missed, errors.false_alarms
        told = "; ".join(
            f"{what} {percent(rate)} %"
            for what, rate in (("misses", missed), ("false alarms", alarms))
            if rate
        )
        name = f"DR-{errors.threshold}, the judge's errors taken out"
        value = (
            f"{percent(result.corrected)} %" if result.corrected else f"not told: {result.why_not}"
        )
        blocks.append(f"{told}\n{name}: {value}")
    spent = result.judge
    blocks.append(
        f"The judge: {spent['calls']:,} calls, {spent['prompt_tokens']:,} tokens of prompts, "
        f"{spent['reply_tokens']:,} of replies. Brackets: 95 % intervals, clustered by prompt."
    )
    return "\n\n".join(blocks)
