"""From a server's list of likely tokens to the exact row of the sampling distribution, or to none.

A list names the likeliest tokens of one position. It yields a row only if it shows the whole
support. That needs no further knowledge when the server lists the distribution that it samples from
("processed"): all mass is listed, or a token that cannot be sampled is. When it lists the model's
own probabilities ("raw"), temperature and truncation are applied here, and what was not listed is
bounded: each of the R other tokens is at most as likely as the last listed one, and together they
hold what the listed ones leave, give or take what float32 rounds. A row is given only if both
bounds lead to the same support; inside a support, normalising needs nothing from outside.

Raw lists leave one thing open: among tokens of equal probability at the edge of a top-p nucleus
the server's sort decides which ones are inside. Here the path's own token goes first, then the
lowest id; their probabilities are equal, so no other number of the row depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pts.config import SamplingConfig
from pts.engines.server.endpoints import Unreadable
from pts.errors import EngineError
from pts.types import TokenDistribution

FIRST_WIDTH = 20
"""Tokens listed at first when top_k does not say how many are needed; vLLM's default limit."""
WIDER = 8
WIDEST = 2**16
"""Where so many would be asked for, all are."""
WHOLE_MASS = 1e-5
"""How well the sum of a list is known: float32 rounds so. A list that lacks no more is whole."""
OVER_ONE = 1e-3
"""Probabilities that should sum to 1 and miss it by more than this are none."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TopLogprobs:
    """The likeliest tokens of a position, most likely first, equal ones by ascending id.

    `ids` int64 [K], `logprobs` float64 [K], all finite. `whole`: no other token has any mass.
    """

    ids: npt.NDArray[np.int64]
    logprobs: Floats
    whole: bool

    @classmethod
    def ranked(cls, ids: npt.ArrayLike, logprobs: npt.ArrayLike, *, whole: bool) -> TopLogprobs:
        """Raises Unreadable when tokens repeat, the numbers are no log-probabilities, or a list
        that should be whole lacks mass."""
        tokens, values = np.array(ids, np.int64), np.array(logprobs, np.float64)
        if not len(tokens) or len(np.unique(tokens)) < len(tokens):
            raise Unreadable("the likely tokens are none, or one is listed twice")
        mass = float(np.exp(np.minimum(values, 1.0)).sum())
        if not np.isfinite(values).all() or mass > 1 + OVER_ONE:
            raise Unreadable(
                f"the listed log-probabilities sum to a mass of {mass:.4g}; if they are logits "
                "(vLLM: --logprobs-mode), start the server with --logprobs-mode processed_logprobs"
            )
        if whole and mass < 1 - OVER_ONE:
            raise Unreadable(f"the list of all tokens holds only {mass:.1%} of the mass")
        order = np.lexsort((tokens, -values))
        return cls(tokens[order], values[order], whole)

    def of(self, token: int) -> float:
        """The log-probability of a listed token. Raises EngineError for another one."""
        hit = np.flatnonzero(self.ids == token)
        if not hit.size:
            raise EngineError(f"token {token} is not among the {len(self.ids)} that are listed")
        return float(self.logprobs[hit[0]])

    @property
    def mass(self) -> float:
        return float(np.exp(self.logprobs).sum())


def widths(sampling: SamplingConfig, everything: int) -> Iterator[int]:
    """How many tokens to ask for, until a row is whole: few at first, at last `everything`.

    With top-k one more is needed, to see that the k-th has no equal; it may have some.
    """
    if sampling.temperature == 0:
        yield 1
        return
    if sampling.top_k:
        width = sampling.top_k + 1
    elif sampling.top_p < 1 or sampling.min_p > 0:
        width = FIRST_WIDTH
    else:
        width = WIDEST
    while width < WIDEST:
        yield width
        width = width * WIDER if width >= FIRST_WIDTH else FIRST_WIDTH
    yield everything


def processed_row(listing: TopLogprobs, sampling: SamplingConfig) -> TokenDistribution | None:
    """The row of a list of the distribution that is sampled from; None if it is not whole."""
    if sampling.temperature == 0:
        return TokenDistribution(listing.ids[:1].copy(), np.ones(1))
    if not listing.whole and listing.mass < 1 - WHOLE_MASS:
        return None
    probs = np.exp(listing.logprobs)
    return TokenDistribution(listing.ids, probs / probs.sum())


def raw_row(
    listing: TopLogprobs, sampling: SamplingConfig, vocabulary: int, path_token: int = -1
) -> TokenDistribution | None:
    """The row of a list of the model's own probabilities; None if the support is not certain.

    `vocabulary` bounds the number of tokens that are not listed.
    """
    ids, logprobs = listing.ids, listing.logprobs
    if sampling.temperature == 0:
        return TokenDistribution(ids[:1].copy(), np.ones(1))
    hidden = 0 if listing.whole else max(0, vocabulary - len(ids))
    weights = np.exp((logprobs - logprobs[0]) / sampling.temperature)
    if 0 < sampling.top_k < len(ids) + hidden:
        if len(logprobs) < sampling.top_k:
            return None
        head = int((logprobs >= logprobs[sampling.top_k - 1]).sum())  # ties with the k-th included
        if hidden and head == len(logprobs):
            return None
        ids, weights, logprobs, hidden = ids[:head], weights[:head], logprobs[:head], 0
    rest = _hidden_weight(logprobs, hidden, sampling.temperature)
    fewest, most = len(ids), len(ids) if hidden == 0 else len(ids) + 1
    if sampling.top_p < 1:
        # Tokens before which less than top_p is held; one more than listed if unclear.
        before = np.concatenate([[0.0], weights.cumsum()])
        kept = [int((before < sampling.top_p * (weights.sum() + more)).sum()) for more in rest]
        fewest, most = min(fewest, *kept), min(most, max(kept))
    if sampling.min_p > 0:
        likely = int((weights >= sampling.min_p).sum())
        fewest, most = min(fewest, likely), min(most, likely if likely < len(ids) else most)
    if fewest != most or most > len(ids):
        return None
    at = np.flatnonzero(ids == path_token)
    if at.size and at[0] >= most and weights[at[0]] == weights[most - 1]:
        ids = ids.copy()  # of equals at the edge, the path's token first
        ids[[most - 1, at[0]]] = ids[[at[0], most - 1]]
    ids, weights = ids[:most], weights[:most]
    seen = int((weights > 0).sum())  # a low temperature rounds some weights to nothing
    return TokenDistribution(ids[:seen], weights[:seen] / weights.sum())


def _hidden_weight(logprobs: Floats, hidden: int, temperature: float) -> tuple[float, float]:
    """Bounds of the weight (relative to the likeliest token) of tokens that are not listed.

    They hold mass r in total, at most p each (the last listed one's). A sum of x^(1/T) under these
    conditions is extreme where the mass is spread evenly and where it is as uneven as can be, and
    grows with r. What the listed ones leave tells r only to `WHOLE_MASS`: a high temperature makes
    much of a mass that rounding has hidden.
    """
    if not hidden:
        return 0.0, 0.0
    power = 1.0 / temperature
    last = math.exp(logprobs[-1])
    left = 1.0 - float(np.exp(logprobs).sum())
    low, high = (min(max(0.0, left + e), hidden * last) for e in (-WHOLE_MASS, WHOLE_MASS))
    scale = math.exp(-logprobs[0] * power)
    least = min(_extremes(low, hidden, last, power))
    most = max(_extremes(high, hidden, last, power))
    return least * scale, most * scale


def _extremes(mass: float, count: int, last: float, power: float) -> tuple[float, float]:
    """Sums of x^power over `count` tokens that hold `mass`: evenly, and at most `last` each."""
    if mass == 0:
        return 0.0, 0.0
    return count * (mass / count) ** power, mass * min(last, mass) ** (power - 1)
