"""The sampling distribution: truncation, and draws that depend on a seed and a step only.

`truncate` is the single place where temperature, top-k, top-p and min-p are applied.
`Engine.score` reads its rows and `Engine.sample` draws from it, so both see one distribution. The
order is that of `transformers` generation (`GenerationMixin._get_logits_processor`, 5.23):
temperature, top-k, top-p, min-p. All weights are float64.

Every truncation keeps the head of the same ranking: most likely first, equal logits by ascending
token id. Tokens that tie with the k-th most likely one are all kept, as `transformers` does; a tie
at the edge of the nucleus is cut by token id (there `transformers` leaves the choice to its sort).

Penalties, minimum lengths and banned words are not covered: they depend on the whole completion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import pad

from pts.config import SamplingConfig
from pts.errors import EngineError
from pts.types import TokenDistribution

FIRST_SLICE = 32
"""Most likely tokens examined first when a nucleus is looked for; grows until it is inside."""


@dataclass(frozen=True, slots=True)
class Truncated:
    """Truncated distributions of N positions, not normalised.

    `weights` (float64, [N, K]) are relative to each row's most likely token, 0 outside the support.
    `ids` (int64, [N, K]) names the columns, ranked; None when column j is token j.
    """

    ids: torch.Tensor | None
    weights: torch.Tensor

    def draw(self, uniforms: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """One token id a row by inverse CDF; `uniforms` has shape [N] and lies in [0, 1)."""
        cdf = self.weights.cumsum(-1)
        total = cdf[:, -1:]
        at = torch.from_numpy(uniforms).to(total.device, total.dtype)[:, None] * total
        at = torch.minimum(at, torch.nextafter(total, torch.zeros_like(total)))
        column = torch.searchsorted(cdf, at, right=True)
        drawn = column if self.ids is None else self.ids.gather(-1, column)
        ids: npt.NDArray[np.int64] = drawn[:, 0].cpu().numpy()
        return ids

    def rows(self) -> list[TokenDistribution]:
        """The supports as N normalised rows, most likely token first."""
        weights, ids = self.weights, self.ids
        if ids is None:
            weights, ids = weights.sort(dim=-1, descending=True, stable=True)
        sizes = (weights > 0).sum(-1).tolist()
        probs = (weights / weights.sum(-1, keepdim=True)).cpu().numpy()
        tokens = ids.cpu().numpy()
        return [
            TokenDistribution(tokens[i, :n].copy(), probs[i, :n].copy())
            for i, n in enumerate(sizes)
        ]


def truncate(logits: torch.Tensor, sampling: SamplingConfig) -> Truncated:
    """The distributions that are sampled from, given logits of shape [N, V].

    Temperature 0 keeps the most likely token alone (the lowest id among equals).
    Raises EngineError when the model returned NaN or no finite logit.
    """
    if logits.device.type == "mps":  # which has no float64
        logits = logits.cpu()
    best, first = logits.max(dim=-1, keepdim=True)
    if not torch.isfinite(best).all():
        raise EngineError(
            "the model returned logits that are NaN or infinite; check the weights and the dtype"
        )
    if sampling.temperature == 0:
        return Truncated(first, torch.ones_like(best, dtype=torch.float64))
    vocabulary = logits.shape[-1]
    if 0 < sampling.top_k < vocabulary:
        weights, ids = _head(logits, best, sampling.top_k, sampling.temperature)
        cut = Truncated(ids, _nucleus(weights, weights.sum(-1, keepdim=True), sampling.top_p))
    elif sampling.top_p < 1:
        cut = _nucleus_of_all(logits, best, sampling)
    else:
        cut = Truncated(None, _weights(logits, best, sampling.temperature))
    if sampling.min_p > 0:
        # A row's most likely token weighs exactly 1, before and after the other truncations.
        return Truncated(cut.ids, cut.weights.masked_fill(cut.weights < sampling.min_p, 0.0))
    return cut


def _weights(logits: torch.Tensor, best: torch.Tensor, temperature: float) -> torch.Tensor:
    """exp((logit - best) / temperature) in float64; the logits stay as they are."""
    return logits.to(torch.float64, copy=True).sub_(best.double()).div_(temperature).exp_()


def _head(
    logits: torch.Tensor, best: torch.Tensor, k: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and ids [N, K] of the tokens that `_ranked` promises; further columns weigh 0.

    Further columns come from rows with more ties: which of equal tokens they hold is left open.
    """
    values, ids = _ranked(logits, k)
    weights = _weights(values, best, temperature)
    last = values[:, min(k, values.shape[-1]) - 1, None]
    return weights.masked_fill(values < last, 0.0), ids


def _ranked(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k most likely tokens of each row, and all that tie with the k-th, ranked.

    Returns logits and ids of shape [N, K] with K >= k, or K = V < k; up to the ties with the k-th
    the ranking of a row does not depend on K.
    """
    if 2 * k >= logits.shape[-1]:
        return logits.sort(dim=-1, descending=True, stable=True)
    values, ids = logits.topk(k, dim=-1)
    wide = int((logits >= values[:, -1:]).sum(-1).max())
    if wide > k:
        values, ids = logits.topk(wide, dim=-1)
    if bool((values[:, 1:] == values[:, :-1]).any()):
        ids, order = ids.sort(dim=-1)
        values, order = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
        ids = ids.gather(-1, order)
    return values, ids


def _nucleus(weights: torch.Tensor, total: torch.Tensor, top_p: float) -> torch.Tensor:
    """Ranked weights [N, K] without the tokens before which `top_p` of `total` is reached."""
    if top_p >= 1:
        return weights
    before = weights.cumsum(-1) - weights
    return weights.masked_fill(before >= top_p * total, 0.0)


def _nucleus_of_all(
    logits: torch.Tensor, best: torch.Tensor, sampling: SamplingConfig
) -> Truncated:
    """The nucleus out of the whole vocabulary, ranking no more of each row than needed.

    A row whose nucleus is not inside the first slice is ranked again in a longer one, alone with
    its like: a few uncertain rows do not make a large batch slow.
    """
    total = _weights(logits, best, sampling.temperature).sum(-1, keepdim=True)
    k = FIRST_SLICE
    weights, ids = _head(logits, best, k, sampling.temperature)
    short = _unreached(weights, total, sampling.top_p)
    while short.numel() and k < logits.shape[-1]:
        k *= 8
        more, wider = _head(logits[short], best[short], k, sampling.temperature)
        missing = max(0, more.shape[-1] - weights.shape[-1])
        weights, ids = pad(weights, (0, missing)), pad(ids, (0, missing))
        weights[short, : more.shape[-1]] = more
        ids[short, : more.shape[-1]] = wider
        short = short[_unreached(more, total[short], sampling.top_p)]
    return Truncated(ids, _nucleus(weights, total, sampling.top_p))


def _unreached(weights: torch.Tensor, total: torch.Tensor, top_p: float) -> torch.Tensor:
    """Indices of the rows whose ranked weights do not hold `top_p` of the total."""
    return (weights.sum(-1, keepdim=True) < top_p * total)[:, 0].nonzero()[:, 0]


_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLY = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_BUMP = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))

Words = npt.NDArray[np.uint64]


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> list[Words]:
    """Philox4x32-10 over arrays of 32-bit words held in uint64.

    Counter-based, so a number is a function of (key, counter) and needs no state. Source: Salmon,
    Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLY[0] * c0, _MULTIPLY[1] * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _BUMP[0]) & _LOW, (k1 + _BUMP[1]) & _LOW
    return [c0, c1, c2, c3]


def uniforms(seeds: Words, steps: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The random number of each rollout's step: float64 in [0, 1) with 53 bits, shape [N].

    Keyed by the 64-bit seed, counted by the number of tokens sampled before.
    """
    zero = np.zeros_like(seeds)
    words = philox((steps.astype(np.uint64), zero, zero, zero), (seeds & _LOW, seeds >> _HALF))
    high, low = words[0] >> np.uint64(5), words[1] >> np.uint64(6)
    numbers: npt.NDArray[np.float64] = (high * 67108864.0 + low) / 9007199254740992.0
    return numbers
