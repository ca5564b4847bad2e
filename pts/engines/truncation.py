"""Temperature, top-k, top-p and min-p on one distribution, in plain numpy.

A distribution is a vector of probabilities, most likely first. Every step keeps a head of it, so
that the tokens left are the first ones. Tokens that tie with the k-th are all kept (`TabularEngine`
cuts by `first_k`, which keeps k); of tokens that tie at the edge of a nucleus the first ones are.

`pts.engines.transformers.sampling` does the same for whole batches of logits on a device, without
ranking all of a vocabulary; a test holds the two equal. `pts.engines.server.logprobs` bounds what a
list of the likeliest tokens leaves open, which is another question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pts.config import SamplingConfig

Floats = npt.NDArray[np.float64]
Step: TypeAlias = Callable[[Floats, SamplingConfig], Floats]
"""From ranked probabilities to the head that is left, normalised."""


def temper(probs: Floats, sampling: SamplingConfig) -> Floats:
    """p^(1/T); at temperature 0 the most likely token alone."""
    if sampling.temperature == 0:
        return np.ones(1)
    return normalised(np.power(probs / probs[0], 1.0 / sampling.temperature))


def top_k(probs: Floats, sampling: SamplingConfig) -> Floats:
    """The k most likely tokens and what ties with the k-th."""
    if not 0 < sampling.top_k < len(probs):
        return probs
    return normalised(probs[probs >= probs[sampling.top_k - 1]])


def first_k(probs: Floats, sampling: SamplingConfig) -> Floats:
    """The k most likely tokens and no more, whatever ties with the k-th: as llama.cpp does."""
    return normalised(probs[: sampling.top_k]) if 0 < sampling.top_k < len(probs) else probs


def top_p(probs: Floats, sampling: SamplingConfig) -> Floats:
    """The smallest head that holds top_p."""
    if sampling.top_p >= 1:
        return probs
    before = np.concatenate([[0.0], probs.cumsum()[:-1]])
    return normalised(probs[before < sampling.top_p])


def min_p(probs: Floats, sampling: SamplingConfig) -> Floats:
    """Tokens with at least min_p of the most likely one's probability."""
    return normalised(probs[probs >= sampling.min_p * probs[0]])


STEPS: tuple[Step, ...] = (temper, top_k, top_p, min_p)
"""The order of every engine."""


def truncate(probs: Floats, sampling: SamplingConfig, steps: Sequence[Step] = STEPS) -> Floats:
    """What is sampled from: a vector [K] for `probs` [N], descending, K <= N; both sum to 1."""
    for step in steps:
        probs = step(probs, sampling)
    return probs


def normalised(weights: Floats) -> Floats:
    """Weights divided by their sum."""
    return np.asarray(weights / weights.sum(), dtype=np.float64)
