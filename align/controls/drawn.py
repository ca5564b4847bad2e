"""Pairs at positions that are drawn, not searched: one a question.

For each question one completion is sampled, a position is drawn in it, and a sibling from the rest
of that position's distribution. `uncertain` draws among the positions where the sampled token has
1 - q >= p_gap: elsewhere no token can be pivotal, so this arm knows what the search knows for
nothing. `uniform` draws among all positions. Both measure the two siblings with fresh rollouts and
take the better one as chosen; ties are dropped and counted. `coin` draws as `uncertain` does, lets
a coin decide and measures nothing. None filters questions by difficulty or confirms anything.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from align.controls.pairs import Control, DrawnArm, Measured, Passed, Siblings
from pts.algorithm.requests import SearchRoutine, request, request_logprobs
from pts.algorithm.tails import HEAD
from pts.config import SearchConfig
from pts.types import Ids, LogprobQuery, RolloutQuery, TokenDistribution

MEASURED = 24
"""Fresh rollouts of each sibling: a fixed number, near what a confirmation takes on average."""


def drawn_search(
    problem_id: str, config: SearchConfig, arm: DrawnArm, seed: int
) -> SearchRoutine[Control]:
    """One question, as a generator for `pts.runtime.scheduler.run`."""
    rng = random.Random(f"{seed}|{problem_id}")
    [[rollout]] = yield from request([RolloutQuery((), 1, "filter")])
    ids = rollout.ids
    [rows] = yield from request_logprobs([LogprobQuery(ids, HEAD)])
    at = draw_position(ids, rows, 0.0 if arm == "uniform" else config.p_gap, rng)
    if at is None:
        return Control("no position")
    [[row]] = yield from request_logprobs([LogprobQuery(ids, at=(at,))])
    drawn = draw_siblings(ids, at, row, rng)
    if arm == "coin":
        return Control("pair", (Measured(drawn if rng.random() < 0.5 else drawn.swapped()),))
    n = min(MEASURED, config.confirm_rollouts)
    sides = [RolloutQuery((*drawn.prefix, token), n, "confirm") for token in drawn.tokens]
    first, second = map(Passed.of, (yield from request(sides)))
    if first == second:
        return Control("tie")
    if first.successes > second.successes:
        return Control("pair", (Measured(drawn, first, second),))
    return Control("pair", (Measured(drawn.swapped(), second, first),))


def draw_position(
    ids: Ids, rows: Sequence[TokenDistribution], least: float, rng: random.Random
) -> int | None:
    """A random position with 1 - q >= `least` and another token than the sampled one, or None."""
    places = [
        i
        for i, row in enumerate(rows)
        if (row.probs > 0).sum() > 1 and 1 - row.prob(ids[i]) >= least
    ]
    return rng.choice(places) if places else None


def draw_siblings(ids: Ids, at: int, row: TokenDistribution, rng: random.Random) -> Siblings:
    """The sampled token at a position and one of the others, by its whole row.

    The sibling comes from the truncated distribution with the sampled token removed and the rest
    renormalised.
    """
    own = ids[at]
    others = [(int(t), float(q)) for t, q in zip(row.ids, row.probs, strict=True) if t != own]
    tokens, probs = zip(*others, strict=True)
    sibling = rng.choices(tokens, probs)[0]
    return Siblings(ids[:at], (own, sibling), (row.prob(own), row.prob(sibling)))
