"""What the report says of the judges that a run asked: calls, tokens, vices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CALLS = {
    "calls": "calls",
    "prompt_tokens": "tokens of prompts",
    "reply_tokens": "tokens of replies",
    "asked_again": "calls made again",
    "malformed": "replies that were malformed",
    "out_of_range": "replies with scores out of range",
    "refused": "replies that refused",
    "timed_out": "replies not in time",
    "cut": "replies cut by max_tokens",
    "rejected": "calls that the endpoint rejected",
    "busy": "times that the endpoint was busy (429)",
}
"""Counts that are shown, with their names; those after the first three only above 0."""
ALWAYS = 3


def judges(
    stages: Mapping[str, Any], labels: Mapping[str, str]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Label and figures of each stage that asked a judge, from the stages of a manifest."""
    return [
        (labels.get(name, name), _rows(stage["metrics"]["judge"]))
        for name, stage in stages.items()
        if isinstance(stage["metrics"].get("judge"), dict)
    ]


def _rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    counts = [
        (name, f"{figures[key]:,}")
        for number, (key, name) in enumerate(CALLS.items())
        if type(figures.get(key)) is int and (figures[key] or number < ALWAYS)
    ]
    shares = {
        "UNSCORED judgements": "unscored",
        "preference follows the position": "position",
        "the longer answer is preferred": "longer",
    }
    return counts + [(name, _share(figures.get(key))) for name, key in shares.items()]


def _share(found: Any) -> str:
    values = [found.get(key) for key in ("share", "low", "high")] if found else []
    if not values or not all(isinstance(value, float) for value in values):
        return "none to tell of"
    share, low, high = values
    return f"{share:.1%} [{low:.1%}, {high:.1%}] of {found['n']:,}"
