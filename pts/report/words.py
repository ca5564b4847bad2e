"""What the numbers of a run mean, in words for a reader who has not seen a search before.

    for term, text in explanations(folder.config, folder.fingerprint["sampling"], counts):
        ...

Both reports (of a search, and of a post-train that holds one) show them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pts.algorithm.filtering import equal_verdicts
from pts.config import SamplingConfig, SearchConfig

PURPOSES = {
    "filter": "choosing the questions to search",
    "search": "finding what is pivotal, measuring siblings",
    "confirm": "measuring proposed pairs anew",
}
"""What the rollouts of each purpose were drawn for."""


@dataclass
class RunCounts:
    """Totals that the explanations name.

    `status` counts questions; `proposed` and `confirmed` count pairs by criterion. `finished` is
    false while a run goes on: pairs are confirmed at its end, all together.
    """

    finished: bool
    status: dict[str, int] = field(default_factory=dict)
    proposed: dict[str, int] = field(default_factory=dict)
    confirmed: dict[str, int] = field(default_factory=dict)


def explanations(
    config: SearchConfig, sampling: Mapping[str, Any], counts: RunCounts
) -> list[tuple[str, str]]:
    """(term, sentences) in reading order."""
    unit = config.unit
    said = [
        ("p(success)", _success(SamplingConfig.model_validate(sampling))),
        ("Δ", f"p(success) after a {unit} less p(success) before it."),
        ("Pivotal", _pivotal(config)),
        ("Method", _method(config)),
        ("Intervals", _intervals(config)),
        ("Questions", _questions(config, counts.status)),
    ]
    if unit == "step":
        return [*said, ("Pairs", "None: pairs are made of single tokens, and steps were searched.")]
    return [*said, ("Pairs", _pairs(config)), ("Confirmed", _confirmed(config, counts))]


def _success(sampling: SamplingConfig) -> str:
    plain = SamplingConfig()
    cuts = [
        f"{name.replace('_', '-')} {getattr(sampling, name):g}"
        for name in ("top_k", "top_p", "min_p")
        if getattr(sampling, name) != getattr(plain, name)
    ]
    how = ", ".join([f"temperature {sampling.temperature:g}", *cuts])
    return (
        "The chance that the verifier passes an answer if the model goes on writing from this "
        f"place, sampling at {how}. An answer that is not complete after "
        f"{sampling.max_new_tokens:,} tokens has failed."
    )


def _pivotal(config: SearchConfig) -> str:
    unit, least = config.unit, config.p_gap - config.indifference_margin
    said = f"A {unit} is pivotal if it changes p(success) by {config.p_gap:g} or more, up or down"
    if config.method == "bisect":
        return f"{said} (p_gap). Each whose estimate says so is shown."
    return (
        f"{said} (p_gap). It is shown as such once its interval lies beyond {least:g} (p_gap "
        f"less the indifference margin). A {unit} whose estimate reaches {config.p_gap:g} without "
        "that is shown as undecided, and no claim is made of it."
    )


def _method(config: SearchConfig) -> str:
    if config.method == "bisect":
        return (
            f"bisect: p(success) at a place is the share of {config.bisect_rollouts} rollouts "
            "(sampled continuations) that pass. The answer is halved again and again wherever "
            f"p(success) differs by {config.p_gap:g} between two ends. Opposite changes between "
            "two ends are not seen."
        )
    return (
        "branch: rollouts (sampled continuations) leave the answer at a token and go on with one "
        "of its siblings, the other tokens that may stand there. From them and the verdict on the "
        "whole answer p(success) is worked out backwards, with at most "
        f"{config.max_rollouts:,} rollouts an answer."
    )


def _intervals(config: SearchConfig) -> str:
    level = 100 * math.erf(config.z / math.sqrt(2))
    why = (
        "the search stops when it likes what it sees"
        if config.method == "branch"
        else "what is shown was picked because it stood out"
    )
    return (
        f"Ranges in brackets and the band of the curve reach {config.z:g} standard errors, "
        f"nominally {level:.3g} %: so often they would hold the true value if rollouts and places "
        f"had been fixed beforehand. As {why}, they hold it somewhat less often, least so for "
        f"changes near {config.p_gap:g}. They are as the search left them, before any confirmation."
    )


def _questions(config: SearchConfig, status: Mapping[str, int]) -> str:
    why = {
        "searched": "",
        "too hard": f" (fewer than {100 * config.p_min:g} % of the rollouts passed)",
        "too easy": f" (more than {100 * config.p_max:g} %)",
        "unscored": " (the verifier could not judge too many of the rollouts)",
        "unscorable": " (the engine could not tell what follows a part of an answer)",
    }
    counts = [f"{n:,} {name}{why.get(name, '')}" for name, n in sorted(status.items())]
    first = equal_verdicts(config)
    early = (
        f" (if the first {first} all pass or all fail, these alone)"
        if first < config.filter_rollouts
        else ""
    )
    return (
        f"{config.filter_rollouts} rollouts of each question decide whether it is searched{early}: "
        f"{', '.join(counts) or 'none so far'}."
    )


def _pairs(config: SearchConfig) -> str:
    least = config.p_gap - config.indifference_margin
    return (
        "Two tokens for one place, the chosen one better than the rejected one. The criterion path "
        "sets a pivotal token against a sibling, fork any two likely siblings. Since a search "
        "proposes what looked best, both sides of each proposed pair were measured anew with "
        f"up to {config.confirm_rollouts} rollouts that the search had not seen, fewer where "
        "these settled it. Gap (difference of p(success)), p-value and expected gain come from "
        "these alone. A confirmed pair has a median-unbiased gap and an interval that allow for an "
        "early end; of all such intervals 95 % are expected to hold the truth, although the pairs "
        "were picked. Any other pair has the plain difference. "
        f"The p-value tests whether the gap exceeds {least:g} (p_gap less the indifference "
        "margin); a pair given up early has the p-value 1. "
        "The expected gain is the probability of the rejected token times the gap: "
        "about what p(success) gains if that probability moves to the chosen token."
    )


def _confirmed(config: SearchConfig, counts: RunCounts) -> str:
    proposed = sum(counts.proposed.values())
    if not counts.finished:
        return (
            f"Not yet: pairs are confirmed all together when the run is finished; {proposed:,} "
            "are proposed so far."
        )
    each = ", ".join(
        f"{name} {counts.confirmed.get(name, 0):,} of {n:,}"
        for name, n in sorted(counts.proposed.items(), reverse=True)
    )
    return (
        f"{sum(counts.confirmed.values()):,} of {proposed:,} proposed pairs"
        f"{f' ({each})' if each else ''}, selected by p-value so that at most {100 * config.fdr:g} "
        "% of those kept are expected to be false (false discovery rate by Benjamini and Hochberg, "
        "path and fork apart). Kept for their size, they have gaps that err a little to the high "
        "side."
    )
