"""Where replies come from: a chat endpoint, or a model in this process.

Both take calls as they can, several at a time, and give each reply as it comes.
"""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from align.judging.calls import Backend, Call, End, Said
from align.judging.settings import ChatEndpoint, JudgeConfig
from align.settings import ModelConfig
from pts.config import SamplingConfig
from pts.engines.server.endpoints import RetryPolicy, Unreadable
from pts.engines.server.http import Client, Late, Refused, Try
from pts.files import context_length
from pts.types import Message, Problem

if TYPE_CHECKING:
    from pts.engines.transformers.engine import TransformersEngine

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


class LocalBackend:
    """A causal language model in this process, asked greedily, several prompts in a batch."""

    def __init__(self, config: JudgeConfig, like: ModelConfig) -> None:
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
        self._engine: TransformersEngine = TransformersEngine(
            model, tokenizer, sampling, max_rows=config.concurrency
        )
        self._limit = config.max_tokens
        self._context = self._engine.max_model_len or context_length(folder)
        self.identity: Mapping[str, Any] = {
            "local": self._engine.policy_digest,
            "template": tokenizer.chat_template,
            "max_tokens": config.max_tokens,
        }

    def ask(self, calls: Iterable[Call]) -> Iterator[tuple[Call, Said]]:
        """See `Backend`. A prompt beyond the model's context is rejected."""
        from pts.engines.base import SampleRequest

        asked: dict[int, Call] = {}
        rejected: list[tuple[Call, Said]] = []

        def requests() -> Iterator[SampleRequest]:
            for key, call in enumerate(calls):
                ids = self._engine.encode(Problem(call.digest, call.messages, ""))
                if self._context is not None and len(ids) + self._limit > self._context:
                    fault = (
                        f"{len(ids):,} tokens and a reply of {self._limit:,} are longer than the "
                        f"judge's context of {self._context:,}"
                    )
                    rejected.append((call, Said(fault, "rejected")))
                    continue
                asked[key] = call
                yield SampleRequest(key, ids, (), self._limit, (0,))

        for request, [ids] in self._engine.sample(requests()):
            yield from _emptied(rejected)
            end: Any = "stop" if ids[-1] in self._engine.stop_ids else "length"
            text = self._engine.decode(ids)
            yield asked.pop(request.key), Said(text, end, len(request.prompt), len(ids))
        yield from _emptied(rejected)

    def close(self) -> None:
        """See `Backend`."""


def _emptied(held: list[tuple[Call, Said]]) -> Iterator[tuple[Call, Said]]:
    while held:
        yield held.pop()


def open_backend(config: JudgeConfig, like: ModelConfig) -> Backend:
    """The backend that the settings name.

    Raises:
        PTSError: it cannot be had; the message says why.
    """
    if config.path:
        return LocalBackend(config, like)
    sampling = {"temperature": config.temperature, "max_tokens": config.max_tokens}
    return ChatBackend(config.url, config, sampling)
