"""Reads what codelion/pts (the public implementation) has published: pivotal tokens, as text.

    pairs = read_codelion("pivotal_tokens.jsonl", tokenizer)

Three kinds of records are read: pivotal tokens (`pivot_context`, `pivot_token`, ...), events of
its later versions (`event_type` "pivotal_token"), and its DPO export (`prompt`, `chosen`,
`rejected`, `metadata`). They hold text, so token ids have to be rebuilt, which a warning says.

What such a file does not tell is not made up. Probabilities are taken over with n = 0 and an
interval that says nothing ([0, 1]; [-1, 1] for the gap), as the files do not tell how many rollouts
they come from; one that is missing is 0.5 with the method "unknown". π of the two tokens is 0
(unknown), hence their expected gain too; the p-value is 1: no pair was confirmed by fresh rollouts.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pts.data.rows import Faults
from pts.data.sources import open_table
from pts.data.tables import shown
from pts.errors import DataError
from pts.types import Estimate, Ids, TokenPair

_Row = Mapping[str, Any]
_log = logging.getLogger(__name__)


class _Token(NamedTuple):
    """A next token: its text, its id if the record names one, its reported p(success)."""

    text: str
    id: int | None
    p: float | None


class _Pivot(NamedTuple):
    """A record, whatever its kind."""

    context: str
    chosen: _Token | None
    rejected: _Token | None
    delta: float | None
    """Reported change of p(success) by the pivotal token, against the prefix before it."""


def read_codelion(source: Path | str, tokenizer: Any) -> list[TokenPair]:
    """Token pairs from a file of codelion/pts, in its order.

    Args:
        source: JSONL, or any other table that `load_problems` reads (`hf:NAME` among them).
        tokenizer: the Hugging Face tokenizer of the model that is to be trained.

    A record becomes a pair if it names an alternative token, its context survives encoding and
    decoding, and both tokens are exactly one token each. A warning counts the others by reason.

    Raises DataError for rows that are no such records, one line a fault.
    """
    table = open_table(str(source))
    faults, dropped, rows = Faults(table), Counter[str](), 0
    pairs: dict[tuple[Ids, int, int], TokenPair] = {}
    for number, row in table:
        rows += 1
        try:
            if isinstance(row, str):
                raise DataError(row)
            pair = _rebuild(_read(row), row, tokenizer)
        except DataError as error:
            faults.add(number, str(error))
            continue
        if isinstance(pair, str):
            dropped[pair] += 1
        elif pairs.setdefault((pair.prompt_ids, pair.chosen, pair.rejected), pair) is not pair:
            dropped["repeats an earlier record"] += 1
    if not rows:
        faults.add(None, "holds no records")
    faults.raise_all()
    reasons = "".join(f"; {count:,} dropped: {why}" for why, count in dropped.most_common())
    _log.warning(
        "%s: token ids were rebuilt from text, which may not be those that were sampled; "
        "%s of %s records became pairs, none confirmed%s",
        *(source, f"{len(pairs):,}", f"{rows:,}", reasons),
    )
    return list(pairs.values())


KINDS = ("pivot_token", "event_type", "rejected")
"""The column that tells a pivotal token, an event and a row of the DPO export."""


def _read(row: _Row) -> _Pivot:
    """Raises DataError for a row that is no record."""
    about = _metadata(row)
    if "pivot_token" in row:
        return _sided(row, "pivot_context", "pivot_token", "pivot_token_id", row)
    if row.get("event_type") == "pivotal_token":
        return _sided(row, "context", "label", "token_id", about)
    if "event_type" in row:  # a sentence, or a reading of activations
        return _Pivot(_text(row, "context"), None, None, None)
    if "rejected" not in row:
        raise DataError(f"no record of codelion/pts; its columns are {', '.join(map(repr, row))}")
    chosen = _Token(_text(row, "chosen"), None, _number(about, "prob_chosen"))
    rejected = _Token(_text(row, "rejected"), None, _number(about, "prob_rejected"))
    return _Pivot(_text(row, "prompt"), chosen, rejected, _number(about, "prob_delta"))


def _sided(row: _Row, context: str, token: str, token_id: str, other: _Row) -> _Pivot:
    """A record by its columns. A harmful pivotal token is the rejected one; what `other` names
    `rejected_token` is then the alternative that is set against it."""
    pivot = _Token(_text(row, token), _id(row, token_id), _number(row, "prob_after"))
    delta = _number(row, "prob_delta")
    if delta is None:
        raise DataError(
            f"column 'prob_delta': a number is needed, not {shown(row.get('prob_delta'))}"
        )
    sides: tuple[_Token | None, _Token | None] = pivot, _alternative(other, "rejected")
    if delta <= 0:
        sides = _alternative(other, "chosen") or sides[1], pivot
    return _Pivot(_text(row, context), *sides, delta)


def _alternative(row: _Row, side: str) -> _Token | None:
    text = row.get(f"{side}_token")
    if not isinstance(text, str):
        return None
    return _Token(text, _id(row, f"{side}_token_id"), _number(row, f"{side}_prob"))


def _rebuild(pivot: _Pivot, row: _Row, tokenizer: Any) -> TokenPair | str:
    """The pair in token ids, or why there is none."""
    if pivot.chosen is None or pivot.rejected is None:
        return "no alternative token"
    prompt = _encode(tokenizer, pivot.context)
    if not prompt or _decode(tokenizer, prompt) != pivot.context:
        return "the context does not survive encoding"
    chosen = _token_id(tokenizer, prompt, pivot.context, pivot.chosen)
    rejected = _token_id(tokenizer, prompt, pivot.context, pivot.rejected)
    if chosen is None or rejected is None:
        return "chosen or rejected is not exactly one token"
    if chosen == rejected:
        return "chosen and rejected are the same token"
    # The gap is p(chosen) - p(rejected) where both are told, else the pivotal token's change of p.
    gap, method = 0.0, "unknown"
    if pivot.chosen.p is not None and pivot.rejected.p is not None:
        gap, method = pivot.chosen.p - pivot.rejected.p, "reported"
    elif pivot.delta is not None:
        gap, method = abs(pivot.delta), "reported against the prefix"
    return TokenPair(
        problem_id=_question(row),
        prompt_ids=prompt,
        chosen=chosen,
        rejected=rejected,
        chosen_prob=0.0,
        rejected_prob=0.0,
        p_chosen=_reported(pivot.chosen.p),
        p_rejected=_reported(pivot.rejected.p),
        gap=Estimate(gap, -1.0, 1.0, 0, method),
        pvalue=1.0,
        expected_gain=0.0,
        criterion="path",
        policy_digest=f"codelion/pts:{row.get('model_id') or 'unknown'}",
    )


def _token_id(tokenizer: Any, prompt: Ids, context: str, token: _Token) -> int | None:
    """The recorded id if it means this text here; else the one token that encoding gives."""
    if token.id is not None and _decode(tokenizer, (token.id,)) == token.text:
        return token.id
    whole = _encode(tokenizer, context + token.text)
    if whole[:-1] == prompt:
        return whole[-1]
    alone = _encode(tokenizer, token.text)  # the tokenizer merges across the boundary
    return alone[0] if len(alone) == 1 and _decode(tokenizer, alone) == token.text else None


def _encode(tokenizer: Any, text: str) -> Ids:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _decode(tokenizer: Any, ids: Ids) -> str:
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )


def _reported(p: float | None) -> Estimate:
    return Estimate(0.5 if p is None else p, 0.0, 1.0, 0, "unknown" if p is None else "reported")


def _question(row: _Row) -> str:
    """The item of the data set that was asked, or else a digest of the question."""
    if row.get("dataset_item_id") is not None:
        return ":".join(str(row[k]) for k in ("dataset_id", "dataset_item_id") if row.get(k))
    query = str(row.get("query") or _metadata(row).get("original_query"))
    return f"query-{hashlib.blake2b(query.encode(), digest_size=6).hexdigest()}"


def _metadata(row: _Row) -> _Row:
    about = row.get("metadata")
    return about if isinstance(about, dict) else {}


def _text(row: _Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise DataError(f"column {name!r}: text is needed, not {shown(value)}")
    return value


def _number(row: _Row, name: str) -> float | None:
    value = row.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    if not -1e300 < value < 1e300:
        raise DataError(f"column {name!r}: a number is needed, not {shown(value)}")
    return float(value)


def _id(row: _Row, name: str) -> int | None:
    value = _number(row, name)  # a column with nulls is read as floats
    return int(value) if value is not None and value >= 0 else None


def is_codelion(source: Path | str) -> bool:
    """Whether a table's first row is a record of codelion/pts."""
    first = next(iter(open_table(str(source))), (0, ""))[1]
    if not isinstance(first, dict) or "prompt_ids" in first:
        return False
    return any(kind in first for kind in KINDS)
