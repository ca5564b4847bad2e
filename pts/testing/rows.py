"""Checks of `Engine.score`: rows that are distributions, in the right place, under the settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pts.testing.diagnoses import RIGHT, SAME, as_told, diagnoses, equal_to
from pts.testing.report import clipped
from pts.testing.rollouts import EngineHarness
from pts.testing.statistics import distance, likeliest_but
from pts.types import Ids, TokenDistribution

SUM_ERROR = 1e-6
SHIFTED = "rows are shifted by one: row i must be the distribution before token i, not after it"


@dataclass(frozen=True)
class ProbePath:
    """A completion with its rows, to draw places from."""

    name: str
    prompt: Ids
    ids: Ids
    rows: Sequence[TokenDistribution]


def scored(harness: EngineHarness, prompt: Ids, completion: Ids, name: str) -> ProbePath | None:
    """A completion with its rows, checked; None when they cannot be used."""
    rows = harness.engine.score(prompt, completion)
    if len(rows) != len(completion):
        place = f"problem {name}, completion of {len(completion)} tokens"
        expected = f"one row a token of the completion: {len(completion)}"
        cause = (
            "rows start before the prompt's end or stop short of the last token: row i is the "
            "distribution that token i was drawn from"
        )
        harness.add("rows", place, expected, f"{len(rows)} rows", cause)
        return None
    usable = [
        check_row(harness, row, f"problem {name}, position {position}")
        for position, row in enumerate(rows)
    ]
    return ProbePath(name, prompt, completion, rows) if all(usable) else None


def check_row(harness: EngineHarness, row: TokenDistribution, place: str) -> bool:
    """Note what is wrong with one row; False when nothing more can be read from it."""
    ids, probs = np.asarray(row.ids), np.asarray(row.probs)
    if ids.ndim != 1 or ids.shape != probs.shape or not len(ids):
        observed = f"ids of shape {ids.shape}, probs of shape {probs.shape}"
        cause = "ids and probs have different lengths or an axis too many"
        harness.add("rows", place, "two vectors of one length, not empty", observed, cause)
        return False
    if not np.issubdtype(ids.dtype, np.integer) or probs.dtype != np.float64:
        observed = f"ids {ids.dtype}, probs {probs.dtype}"
        cause = "arrays are handed over as the model made them; convert them"
        harness.add("rows", place, "ids int64, probs float64", observed, cause)
    if not np.isfinite(probs).all() or (probs < 0).any():
        observed = f"smallest {probs.min()}, largest {probs.max()}"
        cause = "log-probabilities or logits were handed over as probabilities"
        harness.add("rows", place, "probabilities, none negative", observed, cause)
        return False
    if abs(probs.sum() - 1) > SUM_ERROR:
        observed = f"the sum is {probs.sum():.6g} over {len(ids)} tokens"
        cause = (
            "the kept tokens are not renormalised after truncation, or only the top of the "
            "distribution is listed"
        )
        expected = f"probabilities sum to 1 (within {SUM_ERROR:g})"
        harness.add("rows", place, expected, observed, cause)
        return False
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        observed = f"token {int(values[counts > 1][0])} occurs {int(counts.max())} times"
        cause = "the drawn token is appended to the list of the most likely ones a second time"
        harness.add("rows", place, "each token id once in a row", observed, cause)
        return False
    if (np.diff(probs) > 1e-12).any():
        cause = "rows are in order of token id; sort them by probability"
        harness.add("rows", place, "most likely token first", clipped(probs[:5].tolist()), cause)
    return True


def check_places(harness: EngineHarness, path: ProbePath) -> None:
    """A row depends on what stands before its token alone, and on nothing asked before."""
    if harness.engine.score(path.prompt, ()) != []:
        place = f"problem {path.name}, empty completion"
        cause = "the distribution after the prompt is returned although no token was asked for"
        harness.add("rows", place, "[]", "rows", cause)
    one_by_one = getattr(harness.engine, "iter_score", None)
    if one_by_one is not None:
        cause = "iter_score is a second way of scoring; let score be list(iter_score(...))"
        rows = list(one_by_one(path.prompt, path.ids))
        _differ(harness, path, rows, "iter_score gives the rows of score", "they differ", cause)
    again = harness.engine.score(path.prompt, path.ids)
    cause = "score depends on earlier calls: a cache is overwritten, or dropout is on"
    if _differ(harness, path, again, "two calls give the same row", "they differ", cause):
        return
    doubtful = [k for k, row in enumerate(path.rows) if (row.probs > 0).sum() > 1]
    for last in {doubtful[0], doubtful[-1]} if doubtful else ():
        other = likeliest_but(path.rows[last], {path.ids[last]})
        if other is not None:
            changed = harness.engine.score(path.prompt, (*path.ids[:last], other))
            expected = f"the row does not change when token {last} is another one"
            _differ(harness, path, changed[: last + 1], expected, "it changes", SHIFTED)


def _differ(
    harness: EngineHarness,
    path: ProbePath,
    rows: Sequence[TokenDistribution],
    expected: str,
    observed: str,
    cause: str,
) -> bool:
    """Note the first of some rows that is not the path's own row at its place, if there is one."""
    for position, (row, other) in enumerate(zip(path.rows, rows, strict=False)):
        gap = distance(row, other)
        if gap > SAME:
            observed += f" by {gap:.3f} in total variation"
            place = f"problem {path.name}, position {position}"
            harness.add("rows", place, expected, observed, cause)
            return True
    return False


def check_settings(
    harness: EngineHarness, path: ProbePath, plain: Sequence[TokenDistribution]
) -> None:
    """Rows equal the plain engine's under temperature, top-k, top-p, min-p, in this order."""
    sampling = harness.engine.sampling
    for position, (row, base) in enumerate(zip(path.rows, plain, strict=True)):
        if not as_told(row, base, sampling):
            told = diagnoses(base, sampling)
            known = equal_to(row, told)
            cause = f"in score: {known}"
            if known in (None, RIGHT):
                cause = "score applies the settings in another way; no common mistake fits"
            harness.add(
                "settings",
                f"problem {path.name}, position {position}",
                "the plain row after temperature, top-k, top-p and min-p, in this order: "
                + shown(told[RIGHT]),
                shown(row),
                cause,
            )


def shown(row: TokenDistribution, most: int = 5) -> str:
    """The head of a row, for a message."""
    head = [f"{int(t)}: {p:.3f}" for t, p in zip(row.ids[:most], row.probs[:most], strict=True)]
    more = f", … ({len(row.ids)} tokens)" if len(row.ids) > most else ""
    return "{" + ", ".join(head) + more + "}"
