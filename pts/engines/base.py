"""The seam between searches and models: one small protocol.

An engine encodes a problem, scores a completion under the *sampling* distribution and samples
continuations of token-id prefixes from that same distribution. There is no forced and no avoided
token: a search draws a sibling from `score`'s rows itself and asks for the longer prefix.
Batching, KV reuse, retries and parallel requests are the engine's own business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from pts.config import SamplingConfig
from pts.errors import EngineError
from pts.types import Ids, LogprobQuery, Problem, TokenDistribution


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """A request for `len(seeds)` rollouts that continue `prompt + prefix`.

    Each rollout adds at most `max_tokens` tokens and stops after the first stop id, which is part
    of the returned ids. `seeds` holds one 64-bit seed a rollout. `key` is the caller's, opaque; an
    EngineError about one request begins with "request KEY:", and the caller adds whose it is.
    """

    key: int
    prompt: Ids
    prefix: Ids
    max_tokens: int
    seeds: tuple[int, ...]


RequestQueue: TypeAlias = Iterator[SampleRequest | None]
"""A live queue, see `Engine.sample`: None when nothing is asked for at the moment."""
Answer: TypeAlias = tuple[SampleRequest, list[Ids]]
"""A request and its rollouts, in the order of its seeds."""


@runtime_checkable
class Engine(Protocol):
    """What a search needs from a model.

    An engine whose context is bounded may also have `max_model_len`, the most tokens of a prompt
    and its completion: problems that could outgrow it are then refused before anything is sampled.
    One whose rows are large may have `iter_score`, which is `score` as an iterator, so that they
    need not be in memory all at once. One that can tell the model's own probabilities may have
    `loglikelihoods(pairs)`: for each pair of a prompt and a completion the sum of the completion's
    log-probabilities at temperature 1, without truncation, whatever `sampling` is. Prompts lose
    their beginning where they do not fit. Benchmarks of multiple choice are decided by it.
    """

    sampling: SamplingConfig
    policy_digest: str
    """Digest of the weights (and adapter) that are sampled from."""
    reproducible: bool
    """True when each rollout is a function of its prefix and its seed alone."""
    stop_ids: frozenset[int]

    def encode(self, problem: Problem) -> Ids:
        """The prompt's token ids, the assistant's turn opened."""

    def decode(self, ids: Ids) -> str:
        """Text of completion ids, stop ids and other special tokens left out."""

    def token_texts(self, ids: Ids) -> list[str]:
        """Text of each token by itself, special tokens shown: for reports, and to tell steps."""

    def score(self, prompt: Ids, completion: Ids) -> list[TokenDistribution]:
        """The sampling distribution before each token of the completion; one row a token.

        UnscorableError says that a row cannot be had: the question is set aside.
        """

    def sample(self, requests: RequestQueue) -> Iterator[Answer]:
        """Answer requests in any order, pulling from `requests` whenever there is room.

        `requests` is a live queue. It yields None when nothing is asked for at the moment: deliver
        something, then ask again. It is exhausted when no further request can come.
        """


def score_rows(engine: Engine, prompt: Ids, query: LogprobQuery) -> list[TokenDistribution]:
    """The rows that a query asks for, cut to their heads as they come.

    Raises EngineError unless the engine gives one row a token.
    """
    score: Callable[[Ids, Ids], Iterable[TokenDistribution]]
    score = getattr(engine, "iter_score", engine.score)
    completion, wanted = query.completion, query.at and frozenset(query.at)
    found, count = list[TokenDistribution](), 0
    for count, row in enumerate(score(prompt, completion), 1):
        if count <= len(completion) and (wanted is None or count - 1 in wanted):
            own = completion[count - 1 : count]
            found.append(row if query.head is None else row.head(query.head, own))
    if count != len(completion):
        raise EngineError(
            f"{type(engine).__name__}.score gave {count} rows for a completion of "
            f"{len(completion)} tokens; it must give one a token"
        )
    return found


class RequestBatch(Protocol):
    """The requests that an engine works on at the same time, for `answer_requests`."""

    @property
    def hungry(self) -> bool:
        """There is room for another request."""

    @property
    def idle(self) -> bool:
        """Nothing is worked on, and nothing is left to be delivered."""

    def add(self, request: SampleRequest) -> None:
        """Begin with a request for at least one rollout."""

    def advance(self) -> Iterable[Answer]:
        """Go on, and deliver what is finished; not asked for while the batch is idle."""


def answer_requests(
    requests: RequestQueue, batch: RequestBatch, check: Callable[[SampleRequest], None]
) -> Iterator[Answer]:
    """`Engine.sample` over a batch: fill it from the live queue, let it go on, deliver.

    After None from the queue the batch goes on with what it has. Once everything asked for was
    delivered, the queue must hold a request or be exhausted: another None then is a deadlock
    (nothing would ever change) and raises EngineError. `check` raises for a request that the
    engine refuses. A request for no rollouts is answered at once.
    """
    for request in requests:
        if request is not None:
            check(request)
            if request.seeds:
                batch.add(request)
            else:
                yield request, []
        elif batch.idle:
            raise EngineError(
                "deadlock: every request was delivered, yet the queue holds "
                "neither a request nor its end; end it when no search can go on"
            )
        else:
            yield from batch.advance()
        while not batch.hungry:
            yield from batch.advance()
    while not batch.idle:
        yield from batch.advance()
