"""Does `sample` draw from the rows that `score` tells? Frequencies at places, and whole rollouts.

A place is a prefix at which many rollouts are drawn: the start, two uncertain positions of a
completion (an early and a late one), and one of these with a sibling forced by a longer prefix.
Their requests share the engine's queue with whole rollouts, all of whose steps are tested too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import entr

from pts.engines.base import SampleRequest
from pts.stats import MIN_EXPECTED, Floats, chi_square
from pts.testing.diagnoses import RIGHT, diagnoses, equal_to, fitting, sorted_row
from pts.testing.report import clipped
from pts.testing.rollouts import EngineHarness
from pts.testing.rows import ProbePath, check_row, scored, shown
from pts.testing.statistics import (
    SURE,
    SUSPICION,
    likeliest_but,
    pit,
    serial,
    tally,
    uniformity,
    without,
)
from pts.types import Ids, TokenDistribution


@dataclass(frozen=True)
class ProbePrefix:
    """A prefix where first tokens are counted. `forced` ends in a sibling, off the path."""

    path: ProbePath
    prefix: Ids
    forced: bool
    others: Mapping[str, TokenDistribution]
    """Rows of wrong places, named by the mistake that would take them."""


def choose_places(paths: Sequence[ProbePath], stops: frozenset[int]) -> Iterator[ProbePrefix]:
    """The start of every path; of each, an early and a late uncertain position, one forced.

    They are chosen by the rows of a completion alone, never by what was drawn there, so a test at a
    place keeps its level.
    """
    for path in paths:
        others = {f"the prompt of problem {p.name}": p.rows[0] for p in paths if p is not path}
        yield ProbePrefix(path, (), False, others)
        half = len(path.ids) // 2
        early = _most_uncertain(path, range(1, half))
        late = _most_uncertain(path, range(max(1, half), len(path.ids)))
        yield from (_on_path(path, i) for i in (early, late) if i is not None)
        if late is not None:
            sibling = likeliest_but(path.rows[late], {path.ids[late], *stops})
            if sibling is not None:
                yield _forced(path, late, sibling)


def _most_uncertain(path: ProbePath, positions: range) -> int | None:
    doubtful = [i for i in positions if path.rows[i].probs.max() <= SURE]
    return max(doubtful, key=lambda i: float(entr(path.rows[i].probs).sum()), default=None)


def _on_path(path: ProbePath, i: int) -> ProbePrefix:
    others = {"the prefix without its last token (off by one)": path.rows[i - 1]}
    if i + 1 < len(path.rows):
        others["the prefix with one token more (off by one)"] = path.rows[i + 1]
    others["no prefix, the prompt alone"] = path.rows[0]
    return ProbePrefix(path, path.ids[:i], False, others)


def _forced(path: ProbePath, i: int, sibling: int) -> ProbePrefix:
    """The prefix with a sibling in the place of the path's token."""
    others = {"the prefix without its last token (off by one)": path.rows[i]}
    if i + 1 < len(path.rows):
        others["the path's own token instead of the forced one"] = path.rows[i + 1]
    return ProbePrefix(path, (*path.ids[:i], sibling), True, others)


@dataclass(frozen=True)
class Result:
    """One statistical test: its p-value, and what a finding would say."""

    pvalue: float
    place: str
    expected: str
    observed: str
    cause: str


@dataclass
class DistributionTest:
    """The statistical tests under one sampling configuration; `run` may be called again."""

    harness: EngineHarness
    paths: Sequence[ProbePath]
    rollouts: int
    whole: int
    tolerance: float

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(0)
        stops = self.harness.engine.stop_ids
        self.places = [
            place
            for place in choose_places(self.paths, stops)
            if self.harness.limit > len(place.prefix) and not stops.intersection(place.prefix)
        ]

    def run(self) -> dict[tuple[str, str], Result]:
        """Fresh draws at all places and fresh whole rollouts; results by check and name."""
        limit, seeds = self.harness.limit, self.harness.seeds
        places = [
            SampleRequest(
                k, p.path.prompt, p.prefix, min(2, limit - len(p.prefix)), seeds(self.rollouts)
            )
            for k, p in enumerate(self.places)
        ]
        wholes = [
            SampleRequest(len(places) + k, path.prompt, (), limit, seeds(self.whole))
            for k, path in enumerate(self.paths)
        ]
        answers = self.harness.collect([*places[::2], *wholes], places[1::2])
        results: dict[tuple[str, str], Result] = {}
        for request, place in zip(places, self.places, strict=True):
            drawn = [ids for ids in answers.get(request.key, []) if ids]
            if len(drawn) > len(request.seeds) // 2:
                results.update(self._at(place, drawn))
        results.update(self._along([answers.get(request.key, []) for request in wholes]))
        return results

    # First tokens at a place

    def _at(
        self, place: ProbePrefix, drawn: Sequence[Ids]
    ) -> Iterator[tuple[tuple[str, str], Result]]:
        tokens = [ids[0] for ids in drawn]
        where = (
            f"problem {place.path.name}, first token after a prefix of {len(place.prefix)}"
            f"{' whose last token is a forced sibling' if place.forced else ''}"
        )
        row = self.harness.engine.score(place.path.prompt, (*place.prefix, tokens[0]))[-1]
        if not check_row(self.harness, row, where):
            return
        self._equal(where, drawn, row)
        counts, outside = tally(row, tokens)
        check = "longer prefix" if place.forced else "frequencies"
        cause = self._cause(place, row, tokens)
        if len(outside) > self.tolerance * len(tokens):
            self.harness.add(
                check,
                where,
                f"only tokens of score's row: {shown(row)}",
                f"{len(outside)} of {len(tokens)} draws are others, such as token {outside[0]}: "
                + shown(_counted(tokens)),
                cause,
            )
            return
        name = f"{place.path.name} {place.prefix}"
        if counts.sum():
            p = chi_square(counts, row.probs)
            yield (check, name), Result(p, where, shown(row), shown(_counted(tokens)), cause)
        top = int(row.ids[0])
        rest = [token for token in tokens if token != top]
        if len(row.ids) > 2 and len(rest) >= 3 * MIN_EXPECTED:
            others = without(row, top)
            p = chi_square(tally(others, rest)[0], others.probs)
            where += f", given that it is not the most likely token {top}"
            told = (shown(others), shown(_counted(rest)), cause)
            yield ("siblings", name), Result(p, where, *told)

    def _equal(self, place: str, drawn: Sequence[Ids], row: TokenDistribution) -> None:
        """All rollouts alike although their seeds differ and the row leaves a choice."""
        chance = float((row.probs ** len(drawn)).sum())
        self.harness.notes.tests += 1
        if len(set(drawn)) == 1 and chance < 1e-6:
            self.harness.add(
                "seeds",
                place,
                f"different rollouts under {len(drawn)} different seeds",
                f"all are {clipped(drawn[0])} (probability {chance:.1g})",
                "one rollout is repeated n times, the seeds of a request are ignored, or sampling "
                "is greedy",
            )

    def _cause(self, place: ProbePrefix, row: TokenDistribution, tokens: Sequence[int]) -> str:
        known = {"score's row": row}
        if self.harness.plain is not None:
            plain = self.harness.plain.score(place.path.prompt, (*place.prefix, tokens[0]))[-1]
            known = dict(diagnoses(plain, self.harness.engine.sampling))
        for name, other in place.others.items():
            if equal_to(other, known) is None:
                known[f"continues {name}"] = other
        fits, told = fitting(tokens, known), equal_to(row, known)
        if fits is None:
            seen = np.mean([row.prob(token) for token in tokens])
            kind = "flatter" if seen < (row.probs**2).sum() else "sharper"
            return f"no common mistake fits the draws; sample's distribution is {kind} than score's"
        if fits == RIGHT:
            wrong = told if told not in (None, RIGHT) else "its rows are not the policy's"
            return f"sample is as configured, score is not: {wrong}"
        also = f"; score: {told}" if told not in (None, RIGHT, fits) else ""
        return f"in sample: {fits}{also}"

    # Every step of whole rollouts

    def _along(self, drawn: Sequence[Sequence[Ids]]) -> Iterator[tuple[tuple[str, str], Result]]:
        parts: list[Floats] = []  # first and second half of each rollout in turn
        middle = self.harness.limit // 2
        for path, completions in zip(self.paths, drawn, strict=True):
            for ids in completions:
                whole = scored(self.harness, path.prompt, ids, path.name) if ids else None
                if whole is not None:
                    parts.append(pit(whole.rows[:middle], ids[:middle], self.rng))
                    parts.append(pit(whole.rows[middle:], ids[middle:], self.rng))
        for half, name in enumerate(("first half", "second half")):
            u = np.concatenate([np.empty(0), *parts[half::2]])
            if u.size:
                yield ("rollouts", name), self._uniform(u, name)
        neighbours = Result(
            serial(parts),
            "neighbouring steps of whole rollouts",
            "independent draws at each step",
            "the random numbers behind them are correlated",
            "the generator is seeded anew at each step, so that every step of a rollout uses the "
            "same random number",
        )
        yield ("rollouts", "serial"), neighbours

    def _uniform(self, u: Floats, name: str) -> Result:
        excess, edge = u.mean() - 0.5, 3 * np.sqrt(1 / (12 * len(u)))
        tendency = "as likely as"
        cause = "rows of score and of sample differ in another way than temperature"
        if excess > edge:
            tendency = "less likely than"
            cause = "sample uses a higher temperature than score, or cuts less"
        elif excess < -edge:
            tendency = "more likely than"
            cause = "sample uses a lower temperature than score, or cuts more"
        if name == "second half":
            cause += "; if the first half agrees: positions, cache or window go wrong with length"
        return Result(
            uniformity(u),
            f"{name} of whole rollouts of up to {self.harness.limit} tokens",
            "each token is drawn from score's row at its own position",
            f"over {len(u)} steps the tokens are {tendency} score says",
            cause,
        )


def _counted(tokens: Sequence[int]) -> TokenDistribution:
    """Sampled frequencies as a row, most frequent first."""
    ids, counts = np.unique(np.asarray(tokens, np.int64), return_counts=True)
    return sorted_row(TokenDistribution(ids, counts / counts.sum()))


def check_distributions(trial: DistributionTest) -> None:
    """Run the tests, once more if any calls for it, and note what fails both times."""
    notes, first = trial.harness.notes, trial.run()
    notes.tests += len(first)
    notes.checked.update(dict.fromkeys(check for check, _ in first))
    suspicious = sorted(name for name, result in first.items() if result.pvalue < SUSPICION)
    second = trial.run() if suspicious else {}
    for name in suspicious:
        told = second.get(name)
        if told is not None and told.pvalue < SUSPICION:
            observed = f"{told.observed} (p = {first[name].pvalue:.1g}, then {told.pvalue:.1g})"
            trial.harness.add(name[0], told.place, told.expected, observed, told.cause)
