"""Log-likelihoods of given completions, in batches: what multiple choice is decided by.

    scores = loglikelihoods(model, [(prompt_ids, completion_ids), ...])

`TransformersEngine.score` gives whole rows, one path at a time; here only the completions' own
tokens count, so that paths go together and a prompt's last logits serve several of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from pts.errors import EngineError
from pts.types import Ids

BATCH_TOKENS = 8192
"""Tokens of one forward pass, padding included."""
BATCH_LOGITS = 2**26
"""Logits of one forward pass: many short rows of a large vocabulary would take gigabytes."""


@torch.inference_mode()
def loglikelihoods(
    model: Any, pairs: Sequence[tuple[Ids, Ids]], longest: int | None = None
) -> list[float]:
    """Sum of the log-probabilities (nats, temperature 1) of each completion's tokens.

    Pairs that share what is fed (single-token choices of one question) share a row. `longest` is
    the model's window: prompts lose their beginning where they do not fit.

    Raises:
        EngineError: a completion alone does not fit.
    """
    fed: dict[Ids, list[int]] = {}
    for number, (prompt, completion) in enumerate(pairs):
        if longest and len(completion) > longest:
            raise EngineError(
                f"a completion has {len(completion)} tokens; the model takes {longest}"
            )
        ids = (*prompt, *completion)[:-1]
        fed.setdefault(ids[-longest:] if longest else ids, []).append(number)
    scores = [0.0] * len(pairs)
    device = next(model.parameters()).device
    kept = {ids: max(len(pairs[k][1]) for k in several) for ids, several in fed.items()}
    room = BATCH_LOGITS // int(model.config.get_text_config().vocab_size)
    for group in _groups(sorted(fed, key=len, reverse=True), kept, room):
        wanted = [[(k, pairs[k][1]) for k in fed[ids]] for ids in group]
        keep = max(kept[ids] for ids in group)
        width = len(group[0])
        tokens = torch.zeros((len(group), width), dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, ids in enumerate(group):  # padded on the left: all rows end together
            tokens[row, width - len(ids) :] = torch.tensor(ids)
            mask[row, width - len(ids) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = model(
            input_ids=tokens.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            use_cache=False,
            logits_to_keep=keep,
        ).logits
        found = logits[:, -keep:].float().log_softmax(-1).cpu()
        for row, several in enumerate(wanted):
            for k, completion in several:
                at = torch.arange(keep - len(completion), keep)
                scores[k] = float(found[row, at, torch.tensor(completion)].double().sum())
    return scores


def _groups(
    longest_first: Sequence[Ids], kept: Mapping[Ids, int], room: int
) -> Iterator[list[Ids]]:
    """Rows that go together, one at least: bounded in tokens, and in positions with logits."""
    group: list[Ids] = []
    most = 0
    for ids in longest_first:
        most = max(most, kept[ids])
        rows = len(group) + 1
        if group and (rows * len(group[0]) > BATCH_TOKENS or rows * most > room):
            yield group
            group, most = [], kept[ids]
        group.append(ids)
    if group:
        yield group
