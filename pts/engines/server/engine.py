"""Rollouts and scores from servers: vLLM's OpenAI-compatible API, or llama.cpp's own.

    engine = ServerEngine.connect(
        ["http://localhost:8000"], "phi-4", "models/phi-4", SamplingConfig(top_p=0.95)
    )
    run = pts.search(problems, engine, verifier, output="runs/first")

Token ids go in and come out; text is made here, by the tokenizer folder. Every rollout is one
request with its own seed, on several servers of the same model at once. Those of one question go
to one server, whose prefix cache knows it, while that keeps up; each server is asked for as many at
a time as make it faster, or all of them for a fixed number (`in_flight`). A rollout's seed does not
depend on which server draws it. Failures are retried until `RetryPolicy` ends; a reply that breaks
a rule (an id outside the vocabulary, too many tokens, an end without a stop token) counts as a
failure.

`score` asks, for each position, for the likeliest next tokens of that prefix, and makes the exact
row of them (`pts.engines.server.logprobs`), more of them until the whole support is shown. One
request a position, rather than one for the whole path with prompt log-probabilities: it goes
through the code that samples, it works where a server cannot list for prompts, and prefix caching
makes it cheap beside the rollouts. What a server cannot list is refused with the flag that mends
it.

What is promised: nothing is lost and nothing repeated. Not that a run can be replayed bit by bit:
servers batch as requests come, which moves the last bits of the logits; `reproducible` is False.
Where the server says that it loaded files which are here too, `policy_digest` is that of the files,
as of every engine. Otherwise its weights cannot be known, and the digest is of what it says of them
(name, root) and of `revision`, which is yours to set to something that changes with the weights.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import queue
from collections.abc import Coroutine, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from pts.config import SamplingConfig
from pts.engines.base import Answer, RequestQueue, SampleRequest, answer_requests
from pts.engines.digest import model_digest
from pts.engines.server.endpoints import RetryPolicy, Unreadable
from pts.engines.server.http import Client, Ended, Refused
from pts.engines.server.logprobs import OVER_ONE, TopLogprobs, processed_row, raw_row, widths
from pts.engines.server.probe import (
    DRAWS,
    PROBE_SEED,
    PROBE_TEXT,
    ServedModel,
    check_draws,
    check_policy,
    check_tokenizer,
    find,
    lists_processed,
)
from pts.engines.server.protocols import ALL, VLLM, LlamaCpp, ServerProtocol, check_completion
from pts.engines.text import TokenizerEngine, load_tokenizer
from pts.errors import EngineError, UnscorableError
from pts.types import Ids, TokenDistribution

T = TypeVar("T")


class ServerEngine(TokenizerEngine):
    """An `Engine` over servers. Made by `connect`; `close` it, or use it in a `with` statement."""

    reproducible = False

    def __init__(
        self,
        client: Client,
        served: ServedModel,
        loaded: tuple[Any, frozenset[int], int],
        sampling: SamplingConfig,
        chat_template: str | None,
        policy_digest: str,
        seeds: bool,
    ) -> None:
        """Parts as `connect` makes and checks them: `served` as `probe.find` gives it, `loaded` as
        `load_tokenizer` does.
        """
        self.tokenizer, self.stop_ids, size = loaded
        self.served, self.sampling, self.chat_template = served, sampling, chat_template
        self.policy_digest = policy_digest
        self.vocabulary = max(size, served.vocabulary or 0)
        self.max_model_len = served.max_model_len
        self._too_long = (
            f"the server's context of {self.max_model_len}; lower max_new_tokens, shorten "
            "the prompt or start the server with a longer context (vLLM: --max-model-len, "
            "llama.cpp: -c)"
        )
        self.processed = True
        """Listed probabilities are those of the sampling policy, not the model's own."""
        self._client = client
        self._protocol: ServerProtocol = VLLM(served.model, self.stop_ids, seeds)
        if served.vocabulary is not None:  # only llama.cpp tells it
            self._protocol = LlamaCpp(served.model, self.stop_ids, served.vocabulary, seeds)

    @classmethod
    def connect(
        cls,
        urls: str | Sequence[str],
        model: str | None,
        tokenizer: str | Path,
        sampling: SamplingConfig,
        *,
        chat_template: str | None = None,
        stop_ids: Iterable[int] | None = None,
        revision: str = "",
        policy_digest: str | None = None,
        seeds: bool = True,
        in_flight: int | None = None,
        retry: RetryPolicy | None = None,
        ended: Ended | None = None,
    ) -> ServerEngine:
        """Find the model on every server, check what a search relies on, return the engine.

        `model` is the name that is served (None: the only one), `tokenizer` a folder with its
        tokenizer (and generation_config.json, for the stop ids, unless `stop_ids` are given).
        `in_flight` fixes how many rollouts are asked for at a time, of all servers together; if not
        given, each server gets as many as it is the faster for. `policy_digest` is for callers who
        know which files are served, `ended` for those who would know that a server is gone. With
        `seeds` a rollout that is asked for again is the same one; without them a time-out, which
        meets long rollouts, makes these rarer. vLLM on a CPU cannot take seeds everywhere (see
        docs/writing-an-engine.md). The API key, if one is needed, is read from PTS_API_KEY.

        Raises ConfigError for malformed URLs, MissingExtra without httpx2, EngineError for a
        server that cannot be used, with the reason and the remedy.
        """
        client = Client(
            [urls] if isinstance(urls, str) else list(urls),
            in_flight=in_flight,
            retry=retry,
            ended=ended,
        )
        try:
            loaded = load_tokenizer(Path(tokenizer), stop_ids)
            served = client.wait(find(client, model))
            check_policy(served.kind, sampling)
            digest = policy_digest or _digest(served, revision)
            engine = cls(client, served, loaded, sampling, chat_template, digest, seeds)
            client.wait(engine._check())
        except BaseException:
            client.close()
            raise
        return engine

    def __repr__(self) -> str:
        return f"ServerEngine({self._client!r}, {self.served.model!r})"

    def __enter__(self) -> ServerEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections. The engine cannot be used afterwards."""
        self._client.close()

    def score(self, prompt: Ids, completion: Ids) -> list[TokenDistribution]:
        """The sampling distribution before each token of the completion; one request a row.

        Raises EngineError for an empty prompt, a path longer than the server allows, or a position
        whose support the server does not list whole; UnscorableError for one where it lists nothing
        however often it is asked.
        """
        if not completion:
            return []
        ids = self._path(prompt, completion)
        places = range(len(prompt), len(ids))
        question = hash(prompt)
        return self._client.wait(_all(self._row(ids[:at], ids[at], question) for at in places))

    def loglikelihoods(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[float]:
        """Sums of the model's own log-probabilities (nats), see `Engine`; all pairs side by side.

        vLLM is asked once a pair, for `prompt_logprobs`, which its prefix cache does not serve;
        llama.cpp once a position, for a list of the whole vocabulary (megabytes).
        Raises EngineError for a completion that alone is too long, and where a server lists none.
        """
        return self._client.wait(_all(self._loglikelihood(*self._scored(pair)) for pair in pairs))

    async def _loglikelihood(self, ids: Ids, first: int) -> float:
        protocol, question = self._protocol, hash(ids[:first])
        if isinstance(protocol, LlamaCpp):
            places = range(first, len(ids))
            lists = await _all(self._forced_list(protocol, ids[:at], question) for at in places)
            return sum(found.of(ids[at]) for at, found in zip(places, lists, strict=True))

        def read(reply: Any) -> float:
            return sum(protocol.listed_prompt(reply, ids, first))

        body = protocol.prompt_listing(ids)
        return await self._client.post(protocol.path, body, read, question=question)

    def sample(self, requests: RequestQueue) -> Iterator[Answer]:
        """Answer requests as they finish, pulling new ones while the servers have room for them.

        Raises EngineError as `answer_requests` does, when a rollout cannot be had (see
        `Client.post`), and when a request could outgrow the server's context. Whatever ends it,
        nothing stays in flight.
        """
        with closing(InFlight(self)) as flight:
            yield from answer_requests(requests, flight, self._check_request)

    async def rollout(self, prefix: Ids, limit: int, seed: int, question: Hashable = None) -> Ids:
        """One completion of a prefix, at most `limit` tokens, checked. Those of one `question` go
        to one server while it keeps up.
        """
        body = self._protocol.body(prefix, limit, seed, self.sampling)

        def read(reply: Any) -> Ids:
            ids, stopped = self._protocol.read(reply, prefix)
            return check_completion(ids, stopped, limit, self.vocabulary, self.stop_ids)

        # A reply of one token takes as long as its prompt: it tells nothing of how fast others are.
        size = len if limit > 1 else None
        return await self._client.post(
            self._protocol.path, body, read, question=question, size=size
        )

    async def _row(
        self, prefix: Ids, path_token: int = -1, question: Hashable = None
    ) -> TokenDistribution:
        """The row after a prefix, from lists of growing width."""
        for width in widths(self.sampling, ALL):
            try:
                listing = await self._listing(prefix, width, question)
            except UnscorableError:
                if not isinstance(self._protocol, LlamaCpp):
                    raise
                return await self._forced_row(self._protocol, prefix, path_token, question)
            if self.processed:
                row = processed_row(listing, self.sampling)
            else:
                row = raw_row(listing, self.sampling, self.vocabulary, path_token)
            if row is not None:
                return row
        raise EngineError(
            f"{self!r}: of {width if width != ALL else self.vocabulary} tokens asked for, "
            f"{len(listing.ids)} were listed, with {listing.mass:.1%} of the mass: not all that "
            f"can be sampled; {self._protocol.too_wide(width)}"
        )

    async def _listing(self, prefix: Ids, width: int, question: Hashable) -> TopLogprobs:
        body = self._protocol.listing(prefix, width, self.sampling)

        def read(reply: Any) -> TopLogprobs:
            found = self._protocol.listed(reply, prefix, width)
            wanted = min(width, self.vocabulary)
            if len(found.ids) < wanted and not found.whole and found.mass < 1 - OVER_ONE:
                raise Unreadable(
                    f"{len(found.ids)} of {wanted} tokens were listed, with {found.mass:.1%} of "
                    f"the mass; {self._protocol.too_wide(width)}"
                )
            return found

        try:
            return await self._client.post(
                self._protocol.path, body, read, row=True, question=question
            )
        except Refused as refused:
            if refused.status == 400 and "logprobs" in refused.body:
                raise EngineError(
                    f"{refused}; the rows of this policy ({self.sampling!r}) need more: "
                    f"{self._protocol.too_wide(width)}"
                ) from None
            raise

    async def _forced_row(
        self, protocol: LlamaCpp, prefix: Ids, path_token: int, question: Hashable
    ) -> TokenDistribution:
        whole = await self._forced_list(protocol, prefix, question)
        row = raw_row(whole, self.sampling, self.vocabulary, path_token)
        assert row is not None, "nothing is hidden in a list of all tokens"
        return row

    async def _forced_list(
        self, protocol: LlamaCpp, prefix: Ids, question: Hashable
    ) -> TopLogprobs:
        """The model's own probabilities of all tokens after a prefix; they take megabytes."""
        drawn = self.encode_text("a")[-1]  # whole characters, whatever the prefix ends with
        return await self._client.post(
            protocol.path,
            protocol.forced_listing(prefix, drawn, self.sampling),
            lambda reply: protocol.listed(reply, prefix, ALL),
            row=True,
            question=question,
        )

    async def _check(self) -> None:
        """What `connect` tests by requests: tokenizer, kind of list, draws against a row."""
        probe = self.encode_text(PROBE_TEXT)
        await check_tokenizer(self._client, self.served, probe)
        prefix = probe[:8] or tuple(sorted(self.stop_ids))[:1]
        self.processed = await lists_processed(self._client, self._protocol, prefix)
        row = await self._row(prefix)
        drawn = await _all(self.rollout(prefix, 1, PROBE_SEED * n % 2**64) for n in range(DRAWS))
        check_draws(row, [ids[0] for ids in drawn])


class InFlight:
    """The rollouts that one `sample` has asked for and not delivered."""

    def __init__(self, engine: ServerEngine) -> None:
        self.engine = engine
        self._asked: dict[Future[Ids], tuple[SampleRequest, dict[int, Ids], int]] = {}
        """Of each rollout: its request, the request's finished rollouts, its own index there."""
        self._done: queue.SimpleQueue[Future[Ids]] = queue.SimpleQueue()

    @property
    def hungry(self) -> bool:
        """Fewer rollouts than the client allows are in flight."""
        return len(self._asked) < self.engine._client.in_flight

    @property
    def idle(self) -> bool:
        """Everything was delivered."""
        return not self._asked

    def add(self, request: SampleRequest) -> None:
        """Ask for the rollouts of a request."""
        prefix, found = request.prompt + request.prefix, dict[int, Ids]()
        for index, seed in enumerate(request.seeds):
            future = self.engine._client.submit(
                self.engine.rollout(prefix, request.max_tokens, seed, hash(request.prompt))
            )
            self._asked[future] = (request, found, index)
            future.add_done_callback(self._done.put)

    def advance(self) -> Iterator[Answer]:
        """Wait until a request is complete. Raises what a rollout raised."""
        while self._asked:
            future = self._done.get()
            request, found, index = self._asked.pop(future)
            found[index] = future.result()
            if len(found) == len(request.seeds):
                yield request, [found[i] for i in range(len(found))]
                return

    def close(self) -> None:
        """Drop what is in flight."""
        for future in self._asked:
            future.cancel()


def _digest(served: ServedModel, revision: str) -> str:
    """Of the files where they are here and no revision is told; else of what the server says."""
    root = Path(served.root)
    if not revision and (root.is_file() or (root / "config.json").is_file()):
        with suppress(EngineError):  # no weights there that could be read
            return model_digest(root)
    said = [served.kind, served.model, served.root, served.build, revision]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


async def _all(tasks: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order; the first failure cancels the others."""
    running = [asyncio.ensure_future(task) for task in tasks]
    try:
        return await asyncio.gather(*running)
    finally:
        for one in running:
            one.cancel()
