"""Which mistake explains a distribution? Truncations gone wrong, tried one after another.

From the plain row of a position (temperature 1, nothing cut) and the settings, `diagnoses` makes
the rows that well-known mistakes would produce; `fitting` and `equal_to` say which of them a
sample or a row agrees with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pts.config import SamplingConfig
from pts.engines.truncation import STEPS, Step, min_p, temper, top_k, top_p, truncate
from pts.stats import chi_square
from pts.testing.statistics import distance, kept, tally, without
from pts.types import TokenDistribution

RIGHT = "as configured"

SAME = 2e-3
"""Rows closer than this in total variation are called equal; float32 logits differ by less."""


def shaped(plain: TokenDistribution, sampling: SamplingConfig, *steps: Step) -> TokenDistribution:
    """Apply steps in order; without any, those of `SamplingConfig` in their order."""
    probs = truncate(plain.probs, sampling, steps or STEPS)
    return TokenDistribution(plain.ids[: len(probs)], probs)


def sorted_row(row: TokenDistribution) -> TokenDistribution:
    """Most likely first."""
    order = np.argsort(-row.probs, kind="stable")
    return TokenDistribution(row.ids[order], row.probs[order])


def diagnoses(
    plain: TokenDistribution, sampling: SamplingConfig
) -> Mapping[str, TokenDistribution]:
    """Rows by the mistake that would make them; the right one first. Equal rows appear once."""
    plain = sorted_row(plain)
    found: dict[str, TokenDistribution] = {}
    for name, row in _diagnoses(plain, sampling):
        if equal_to(row, found) is None:
            found[name] = row
    return found


def _diagnoses(
    plain: TokenDistribution, sampling: SamplingConfig
) -> Iterator[tuple[str, TokenDistribution]]:
    def changed(**changes: object) -> TokenDistribution:
        return shaped(plain, sampling.model_copy(update=changes))

    yield RIGHT, shaped(plain, sampling)
    if sampling.temperature not in (0, 1):
        yield "the temperature is ignored", changed(temperature=1.0)
        before = shaped(plain, sampling, top_k, top_p, min_p, temper)
        yield "tokens are cut before the temperature is applied (top-p, min-p)", before
        yield "the temperature is applied twice", changed(temperature=sampling.temperature**2)
        inverse = changed(temperature=1 / sampling.temperature)
        yield "logits are multiplied by the temperature, not divided", inverse
    if sampling.top_k:
        yield "top_k keeps one token too many", changed(top_k=sampling.top_k + 1)
        if sampling.top_k > 1:
            yield "top_k keeps one token too few", changed(top_k=sampling.top_k - 1)
        yield "top_k is ignored", changed(top_k=0)
    if sampling.top_p < 1:
        yield "top_p is ignored", changed(top_p=1.0)
        row = shaped(plain, sampling, temper, top_k)
        within = _head(row, int((row.probs.cumsum() <= sampling.top_p).sum()))
        yield "top_p leaves out the token that reaches it", shaped(within, sampling, min_p)
    if sampling.min_p:
        yield "min_p is ignored", changed(min_p=0.0)
        row = shaped(plain, sampling, temper, top_k, top_p)
        above = _head(row, int((row.probs >= sampling.min_p).sum()))
        yield "min_p is an absolute probability", above
    yield "top-p comes before top-k", shaped(plain, sampling, temper, top_p, top_k, min_p)
    yield "min-p comes before top-p", shaped(plain, sampling, temper, min_p, top_k, top_p)
    yield "temperature and truncation are ignored", plain
    for token in plain.ids[:4]:
        rest = without(plain, token)
        if len(rest.ids):
            why = f"token {token} is removed and the rest truncated after that (a ban, a minimum "
            yield why + "length); truncate first, remove second", shaped(rest, sampling)


def _head(row: TokenDistribution, n: int) -> TokenDistribution:
    """The n most likely tokens of a sorted row, the first one at least."""
    return kept(row, np.arange(len(row.ids)) < max(1, n))


def fitting(tokens: Sequence[int], rows: Mapping[str, TokenDistribution]) -> str | None:
    """The name of the row that sampled tokens fit best; None when they fit none (p < 0.01)."""
    best, level = None, 0.01
    for name, row in rows.items():
        counts, outside = tally(row, tokens)
        p = 0.0 if outside else chi_square(counts, row.probs)
        if p > level:
            best, level = name, p
    return best


def equal_to(row: TokenDistribution, rows: Mapping[str, TokenDistribution]) -> str | None:
    """The name of the row that is the same; None when there is none."""
    return next((name for name, other in rows.items() if distance(row, other) <= SAME), None)


def as_told(row: TokenDistribution, plain: TokenDistribution, sampling: SamplingConfig) -> bool:
    """Is `row` the plain row under the settings? Rounding at an edge and ties are forgiven."""
    plain = sorted_row(plain)
    for shift in (-1e-4, 0.0, 1e-4):
        changes = {
            "top_p": min(1.0, sampling.top_p + shift) if sampling.top_p < 1 else 1.0,
            "min_p": max(0.0, sampling.min_p * (1 + 100 * shift)),
        }
        if distance(row, shaped(plain, sampling.model_copy(update=changes))) <= SAME:
            return True
    cut = _head(plain, sampling.top_k or len(plain.ids))
    return distance(row, shaped(cut, sampling)) <= SAME
