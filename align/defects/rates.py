"""Defect rates and a judge's errors: pure functions of severities.

DR-x is the share of replies whose severity is x or more (Phi-4 report). Intervals are clustered by
prompt. Known errors of the judge are taken out by the estimator of Rogan & Gladen (1978), with the
interval of Lang & Reiczigel (2014), which counts that both errors are estimates themselves. It
supposes that the judge errs on these replies as on the labelled ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from align.evaluation.statistics import effective_size, rate_interval, wilson
from pts.stats import Z95
from pts.types import Estimate


@dataclass(frozen=True, slots=True)
class Rate:
    """DR-x of replies."""

    threshold: int
    rate: Estimate
    """Over prompts with a scored reply."""
    low: float
    high: float
    """The rate if all UNSCORED replies were without a defect, and if all had one."""


@dataclass(frozen=True, slots=True)
class JudgeErrors:
    """A judge's word at a threshold beside a person's."""

    threshold: int
    true_positives: int
    false_negatives: int
    false_positives: int
    true_negatives: int
    unscored: int

    @property
    def missed(self) -> Estimate | None:
        """False negative rate; None where no label reaches the threshold."""
        n = self.true_positives + self.false_negatives
        return wilson(self.false_negatives, n) if n else None

    @property
    def false_alarms(self) -> Estimate | None:
        """False positive rate; None where every label reaches the threshold."""
        n = self.false_positives + self.true_negatives
        return wilson(self.false_positives, n) if n else None


def defect_rate(severities: Sequence[Sequence[int | None]], threshold: int) -> Rate | None:
    """DR-x of the replies to each prompt (None: UNSCORED); None where no reply is scored."""
    scored = [[s for s in some if s is not None] for some in severities]
    shares = [sum(s >= threshold for s in some) / len(some) for some in scored if some]
    if not shares:
        return None
    bounds = [
        float(np.mean([sum(without if s is None else s >= threshold for s in some) / len(some)
                       for some in severities if some]))
        for without in (0, 1)
    ]  # fmt: skip
    return Rate(threshold, rate_interval(shares), *bounds)


def judge_errors(labels: Sequence[int], said: Sequence[int | None], threshold: int) -> JudgeErrors:
    """Count a judge's severities (None: UNSCORED) beside a person's."""
    pairs = [
        (label >= threshold, one >= threshold)
        for label, one in zip(labels, said, strict=True)
        if one is not None
    ]
    return JudgeErrors(
        threshold,
        true_positives=pairs.count((True, True)),
        false_negatives=pairs.count((True, False)),
        false_positives=pairs.count((False, True)),
        true_negatives=pairs.count((False, False)),
        unscored=len(said) - len(pairs),
    )


def corrected(
    severities: Sequence[Sequence[int | None]], errors: JudgeErrors
) -> tuple[Estimate | None, str]:
    """DR-x with the judge's errors taken out; or None and the reason.

    Prompts count as so many replies as they are worth (Kish's effective size), for replies to one
    prompt are alike.
    """
    threshold = errors.threshold
    rate = defect_rate(severities, threshold)
    missed, alarms = errors.missed, errors.false_alarms
    if missed is None or alarms is None:
        side = "at or above" if missed is None else "below"
        return None, f"no scored label is {side} the threshold {threshold}"
    if rate is None:
        return None, "no reply is scored"
    if missed.mean + alarms.mean >= 1:
        return None, "the judge tells nothing: its two error rates add up to 1 or more"
    scored = [[s for s in some if s is not None] for some in severities]
    shares = [sum(s >= threshold for s in some) / len(some) for some in scored if some]
    size = effective_size(shares)
    sensitivity, specificity = 1 - missed.mean, 1 - alarms.mean
    mean = (rate.rate.mean + specificity - 1) / (sensitivity + specificity - 1)
    low, high = _lang_reiczigel(rate.rate.mean, size, sensitivity, missed.n, specificity, alarms.n)
    mean = min(1.0, max(0.0, mean))
    return Estimate(mean, min(low, mean), max(high, mean), rate.rate.n, "lang-reiczigel"), ""


def _lang_reiczigel(
    rate: float, n: float, sensitivity: float, n1: int, specificity: float, n0: int, z: float = Z95
) -> tuple[float, float]:
    """Bounds of a prevalence; `n1` and `n0` labels at or above the threshold, and below it."""
    p, n = (n * rate + z * z / 2) / (n + z * z), n + z * z
    se = (n1 * sensitivity + 1) / (n1 + 2)
    sp = (n0 * specificity + 1) / (n0 + 2)
    v1, v0 = se * (1 - se) / (n1 + 2), sp * (1 - sp) / (n0 + 2)
    j = se + sp - 1
    if j <= 0:
        return 0.0, 1.0
    centre = (p + sp - 1) / j
    shift = 2 * z * z * (centre * v1 - (1 - centre) * v0)
    half = z * math.sqrt(p * (1 - p) / n + (1 - centre) ** 2 * v0 + centre**2 * v1) / j
    return max(0.0, centre + shift - half), min(1.0, centre + shift + half)
