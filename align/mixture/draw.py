"""How many rows each source gives, and which.

Both depend on the sizes of the sources, the weights and the seed alone. Which rows a source gives
does not depend on the other sources, but for how many are asked of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def quotas(sizes: Sequence[int], weights: Sequence[float], wanted: int, repeat: bool) -> list[int]:
    """Rows to draw from each source.

    Args:
        sizes: rows that each has, at least 1.
        weights: shares of the rows drawn, up to a common factor.
        wanted: rows in all; 0 takes as many as the shares allow or, under `repeat`, as it takes to
            draw every row once.
        repeat: rows may be drawn again where a source has too few.
    """
    shares = [weight / math.fsum(weights) for weight in weights]
    rounds = [size / share for size, share in zip(sizes, shares, strict=True)]
    most = max(rounds) if repeat else min(rounds)
    total = min(wanted or math.inf, most) if not repeat else wanted or most
    every = repeat and not wanted
    whole = math.ceil(total - 1e-6) if every else math.floor(total + 1e-6)
    exact = [share * whole for share in shares]
    found = [math.floor(rows + 1e-9) for rows in exact]
    by_remainder = sorted(range(len(exact)), key=lambda k: (found[k] - exact[k], k))
    for k in by_remainder[: whole - sum(found)]:
        found[k] += 1
    if every:  # whatever was rounded
        return [max(n, size) for n, size in zip(found, sizes, strict=True)]
    return found if repeat else [min(n, size) for n, size in zip(found, sizes, strict=True)]


def times_drawn(size: int, limit: int, quota: int, seed: int) -> npt.NDArray[np.uint32]:
    """How often each row of a source is drawn: all equally often, or once more.

    Args:
        size: rows of the source.
        limit: rows that may be drawn at all; 0 for all.
        quota: rows to draw.
        seed: decides which.
    """
    order = np.random.default_rng(seed).permutation(size)[: limit or size]
    times = np.zeros(size, np.uint32)
    again, left = divmod(quota, len(order))
    times[order] = again
    times[order[:left]] += 1
    return times
