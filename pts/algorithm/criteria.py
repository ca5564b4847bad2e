"""Which pairs a searched path offers: one function a criterion, and the registry of them.

    CRITERIA["mine"] = Criterion(my_pairs)      # then: SearchConfig(criteria=("path", "mine"))

A criterion names the siblings that are worth comparing, most promising first. Whatever it names is
measured, confirmed by fresh rollouts and selected like the pairs of every other criterion; each
criterion is a family of its own under the false discovery rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations

from pts.algorithm.siblings import PairProposal, PathSiblings
from pts.config import SearchConfig
from pts.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Criterion:
    """A way of choosing pairs along one path.

    `pairs` is asked again after each round of measurements. `at_once`: all its unmeasured pairs are
    measured in one round (few, at positions that the search has decided), not `round_blocks` a
    round.
    """

    pairs: Callable[[PathSiblings], list[PairProposal]]
    at_once: bool = False


def path_pairs(siblings: PathSiblings) -> list[PairProposal]:
    """For each pivotal token the most promising opponent among its likely siblings."""
    found = [siblings.best(_against_path(siblings, at, up)) for at, up in siblings.pivots.items()]
    return [pair for pair in found if pair is not None]


def _against_path(siblings: PathSiblings, position: int, up: bool) -> Iterator[PairProposal]:
    ids = siblings.path.ids
    own = siblings.estimate(position, ids[position])
    for token in siblings.likely[position]:
        if token != own.token:
            other = siblings.estimate(position, token)
            sides = (own, other) if up else (other, own)
            yield PairProposal(ids[:position], *sides, "path")


def fork_pairs(siblings: PathSiblings) -> list[PairProposal]:
    """The most promising pair of each fork, by what it may gain, `max_pairs` of them."""
    forks = [i for i, tokens in enumerate(siblings.likely) if len(tokens) > 1]
    found = [siblings.best(_at_fork(siblings, at)) for at in forks]
    pairs = [pair for pair in found if pair is not None]
    pairs.sort(key=lambda pair: (-pair.rejected.prob * pair.optimistic_gap, pair.position))
    return pairs[: siblings.config.max_pairs]


def _at_fork(siblings: PathSiblings, position: int) -> Iterator[PairProposal]:
    options = [siblings.estimate(position, token) for token in siblings.likely[position]]
    for chosen, rejected in permutations(options, 2):
        yield PairProposal(siblings.path.ids[:position], chosen, rejected, "fork")


CRITERIA: dict[str, Criterion] = {
    "path": Criterion(path_pairs, at_once=True),
    "fork": Criterion(fork_pairs),
}
"""By the names that `SearchConfig.criteria` takes. Pairs that two criteria propose belong to the
one that stands first here."""


def check_criteria(config: SearchConfig) -> None:
    """Raise ConfigError for names that no criterion has."""
    known = f"; known: {', '.join(CRITERIA)}"
    unknown = [name for name in config.criteria if name not in CRITERIA]
    if unknown:
        raise ConfigError(
            *(f"criteria: no criterion {n!r}{did_you_mean(n, CRITERIA) or known}" for n in unknown)
        )
