"""Does `sample` draw from the rows that `score` tells? Frequencies at places, and whole rollouts.

A place is a prefix at which many rollouts are drawn: the start, two uncertain positions of a
completion (an early and a late one), and one of these with a sibling forced by a longer prefix.
Their requests share the engine's queue with whole rollouts, all of whose steps are tested too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pts.engines.base import SampleRequest
from pts.stats import MIN_EXPECTED, Floats, chi_square
from pts.testing.diagnoses import RIGHT, SAME, diagnoses, equal_to, fitting
from pts.testing.probes import ProbePath, ProbePrefix, choose_places
from pts.testing.report import clipped
from pts.testing.rollouts import EngineHarness, Seeds
from pts.testing.rows import check_row, scored, shown
from pts.testing.statistics import (
    SUSPICION,
    distance,
    pit,
    serial,
    tally,
    uniformity,
    without,
)
from pts.types import Ids, TokenDistribution

PlainRow = Callable[[Ids, Ids], TokenDistribution | None]
"""The plain distribution before the last token of a completion of a prompt, if it can be had."""


@dataclass(frozen=True)
class Result:
    """One statistical test: its p-value, and what a finding would say."""

    pvalue: float
    where: str
    expected: str
    observed: str
    cause: str


@dataclass(kw_only=True)
class DistributionTest:
    """The statistical tests under one sampling configuration; `run` may be called again."""

    harness: EngineHarness
    paths: Sequence[ProbePath]
    plain: PlainRow
    seeds: Seeds
    rollouts: int
    whole: int
    limit: int
    tolerance: float

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(0)
        stops = self.harness.engine.stop_ids
        self.places = [
            place
            for place in choose_places(self.paths, stops)
            if self.limit > len(place.prefix) and not stops.intersection(place.prefix)
        ]

    def run(self) -> dict[tuple[str, str], Result]:
        """Fresh draws at all places and fresh whole rollouts; results by check and name."""
        places = [
            SampleRequest(
                k, p.prompt, p.prefix, min(2, self.limit - len(p.prefix)), self.seeds(self.rollouts)
            )
            for k, p in enumerate(self.places)
        ]
        wholes = [
            SampleRequest(len(places) + k, path.prompt, (), self.limit, self.seeds(self.whole))
            for k, path in enumerate(self.paths)
        ]
        answers = self.harness.collect([*places[::2], *wholes], places[1::2])
        results: dict[tuple[str, str], Result] = {}
        for request, place in zip(places, self.places, strict=True):
            drawn = [ids for ids in answers.get(request.key, []) if ids]
            if len(drawn) > len(request.seeds) // 2:
                results.update(self._at(request, place, drawn))
        drawn_whole = [answers.get(request.key, []) for request in wholes]
        results.update(self._along(drawn_whole))
        return results

    # First tokens at a place

    def _at(
        self, request: SampleRequest, place: ProbePrefix, drawn: Sequence[Ids]
    ) -> Iterator[tuple[tuple[str, str], Result]]:
        tokens = [ids[0] for ids in drawn]
        where = (
            f"{self.harness.settings}; problem {place.name}, first token after a prefix of "
            f"{len(place.prefix)}{' whose last token is a forced sibling' if place.forced else ''}"
        )
        row = self.harness.engine.score(place.prompt, (*place.prefix, tokens[0]))[-1]
        if not check_row(self.harness.notes, row, where):
            return
        self._equal(where, drawn, row)
        counts, outside = tally(row, tokens)
        if len(outside) > self.tolerance * len(tokens):
            self._outside(where, row, place, tokens, outside)
            return
        name = f"{place.name} {place.prefix}"
        check = "longer prefix" if place.forced else "frequencies"
        told = (shown(row), shown(_counted(tokens)), self._cause(place, row, tokens))
        if counts.sum():
            yield (check, name), Result(chi_square(counts, row.probs), where, *told)
        top = int(row.ids[0])
        rest = [token for token in tokens if token != top]
        if len(row.ids) > 2 and len(rest) >= 3 * MIN_EXPECTED:
            others = without(row, top)
            told = (shown(others), shown(_counted(rest)), told[2])
            yield (
                ("siblings", name),
                Result(
                    chi_square(tally(others, rest)[0], others.probs),
                    f"{where}, given that it is not the most likely token {top}",
                    *told,
                ),
            )

    def _equal(self, where: str, drawn: Sequence[Ids], row: TokenDistribution) -> None:
        """All rollouts alike although their seeds differ and the row leaves a choice."""
        chance = float((row.probs ** len(drawn)).sum())
        self.harness.notes.tests += 1
        if len(set(drawn)) == 1 and chance < 1e-6:
            self.harness.notes.add(
                "seeds",
                where,
                f"different rollouts under {len(drawn)} different seeds",
                f"all are {clipped(drawn[0])} (probability {chance:.1g})",
                "one rollout is repeated n times, the seeds of a request are ignored, or sampling "
                "is greedy",
            )

    def _outside(
        self,
        where: str,
        row: TokenDistribution,
        place: ProbePrefix,
        tokens: Sequence[int],
        outside: Sequence[int],
    ) -> None:
        self.harness.notes.add(
            "longer prefix" if place.forced else "frequencies",
            where,
            f"only tokens of score's row: {shown(row)}",
            f"{len(outside)} of {len(tokens)} draws are others, such as token {outside[0]}: "
            + shown(_counted(tokens)),
            self._cause(place, row, tokens),
        )

    def _cause(self, place: ProbePrefix, row: TokenDistribution, tokens: Sequence[int]) -> str:
        plain = self.plain(place.prompt, (*place.prefix, tokens[0]))
        sampling = self.harness.engine.sampling
        known = dict(diagnoses(plain, sampling)) if plain is not None else {"score's row": row}
        for name, other in place.others.items():
            if all(distance(other, r) > SAME for r in known.values()):
                known[f"continues {name}"] = other
        fits, told = fitting(tokens, known), equal_to(row, known)
        if fits is None:
            return f"no common mistake fits the draws; {_likelier(row, tokens)}"
        if fits == RIGHT:
            wrong = told if told not in (None, RIGHT) else "its rows are not the policy's"
            return f"sample is as configured, score is not: {wrong}"
        also = f"; score: {told}" if told not in (None, RIGHT, fits) else ""
        return f"in sample: {fits}{also}"

    # Every step of whole rollouts

    def _along(self, drawn: Sequence[Sequence[Ids]]) -> Iterator[tuple[tuple[str, str], Result]]:
        steps: list[tuple[int, Floats]] = []
        for path, completions in zip(self.paths, drawn, strict=True):
            for ids in completions:
                rows = scored(self.harness, path.prompt, ids, path.name) if ids else None
                if rows is not None:
                    steps += self._halves(rows, ids)
        for half, name in enumerate(("first half", "second half")):
            u = [part for which, part in steps if which == half]
            if u and (joined := np.concatenate(u)).size:
                yield ("rollouts", name), self._uniform(joined, name)
        yield (
            ("rollouts", "serial"),
            Result(
                serial([u for _, u in steps]),
                f"{self.harness.settings}; neighbouring steps of whole rollouts",
                "independent draws at each step",
                "the random numbers behind them are correlated",
                "the generator is seeded anew at each step, so that every step of a rollout uses "
                "the same random number",
            ),
        )

    def _halves(self, rows: Sequence[TokenDistribution], ids: Ids) -> Iterator[tuple[int, Floats]]:
        middle = self.limit // 2
        for half, part in enumerate((slice(0, middle), slice(middle, None))):
            yield half, pit(rows[part], ids[part], self.rng)

    def _uniform(self, u: Floats, name: str) -> Result:
        tendency = "as likely as"
        if abs(u.mean() - 0.5) > 3 * np.sqrt(1 / (12 * len(u))):
            tendency = "less likely than" if u.mean() > 0.5 else "more likely than"
        cause = {
            "as likely as": "rows of score and of sample differ in another way than temperature",
            "less likely than": "sample uses a higher temperature than score, or cuts less",
            "more likely than": "sample uses a lower temperature than score, or cuts more",
        }[tendency]
        if name == "second half":
            cause += "; if the first half agrees: positions, cache or window go wrong with length"
        return Result(
            uniformity(u),
            f"{self.harness.settings}; {name} of whole rollouts of up to {self.limit} tokens",
            "each token is drawn from score's row at its own position",
            f"over {len(u)} steps the tokens are {tendency} score says",
            cause,
        )


def _counted(tokens: Sequence[int]) -> TokenDistribution:
    """Sampled frequencies as a row, most frequent first."""
    ids, counts = np.unique(np.asarray(tokens, np.int64), return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return TokenDistribution(ids[order], counts[order] / counts.sum())


def _likelier(row: TokenDistribution, tokens: Sequence[int]) -> str:
    seen = float(np.mean([row.prob(token) for token in tokens]))
    meant = float((row.probs**2).sum())
    kind = "flatter" if seen < meant else "sharper"
    return f"sample's distribution is {kind} than score's"


def significant(first: Mapping[tuple[str, str], Result]) -> set[tuple[str, str]]:
    """Tests that call for a second look."""
    return {name for name, result in first.items() if result.pvalue < SUSPICION}
