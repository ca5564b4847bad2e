"""Checks of `Engine.score`: rows that are distributions, in the right place, under the settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pts.config import SamplingConfig
from pts.testing.diagnoses import RIGHT, SAME, as_told, diagnoses, equal_to
from pts.testing.report import FindingCollector, clipped
from pts.testing.rollouts import EngineHarness
from pts.testing.statistics import distance, likeliest_but
from pts.types import Ids, TokenDistribution

SUM_ERROR = 1e-6


def scored(
    harness: EngineHarness, prompt: Ids, completion: Ids, name: str
) -> list[TokenDistribution] | None:
    """The rows of a completion, checked; None when they cannot be used."""
    where = f"{harness.settings}; problem {name}, completion of {len(completion)} tokens"
    rows = harness.engine.score(prompt, completion)
    if len(rows) != len(completion):
        harness.notes.add(
            "rows",
            where,
            f"one row a token of the completion: {len(completion)}",
            f"{len(rows)} rows",
            "rows start before the prompt's end or stop short of the last token: row i is the "
            "distribution that token i was drawn from",
        )
        return None
    usable = [
        check_row(harness.notes, row, f"{harness.settings}; problem {name}, position {position}")
        for position, row in enumerate(rows)
    ]
    return rows if all(usable) else None


def check_row(notes: FindingCollector, row: TokenDistribution, where: str) -> bool:
    """Note what is wrong with one row; False when nothing more can be read from it."""
    ids, probs = np.asarray(row.ids), np.asarray(row.probs)
    if ids.ndim != 1 or ids.shape != probs.shape or not len(ids):
        observed = f"ids of shape {ids.shape}, probs of shape {probs.shape}"
        cause = "ids and probs have different lengths or an axis too many"
        notes.add("rows", where, "two vectors of one length, not empty", observed, cause)
        return False
    if not np.issubdtype(ids.dtype, np.integer) or probs.dtype != np.float64:
        observed = f"ids {ids.dtype}, probs {probs.dtype}"
        cause = "arrays are handed over as the model made them; convert them"
        notes.add("rows", where, "ids int64, probs float64", observed, cause)
    if not np.isfinite(probs).all() or (probs < 0).any():
        observed = f"smallest {probs.min()}, largest {probs.max()}"
        cause = "log-probabilities or logits were handed over as probabilities"
        notes.add("rows", where, "probabilities, none negative", observed, cause)
        return False
    if abs(probs.sum() - 1) > SUM_ERROR:
        observed = f"the sum is {probs.sum():.6g} over {len(ids)} tokens"
        cause = (
            "the kept tokens are not renormalised after truncation, or only the top of the "
            "distribution is listed"
        )
        notes.add("rows", where, f"probabilities sum to 1 (within {SUM_ERROR:g})", observed, cause)
        return False
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        observed = f"token {int(values[counts > 1][0])} occurs {int(counts.max())} times"
        cause = "the drawn token is appended to the list of the most likely ones a second time"
        notes.add("rows", where, "each token id once in a row", observed, cause)
        return False
    if (np.diff(probs) > 1e-12).any():
        cause = "rows are in order of token id; sort them by probability"
        notes.add("rows", where, "most likely token first", clipped(probs[:5].tolist()), cause)
    return True


def check_places(
    harness: EngineHarness,
    prompt: Ids,
    completion: Ids,
    rows: Sequence[TokenDistribution],
    name: str,
) -> None:
    """A row depends on what stands before its token alone, and on nothing asked before."""
    where = f"{harness.settings}; problem {name}, "
    if harness.engine.score(prompt, ()) != []:
        cause = "the distribution after the prompt is returned although no token was asked for"
        harness.notes.add("rows", where + "empty completion", "[]", "rows", cause)
    again = harness.engine.score(prompt, completion)
    for position, (row, other) in enumerate(zip(rows, again, strict=False)):
        if distance(row, other) > SAME:
            observed = f"they differ by {distance(row, other):.3f} in total variation"
            cause = "score depends on earlier calls: a cache is overwritten, or dropout is on"
            expected = "two calls give the same row"
            harness.notes.add("rows", f"{where}position {position}", expected, observed, cause)
            return
    doubtful = [k for k, row in enumerate(rows) if (row.probs > 0).sum() > 1]
    for position in {doubtful[0], doubtful[-1]} if doubtful else ():
        _swap_token(harness, prompt, completion[: position + 1], rows, name)


def _swap_token(
    harness: EngineHarness, prompt: Ids, head: Ids, rows: Sequence[TokenDistribution], name: str
) -> None:
    """Change the last token of a head: the rows up to its own must not change."""
    last = len(head) - 1
    other = likeliest_but(rows[last], {head[-1]})
    if other is None:
        return
    changed = harness.engine.score(prompt, (*head[:-1], other))
    for position in range(min(last + 1, len(changed))):
        gap = distance(rows[position], changed[position])
        if gap > SAME:
            harness.notes.add(
                "rows",
                f"{harness.settings}; problem {name}, position {position}",
                f"the row does not change when token {last} is another one",
                f"it changes by {gap:.3f} in total variation",
                "rows are shifted by one: row i must be the distribution before token i, not "
                "after it",
            )
            return


def check_settings(
    harness: EngineHarness,
    rows: Sequence[TokenDistribution],
    plain: Sequence[TokenDistribution],
    sampling: SamplingConfig,
    name: str,
) -> None:
    """Rows equal the plain engine's under temperature, top-k, top-p, min-p, in this order."""
    for position, (row, base) in enumerate(zip(rows, plain, strict=True)):
        if not as_told(row, base, sampling):
            known = equal_to(row, diagnoses(base, sampling))
            harness.notes.add(
                "settings",
                f"{harness.settings}; problem {name}, position {position}",
                "the plain row after temperature, top-k, top-p and min-p, in this order: "
                + shown(diagnoses(base, sampling)[RIGHT]),
                shown(row),
                f"in score: {known}"
                if known not in (None, RIGHT)
                else "score applies the settings in another way; no common mistake fits",
            )


def shown(row: TokenDistribution, most: int = 5) -> str:
    """The head of a row, for a message."""
    head = [f"{int(t)}: {p:.3f}" for t, p in zip(row.ids[:most], row.probs[:most], strict=True)]
    more = f", … ({len(row.ids)} tokens)" if len(row.ids) > most else ""
    return "{" + ", ".join(head) + more + "}"
