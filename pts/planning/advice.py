"""What a probe says of the settings, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pts.config import SearchConfig
from pts.planning.forecast import Forecast
from pts.runtime.summary import RunSummary

CUT = 0.1
"""Share of cut rollouts above which the length limit is worth a word."""
KEPT = 0.25
"""Share of kept questions below which most filter rollouts are spent for nothing."""
BUDGET = 0.5
"""Share of paths ended for want of rollouts above which `max_rollouts` is small."""
FEW = 4
"""Kept questions below which the intervals are too narrow. Simulated on the costs of a real run
(20, 40 and 73 % kept; probes of 8, 16 and 32 of 1,000 questions), rollouts, tokens and pairs lay
within their nominal 95 % intervals in 95 to 96 % of 2,005 probes with at least 4 kept questions,
and in 83 to 87 % of 695 probes with fewer."""
WIDE = 3.0
"""Ratio of the ends of the tokens' interval above which a larger probe pays."""


def advice(summary: RunSummary, config: SearchConfig, tokens: Forecast) -> Iterator[str]:
    """A sentence for each setting that the probe, of which `summary` is, speaks against."""
    if summary.truncated_share > CUT:
        yield (
            f"the length limit cut {summary.truncated_share:.0%} of the rollouts, and what is cut "
            "has failed: raise max_new_tokens"
        )
    status, n = Counter(summary.questions), sum(summary.questions.values())
    easy, hard, kept = status["too easy"], status["too hard"], status["searched"]
    if status["unscored"]:
        yield (
            f"{status['unscored']} of {n} questions could not be judged: mend the verifier or the "
            "references"
        )
    if kept < KEPT * n and easy + hard:
        wanted = ("harder", "higher") if easy > hard else ("easier", "lower")
        yield (
            f"only {kept} of {n} questions are solved in {config.p_min:.0%} to {config.p_max:.0%} "
            f"of the tries ({easy} more often, {hard} less): take {wanted[0]} questions or a "
            f"{wanted[1]} temperature"
        )
    paths, costly = sum(summary.paths.values()), summary.paths.get("budget", 0)
    if costly > BUDGET * paths:
        yield (
            f"{costly} of {paths} searched paths ended for want of rollouts: "
            f"raise max_rollouts ({config.max_rollouts}) or p_gap ({config.p_gap:g})"
        )
    if paths and not summary.proposed:
        yield (
            "no pair was proposed in the probe: probe more questions, or lower p_gap "
            f"({config.p_gap:g})"
        )
    if kept < FEW:
        yield (
            f"the forecast rests on {kept} kept question{'s' * (kept != 1)}, and its intervals are "
            "too narrow: probe more"
        )
    elif tokens.high > WIDE * max(tokens.low, 1.0):
        yield f"the forecast is wide after {n} questions: probe more"
