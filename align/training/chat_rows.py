"""From chats to rows of ids that SFT may train on: the chat format of a policy, and what is
checked.

A base model leaves SFT with a chat format: template, end-of-turn token and stop ids are saved with
the weights (`prepare`). Every row is validated before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from align.data.chat import (
    Chat,
    ChatIds,
    check_prompts,
    end_of_turn,
    render_checked,
    template_tokens,
)
from align.errors import StageError

SHOWN = 5
"""Faulty rows that an error names; the others are counted."""


def prepare(policy: Any, tokenizer: Any) -> list[int]:
    """Teach policy and tokenizer the template's tokens; return ids whose rows must be trained.

    Tokens that the vocabulary lacks are added, and their rows start as the mean of the rows of
    those that it has. The end of turn, unless the model stops at it already, starts as a copy of
    the base model's end of text: it has the same meaning, and from a random row a short training
    does not learn to stop. Generation then stops at the end of turn, and as before.
    """
    old_eos, wanted, stops = tokenizer.eos_token, template_tokens(tokenizer), _stop_ids(policy)
    known_ids = set(tokenizer.get_vocab().values())
    missing = prepare_tokenizer(tokenizer)
    end = tokenizer.eos_token
    _grow(policy, tokenizer, known_ids)
    new, end_id = tokenizer.convert_tokens_to_ids(missing), tokenizer.eos_token_id
    known = end_id in stops or end == old_eos
    if not known and old_eos is not None:
        _copy_row(policy, tokenizer.convert_tokens_to_ids(old_eos), end_id)
    policy.config.eos_token_id = end_id
    policy.generation_config.eos_token_id = [end_id, *(i for i in stops if i != end_id)]
    policy.config.pad_token_id = policy.generation_config.pad_token_id = tokenizer.pad_token_id
    return sorted(new if known else tokenizer.convert_tokens_to_ids(wanted))


def prepare_tokenizer(tokenizer: Any) -> list[str]:
    """Teach a tokenizer the template's tokens and end of turn; return those that it lacked."""
    end, old_eos, wanted = end_of_turn(tokenizer), tokenizer.eos_token, template_tokens(tokenizer)
    missing = [token for token in wanted if token not in tokenizer.get_vocab()]
    if missing:
        tokenizer.add_special_tokens({"additional_special_tokens": missing})
    tokenizer.eos_token = end
    _choose_pad(tokenizer, old_eos)
    return missing


def _stop_ids(policy: Any) -> list[int]:
    found = policy.generation_config.eos_token_id
    if found is None:
        found = policy.config.eos_token_id
    return list(found) if isinstance(found, list | tuple) else [] if found is None else [found]


def _choose_pad(tokenizer: Any, old_eos: str | None) -> None:
    """A padding token that is not the end of turn, or padding would hide that one from losses."""
    if tokenizer.pad_token not in (None, tokenizer.eos_token):
        return
    spare = (old_eos, tokenizer.unk_token, tokenizer.bos_token)
    chosen = next((t for t in spare if t not in (None, tokenizer.eos_token)), "<|pad|>")
    tokenizer.add_special_tokens({"pad_token": chosen})


def _grow(policy: Any, tokenizer: Any, known: Collection[int]) -> None:
    """Rows for the tokenizer's new tokens, each the mean of the rows of the tokens that it knew.

    Many vocabularies are padded: the model has more rows than the tokenizer has tokens. New tokens
    get such rows then, and those were never trained.
    """
    rows = policy.get_input_embeddings().weight.shape[0]
    added = {*tokenizer.get_vocab().values()} - {*known}
    new = sorted(added.union(range(rows, len(tokenizer))))
    if not new:
        return
    if len(tokenizer) > rows:
        policy.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    old = min(rows, max(known) + 1)
    with torch.no_grad():
        for table in _token_tables(policy):
            table[new] = table[:old].mean(0)


def _copy_row(policy: Any, source: int, target: int) -> None:
    with torch.no_grad():
        for table in _token_tables(policy):
            table[target] = table[source]


def _token_tables(policy: Any) -> list[Any]:
    """All that has a row for each token: embeddings, and the head with the bias that some have."""
    layers = policy.get_input_embeddings(), policy.get_output_embeddings()
    tables = [layer.weight for layer in layers]
    bias = getattr(layers[1], "bias", None)
    return tables if bias is None else [*tables, bias]


@dataclass(frozen=True)
class ValidatedRows:
    """Rows that may be trained on, and what was counted on the way."""

    rows: list[ChatIds]
    metrics: dict[str, Any]


def validate(
    tokenizer: Any,
    chats: Sequence[Chat],
    max_length: int,
    place_of: Callable[[Chat], str] | None = None,
) -> ValidatedRows:
    """Render chats and check them; `place_of` tells where a chat comes from.

    Raises:
        StageError: listing every kind of fault.
    """
    places = [place_of(c) if place_of else f"chat {n}" for n, c in enumerate(chats)]
    rows, faults = render_checked(tokenizer, chats, places)
    return validate_rows(
        tokenizer, rows, max_length, faults or check_prompts(tokenizer, chats, rows, places)
    )


def validate_rows(
    tokenizer: Any, rows: Sequence[ChatIds], max_length: int, faults: Sequence[str] = ()
) -> ValidatedRows:
    """Check rows of ids; drop and count those longer than `max_length`.

    Raises:
        StageError: listing every kind of fault, those in `faults` included.
    """
    found = [*tokenizer_faults(tokenizer), *_first(faults)]
    found += _first(
        [f for number, row in enumerate(rows) for f in _row_faults(tokenizer, number, row)]
    )
    kept = [row for row in rows if len(row.ids) <= max_length]
    if not kept:
        longest = max((len(row.ids) for row in rows), default=0)
        found.append(
            f"no row left of {len(rows)}: max_length is {max_length}, the longest row has "
            f"{longest} tokens"
        )
    if found:
        raise StageError("SFT data:\n  " + "\n  ".join(found))
    metrics = {
        "rows": len(kept),
        "rows_too_long": len(rows) - len(kept),
        "assistant_tokens": sum(sum(row.mask) for row in kept),
    }
    return ValidatedRows(kept, metrics)


def template_faults(tokenizer: Any) -> list[str]:
    """Special tokens of the template that are no single tokens."""
    found = []
    for token in template_tokens(tokenizer):
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            found.append(f"tokenizer: {token} is {len(ids)} tokens; add it as a special token")
    return found


def tokenizer_faults(tokenizer: Any) -> list[str]:
    """What would keep a model from learning the chat format."""
    found = template_faults(tokenizer)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        found.append(
            f"tokenizer: the padding token is {tokenizer.pad_token!r}, the end of turn is "
            f"{tokenizer.eos_token!r}; they must be two tokens"
        )
    return found


def _row_faults(tokenizer: Any, number: int, row: ChatIds) -> list[str]:
    learnt = [token for token, flag in zip(row.ids, row.mask, strict=True) if flag]
    if not learnt:
        return [f"row {number}: no assistant token to learn from"]
    if learnt[-1] != tokenizer.eos_token_id:
        return [f"row {number}: the last assistant turn does not end with {tokenizer.eos_token}"]
    return []


def _first(faults: Sequence[str]) -> list[str]:
    more = [f"... and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    return [*faults[:SHOWN], *more]
