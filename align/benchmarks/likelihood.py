"""Log-likelihoods of given continuations: what multiple choice is decided by.

    scores = loglikelihoods(engine, [(context_ids, continuation_ids), ...])

A continuation is cut out of the ids of context and continuation together, as
lm-evaluation-harness does (spaces at a context's end count to the continuation), so that numbers
can be compared with its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from align.errors import StageError
from pts.types import Ids, Problem

if TYPE_CHECKING:
    from align.benchmarks.questions import Question
    from pts.engines.transformers.engine import TransformersEngine

BATCH_TOKENS = 8192
"""Tokens of one forward pass, padding included."""
BATCH_LOGITS = 2**26
"""Logits of one forward pass: many short rows of a large vocabulary would take gigabytes."""


def continuations(
    engine: TransformersEngine, question: Question, joint: str
) -> list[tuple[Ids, Ids]]:
    """Context and continuation ids of each choice.

    Raises:
        StageError: a choice has no tokens of its own.
    """
    pairs = []
    for choice in question.choices:
        if isinstance(question.prompt, str):
            pair = split(engine.tokenizer, question.prompt, joint + choice)
        else:
            context = engine.encode(Problem(question.id, question.prompt, ""))
            pair = context, engine.encode_text(choice)
        if not all(pair):
            raise StageError(
                f"{question.id}: the choice {choice!r} has no tokens of its own behind its prompt"
            )
        pairs.append(pair)
    return pairs


def split(tokenizer: Any, context: str, continuation: str) -> tuple[Ids, Ids]:
    """Ids of a context and of what follows it, cut from the ids of both together."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    ids = [
        tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in (context + continuation, context)
    ]
    whole, head = ids
    return head, whole[len(head) :]


@torch.inference_mode()
def loglikelihoods(
    model: Any, pairs: Sequence[tuple[Ids, Ids]], longest: int | None = None
) -> list[float]:
    """Sum of the log-probabilities (nats, temperature 1) of each continuation's tokens.

    Pairs that share what is fed (single-token choices of one question) share a row. `longest` is
    the model's window: contexts lose their beginning where they do not fit.

    Raises:
        StageError: a continuation alone does not fit.
    """
    fed: dict[Ids, list[int]] = {}
    for number, (context, continuation) in enumerate(pairs):
        if longest and len(continuation) > longest:
            raise StageError(f"a choice has {len(continuation)} tokens; the model takes {longest}")
        ids = (*context, *continuation)[:-1]
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
            for k, continuation in several:
                at = torch.arange(keep - len(continuation), keep)
                scores[k] = float(found[row, at, torch.tensor(continuation)].double().sum())
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
