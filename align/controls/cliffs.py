"""Pairs at cliff tokens, as published (arXiv 2606.25524): every token of a completion is measured.

p(success) before each token of one sampled completion is estimated with 64 rollouts; a cliff is a
token that lets it drop by more than 0.1 + 1.645 standard errors. There the ten likeliest other
tokens get 64 rollouts each, and everyone that is no cliff itself makes a pair against the cliff
token. No correction for testing every token, and no fresh rollouts: the method as it is. A question
with an answer of n tokens costs about 32 n such answers.
"""

from __future__ import annotations

import math

from align.controls.pairs import Control, Measured, Passed, Siblings
from pts.algorithm.requests import SearchRoutine, request, request_logprobs
from pts.types import LogprobQuery, RolloutQuery, TokenDistribution

ROLLOUTS, GAP, Z, CANDIDATES = 64, 0.1, 1.645, 10


def is_cliff(before: Passed, after: Passed) -> bool:
    """Whether p(success) drops by more than the published threshold: a one-sided z test of two
    shares, unpooled, of a drop of `GAP`."""
    sides = (before, after)
    error = math.sqrt(sum(side.share * (1 - side.share) / side.n for side in sides))
    return before.share - after.share > GAP + Z * error


def cliff_search(n: int = ROLLOUTS) -> SearchRoutine[Control]:
    """One question, as a generator for `pts.runtime.scheduler.run`."""
    [[rollout]] = yield from request([RolloutQuery((), 1, "filter")])
    ids = rollout.ids
    prefixes = [RolloutQuery(ids[:end], n, "search") for end in range(len(ids))]
    shares = [Passed.of(found) for found in (yield from request(prefixes))]
    shares.append(Passed(n * rollout.success, n))  # the finished completion has its verdict
    cliffs = tuple(at for at in range(len(ids)) if is_cliff(shares[at], shares[at + 1]))
    if not cliffs:
        return Control("no position")
    [rows] = yield from request_logprobs([LogprobQuery(ids, CANDIDATES + 1, at=cliffs)])
    asked = [
        Siblings(ids[:at], (token, ids[at]), (prob, row.prob(ids[at])))
        for at, row in zip(cliffs, rows, strict=True)
        for token, prob in _likeliest_others(row, ids[at])
    ]
    queries = [RolloutQuery((*one.prefix, one.tokens[0]), n, "confirm") for one in asked]
    found = map(Passed.of, (yield from request(queries)))
    pairs = tuple(
        Measured(one, other, shares[len(one.prefix) + 1])
        for one, other in zip(asked, found, strict=True)
        if not is_cliff(shares[len(one.prefix)], other)
    )
    return Control("pair", pairs) if pairs else Control("tie")


def _likeliest_others(row: TokenDistribution, own: int) -> list[tuple[int, float]]:
    """The likeliest tokens of a row but `own`, with their probabilities."""
    others = [(int(t), float(q)) for t, q in zip(row.ids, row.probs, strict=True) if t != own]
    return [(token, prob) for token, prob in others if prob > 0][:CANDIDATES]
