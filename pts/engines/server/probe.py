"""What is found out about servers before a run relies on them, and what is refused.

Nothing is assumed that can be asked: which model is served under the name, whether the tokenizer
agrees, whether the listed probabilities are those of the model or those of the sampling policy, and
whether tokens are drawn as the rows say (a chi-square test on one-token completions).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np

from pts.config import SamplingConfig
from pts.engines.server.endpoints import Endpoint
from pts.engines.server.http import Client
from pts.engines.server.protocols import LlamaCpp, ServerProtocol
from pts.errors import EngineError, did_you_mean
from pts.stats import chi_square
from pts.types import Ids, TokenDistribution

PROBE_TEXT = "The answer to 12 + 35 is 47.\n\tÜber π, she said: 'yes'; I've no idea why"
PROBE_SEED = 0x9E3779B97F4A7C15
DRAWS = 256
SURE = 1e-9
"""Rows are said to be wrong at a p-value below this: never by chance."""
LEAST_EXPECTED = 5.0
"""Draws that each cell of the test expects at least."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as its server describes it."""

    kind: str
    """"vLLM" or "llama.cpp"."""
    model: str
    root: str
    """Where the server loaded it from."""
    max_model_len: int | None
    """Tokens of prompt and completion together."""
    vocabulary: int | None
    """Told by llama.cpp, and only by it."""
    build: str
    """What else tells one set of weights from another, as far as the server says."""
    slots: int | None = field(default=None, compare=False)
    """Requests that it works on at a time, if it says."""


async def find(client: Client, model: str | None) -> ServedModel:
    """The model that all servers of the client offer under this name (their only one for None). A
    server that tells its slots gets no more requests at a time.

    Raises EngineError, with every fault, when a server does not have it or has another one.
    """
    found = await asyncio.gather(
        *(_find_at(client, endpoint, model) for endpoint in client.endpoints),
        return_exceptions=True,
    )
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, EngineError):
            raise one
    faults = [str(one) for one in found if isinstance(one, EngineError)]
    if faults:
        raise EngineError("\n".join(faults))
    served = [one for one in found if isinstance(one, ServedModel)]
    for one, endpoint in zip(served, client.endpoints, strict=True):
        if one != served[0]:
            raise EngineError(
                f"{endpoint.url} serves {one}, but {client.endpoints[0].url} {served[0]}; all "
                "servers must serve the same model"
            )
        if one.slots is not None:
            endpoint.bound(one.slots)
    return served[0]


async def _find_at(client: Client, endpoint: Endpoint, model: str | None) -> ServedModel:
    status, reply = await client.ask(endpoint, "/v1/models")
    entries = reply.get("data") if status == 200 and isinstance(reply, dict) else None
    objects = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    if not objects or not entries:
        raise EngineError(
            f"{endpoint.url}/v1/models lists no models (HTTP {status}); give the base URL of a "
            "vLLM or llama.cpp server, e.g. http://localhost:8000"
        )
    names = {str(entry.get("id")): entry for entry in entries}
    names |= {str(alias): entry for entry in entries for alias in entry.get("aliases") or ()}
    if model is None and len(entries) == 1:
        model = next(iter(names))
    if model not in names:
        hint = did_you_mean(model, names) if model else ""
        raise EngineError(
            f"{endpoint.url} serves no model {model!r}{hint}; it has: {', '.join(sorted(names))}"
        )
    entry = names[model]
    if entry.get("owned_by") == "llamacpp":
        return await _llama_cpp(client, endpoint, model, entry)
    return ServedModel(
        kind="vLLM",
        model=model,
        root=str(entry.get("root")),
        max_model_len=_whole(entry.get("max_model_len")),
        vocabulary=None,
        build=str(entry.get("parent")),
    )


async def _llama_cpp(client: Client, endpoint: Endpoint, model: str, entry: Any) -> ServedModel:
    _, props = await client.ask(endpoint, "/props")
    meta, props = entry.get("meta") or {}, props or {}
    vocabulary = _whole(meta.get("n_vocab"))
    if vocabulary is None:
        raise EngineError(
            f"{endpoint.url}/v1/models tells no n_vocab of {model!r}; use a newer llama.cpp"
        )
    settings = props.get("default_generation_settings") or {}
    return ServedModel(
        kind="llama.cpp",
        model=model,
        root=str(props.get("model_path")),
        max_model_len=_whole(settings.get("n_ctx")) or _whole(meta.get("n_ctx")),
        vocabulary=vocabulary,
        build=f"{meta.get('n_params')} parameters, {meta.get('size')} bytes",
        slots=_whole(props.get("total_slots")),
    )


def _whole(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def check_policy(kind: str, sampling: SamplingConfig) -> None:
    """Raise EngineError for a combination that this kind of server applies in another order."""
    if kind == "vLLM" and sampling.top_p < 1 and sampling.min_p > 0:
        raise EngineError(
            f"top_p = {sampling.top_p} and min_p = {sampling.min_p} together: vLLM applies min_p "
            "first and this library top_p, which are two policies; set only one of them"
        )


async def check_tokenizer(client: Client, served: ServedModel, ids: Ids) -> None:
    """Raise EngineError when a server encodes PROBE_TEXT otherwise than to `ids`.

    A server without `/tokenize` is not checked.
    """
    bodies: dict[str, dict[str, Any]] = {
        "vLLM": {"model": served.model, "prompt": PROBE_TEXT, "add_special_tokens": False},
        "llama.cpp": {"content": PROBE_TEXT, "add_special": False, "parse_special": False},
    }
    for endpoint in client.endpoints:
        status, reply = await client.ask(endpoint, "/tokenize", bodies[served.kind])
        if status != 200 or not isinstance(reply, dict) or "tokens" not in reply:
            continue
        theirs = reply["tokens"]
        if not isinstance(theirs, list):
            raise EngineError(
                f"{endpoint.url}/tokenize gives {str(theirs)[:40]!r} as tokens, not a list; give "
                "the base URL of a vLLM or llama.cpp server"
            )
        theirs = tuple(theirs)
        if theirs != ids:
            pairs = zip_longest(ids, theirs, fillvalue=())
            at = next(n for n, (here, there) in enumerate(pairs) if here != there)
            raise EngineError(
                f"{endpoint.url} encodes a test sentence otherwise than the tokenizer folder "
                f"(from token {at} on: {theirs[at : at + 4]} there, {ids[at : at + 4]} here); "
                "give the folder of the tokenizer that the server uses"
            )


async def lists_processed(client: Client, protocol: ServerProtocol, prefix: Ids) -> bool:
    """Whether listed probabilities are those after temperature and truncation.

    Asked for two ways of sampling: with top_k = 2, a processed list shows two tokens; a raw list
    does not change with the temperature. Raises EngineError for a list that is neither.
    """
    if isinstance(protocol, LlamaCpp):
        return True  # asked for by post_sampling_probs; the rows are tested by draws all the same
    plain, two, warm = [
        await client.post(
            protocol.path,
            protocol.listing(prefix, 4, sampling),
            lambda reply: protocol.listed(reply, prefix, 4),
        )
        for sampling in (SamplingConfig(), SamplingConfig(top_k=2), SamplingConfig(temperature=2.0))
    ]
    if len(two.ids) == 2 < len(plain.ids):
        if abs(two.mass - 1) < 1e-3:
            return True
        raise EngineError(
            f"{client!r}: with top_k = 2 the two listed tokens hold a mass of {two.mass:.4g}, not "
            "1: they are no log-probabilities; start vLLM with --logprobs-mode processed_logprobs"
        )
    gap = max(abs(a - b) for a, b in zip(plain.logprobs, warm.logprobs, strict=False))
    if gap > 0.05:
        raise EngineError(
            f"{client!r}: listed log-probabilities change with the temperature (by {gap:.2f}) but "
            "not with top_k, so that neither the model's nor the policy's are known; start vLLM "
            "with --logprobs-mode processed_logprobs"
        )
    return False


def check_draws(row: TokenDistribution, drawn: Sequence[int]) -> None:
    """Raise EngineError when tokens were not drawn from a row: a chi-square test.

    A token outside the row's support is refused unless it is as rare as the support's edge, which
    a tie or a rounding may move.
    """
    counts, n = Counter(drawn), len(drawn)
    outside = {token: c for token, c in counts.items() if row.prob(token) == 0}
    allowed = 4 + 4 * n * float(row.probs[-1])
    wrong = {token: c for token, c in outside.items() if c > allowed}
    seen = np.array([counts[token] for token in row.ids.tolist()])
    seen[0] += sum(outside.values())
    pvalue = chi_square(seen, row.probs, LEAST_EXPECTED)
    if wrong or pvalue < SURE:
        likely = [(int(i), counts[int(i)], round(n * row.prob(int(i)))) for i in row.ids[:4]]
        raise EngineError(
            f"the server does not sample what its log-probabilities say: of {n} draws, (token, "
            f"drawn, expected) = {likely}, {sum(outside.values())} outside the support (chi-square "
            f"p = {pvalue:.1g}); it must honour temperature, top_k, top_p and min_p, and list "
            "log-probabilities (vLLM: --logprobs-mode processed_logprobs)"
        )
