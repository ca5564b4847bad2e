"""Where replies come from: a chat endpoint, or an engine.

Both take calls as they can, several at a time, and give each reply as it comes.
"""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from align.judging.calls import Backend, Call, End, Said
from align.judging.settings import AnswerSource, ChatEndpoint, JudgeModel
from align.settings import ModelConfig
from pts.config import SamplingConfig
from pts.engines.base import Engine, SampleRequest
from pts.engines.registry import make_engine
from pts.engines.server.endpoints import RetryPolicy, Unreadable
from pts.engines.server.http import Client, Late, Refused, Try
from pts.errors import PromptError
from pts.files import context_length
from pts.types import Message, Problem

OWN_FAULT = frozenset({400, 413, 422})
"""Statuses that are about one request (its length, its content), not about the endpoint."""
CHAT = "/v1/chat/completions"
END_OF: dict[Any, End] = {"length": "length", "content_filter": "refused"}
"""How a reply ended, by its finish_reason; it stopped by itself at any other."""


class ChatBackend:
    """An OpenAI-compatible endpoint, asked over the project's HTTP client.

    Busy and failing endpoints are tried again as `RetryPolicy` says; a reply that is late counts as
    an answer to the call, so that a reply that hangs does not stop the others.
    """

    def __init__(
        self, url: str, endpoint: ChatEndpoint, sampling: Mapping[str, Any], first: float = 0.5
    ) -> None:
        """Raises ConfigError for a malformed URL, MissingExtra without httpx2.

        Args:
            sampling: keys of a request that say how replies are sampled; `extra` goes before them.
            first: see `RetryPolicy`.
        """
        retry = RetryPolicy(reply=endpoint.timeout, total=endpoint.patience, first=first)
        self._client = Client(
            [url],
            in_flight=endpoint.concurrency,
            retry=retry,
            key_variable=endpoint.key_variable,
        )
        self._settings = {"model": endpoint.model, **sampling, **endpoint.extra}
        self.identity: Mapping[str, Any] = {"chat": self._settings}

    def ask(self, calls: Iterable[Call]) -> Iterator[tuple[Call, Said]]:
        """See `Backend`. Raises EngineError once `patience` ends, or for a wrong key or model."""
        flight: dict[Future[Said], Call] = {}
        done: queue.SimpleQueue[Future[Said]] = queue.SimpleQueue()
        waiting = iter(calls)
        try:
            while True:
                while len(flight) < self._client.in_flight and (call := next(waiting, None)):
                    future = self._client.submit(self._say(call.messages))
                    flight[future] = call
                    future.add_done_callback(done.put)
                if not flight:
                    return
                future = done.get()
                yield flight.pop(future), future.result()
        finally:
            for future in flight:
                future.cancel()

    async def _say(self, messages: Sequence[Message]) -> Said:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        asked = {**self._settings, "messages": turns}
        body = {key: value for key, value in asked.items() if value is not None}
        failed: list[Try] = []
        try:
            said = await self._client.post(
                CHAT, body, read_completion, failed=failed, again_if_late=False
            )
        except Late:
            said = Said("", "late")
        except Refused as refused:
            if refused.status not in OWN_FAULT:
                raise
            said = Said(str(refused), "rejected")
        return replace(said, busy=sum(one.status == 429 for one in failed))

    def close(self) -> None:
        """See `Backend`."""
        self._client.close()


def read_completion(reply: Any) -> Said:
    """The message in an endpoint's JSON. Raises Unreadable for anything else."""
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
        end = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Unreadable("choices[0].message is missing from the reply") from None
    if not isinstance(content, str | None) or not isinstance(refusal, str | None):
        raise Unreadable("choices[0].message.content is no text")
    usage = reply.get("usage")
    held = usage if isinstance(usage, dict) else {}
    counts = [held.get(name) for name in ("prompt_tokens", "completion_tokens")]
    whole = [count for count in counts if type(count) is int]
    spent, replied = whole if len(whole) == 2 else (0, 0)
    if refusal:
        return Said(refusal, "refused", spent, replied, counted=len(whole) == 2)
    how = END_OF.get(end, "stop")
    return Said(content or "", how, spent, replied, counted=len(whole) == 2)


class EngineBackend:
    """An engine, several prompts in a batch. Each call has a seed of its own, so that a reply does
    not depend on the others."""

    def __init__(
        self, engine: Engine, identity: Mapping[str, Any], context: int | None = None
    ) -> None:
        """`context` is the model's where the engine does not tell it."""
        self._engine = engine
        self._limit = engine.sampling.max_new_tokens
        self._context = getattr(engine, "max_model_len", None) or context
        self.identity = identity

    def ask(self, calls: Iterable[Call]) -> Iterator[tuple[Call, Said]]:
        """See `Backend`. A prompt beyond the model's context, or with a special token as
        text, is rejected."""
        asked: dict[int, Call] = {}
        rejected: list[tuple[Call, Said]] = []

        def requests() -> Iterator[SampleRequest]:
            for key, call in enumerate(calls):
                try:
                    ids = self._engine.encode(Problem(call.digest, call.messages, ""))
                except PromptError as error:
                    rejected.append((call, Said(str(error), "rejected")))
                    continue
                if self._context is not None and len(ids) + self._limit > self._context:
                    fault = (
                        f"{len(ids):,} tokens and a reply of {self._limit:,} are longer than the "
                        f"model's context of {self._context:,}"
                    )
                    rejected.append((call, Said(fault, "rejected")))
                    continue
                asked[key] = call
                yield SampleRequest(key, ids, (), self._limit, (int(call.digest[:16], 16),))

        for request, [ids] in self._engine.sample(requests()):
            yield from _emptied(rejected)
            end: Any = "stop" if ids[-1] in self._engine.stop_ids else "length"
            text = self._engine.decode(ids)
            yield asked.pop(request.key), Said(text, end, len(request.prompt), len(ids))
        yield from _emptied(rejected)

    def close(self) -> None:
        """See `Backend`."""
        if close := getattr(self._engine, "close", None):
            close()


class LocalBackend(EngineBackend):
    """A causal language model in this process, asked greedily."""

    def __init__(self, config: JudgeModel, like: ModelConfig) -> None:
        """`like` tells dtype and device. Raises RecipeError or EngineError for a model that cannot
        be loaded.
        """
        from align.models.load import load_policy, prepare_base
        from pts.engines.transformers.engine import TransformersEngine

        wanted = ModelConfig(
            path=config.path,
            chat_template=config.chat_template,
            dtype=like.dtype,
            device=like.device,
        )
        folder = prepare_base(wanted)
        model, tokenizer = load_policy(folder, wanted)
        sampling = SamplingConfig(temperature=0, max_new_tokens=config.max_tokens)
        engine = TransformersEngine(model, tokenizer, sampling, max_rows=config.concurrency)
        identity = {
            "local": engine.policy_digest,
            "template": tokenizer.chat_template,
            "max_tokens": config.max_tokens,
        }
        super().__init__(engine, identity, context_length(folder))


def _emptied(held: list[tuple[Call, Said]]) -> Iterator[tuple[Call, Said]]:
    while held:
        yield held.pop()


def open_backend(config: JudgeModel, like: ModelConfig) -> Backend:
    """The backend that the settings of a judge name.

    Raises:
        PTSError: it cannot be had; the message says why.
    """
    if config.path:
        return LocalBackend(config, like)
    sampling = {"temperature": config.temperature, "max_tokens": config.max_tokens}
    return ChatBackend(config.url, config, sampling)


def open_source(source: AnswerSource, sampling: SamplingConfig) -> Backend:
    """What asks a source of answers, an engine or a chat endpoint.

    Raises:
        PTSError: it cannot be had; the message says why.
    """
    if source.url:
        return ChatBackend(source.url, source.endpoint, request_of(sampling))
    engine = make_engine(source.engine, sampling, **source.options)
    template = getattr(getattr(engine, "tokenizer", None), "chat_template", None)
    identity = {
        "engine": engine.policy_digest,
        "template": template,
        "stop_ids": sorted(engine.stop_ids),
        "sampling": sampling.model_dump(mode="json"),
    }
    return EngineBackend(engine, identity)


def request_of(sampling: SamplingConfig) -> dict[str, Any]:
    """The keys of a request that a chat endpoint is asked for such samples with."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
    }
