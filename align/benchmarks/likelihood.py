"""Log-likelihoods of given continuations, by whichever engine: what multiple choice is decided by.

    scores = loglikelihoods(engine, [(context_ids, continuation_ids), ...])

A continuation is cut out of the ids of context and continuation together, as
lm-evaluation-harness does (spaces at a context's end count to the continuation), so that numbers
can be compared with its own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from align.errors import StageError
from pts.config import SamplingConfig
from pts.engines.base import Engine, score_rows
from pts.errors import EngineError
from pts.types import Ids, LogprobQuery, Problem

if TYPE_CHECKING:
    from align.benchmarks.questions import Question
    from align.benchmarks.settings import Benchmark
    from align.models.engines import Load

GREEDY, PLAIN = SamplingConfig(temperature=0), SamplingConfig()


def scoring_engine(load: Load) -> Engine:
    """The policy at hand, to be asked for log-likelihoods: greedy, which asks least of a server,
    where it has `loglikelihoods`, else one whose rows are the model's own distribution.
    """
    engine = load(GREEDY)
    return engine if hasattr(engine, "loglikelihoods") else load(PLAIN)


def check_scoring(load: Load, benchmark: Benchmark, question: Question, kind: str) -> None:
    """Score one choice, so that an engine that cannot is told before any question is asked.

    Raises:
        StageError: it cannot; with the engine, the benchmark and the remedy.
    """
    engine, remedy = scoring_engine(load), "use --engine transformers, or leave this benchmark out"
    place = f"{benchmark.name}: multiple choice is decided by log-likelihoods, which engine {kind}"
    if not hasattr(engine, "tokenizer"):
        raise StageError(f"{place} cannot give for texts: it has no `tokenizer`; {remedy}")
    try:
        loglikelihoods(engine, continuations(engine, question, benchmark.joint)[:1])
    except EngineError as error:
        raise StageError(f"{place} does not give: {error}; {remedy}") from error


def loglikelihoods(engine: Engine, pairs: Sequence[tuple[Ids, Ids]]) -> list[float]:
    """Sum of the model's own log-probabilities (nats) of each continuation's tokens.

    Of an engine without `loglikelihoods` whole rows are asked for; a context then loses its
    beginning where it does not fit.

    Raises:
        EngineError: they cannot be had.
    """
    own = getattr(engine, "loglikelihoods", None)
    if own is not None:
        found: list[float] = own(pairs)
        return found
    longest = getattr(engine, "max_model_len", None)
    return [_by_rows(engine, *pair, longest) for pair in pairs]


def _by_rows(engine: Engine, context: Ids, continuation: Ids, longest: int | None) -> float:
    if longest:
        context = context[-max(1, longest - len(continuation)) :]
    rows = score_rows(engine, context, LogprobQuery(continuation, head=1))
    probs = [row.prob(token) for row, token in zip(rows, continuation, strict=True)]
    return sum(math.log(max(p, sys.float_info.min)) for p in probs)


def continuations(engine: Any, question: Question, joint: str) -> list[tuple[Ids, Ids]]:
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
