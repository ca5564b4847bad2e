"""What is said to a server and what is read from it, for the kinds of server that are understood.

vLLM speaks `/v1/completions` with its extensions `return_token_ids` (vLLM 0.10.2 or newer) and
`return_tokens_as_token_ids`; llama.cpp speaks its own `/completion`. Both take token ids, return
token ids, and list the likeliest next tokens with their ids. A server that offers
`/v1/completions` without these (SGLang, hosted services) cannot be used: text would have to be
encoded again, and its ids need not be those that were sampled.

A request names every setting of the sampling policy, so that no default of the server (vLLM takes
some from the model's generation_config.json) becomes part of it. Each rollout is a request of its
own with its own seed: a lost reply costs one rollout, and the second try asks for the same one, so
that what failed more often (long completions, say) is not thereby sampled less often.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from pts.config import SamplingConfig
from pts.engines.server.endpoints import Unlisted, Unreadable
from pts.engines.server.logprobs import TopLogprobs
from pts.types import Ids

ALL = -1
"""A width: list every token."""
RANDOM = 0xFFFFFFFF
"""llama.cpp's seeds have 32 bits; this one asks for a random seed."""
CERTAIN = 1000.0
"""A bias of a logit that leaves no other token."""
EXCLUDED = -9998.0
"""A vLLM server writes -9999 for a token that cannot be sampled (JSON has no -inf)."""


@dataclass(frozen=True)
class _Requests:
    """What is asked of every kind of server."""

    model: str
    stop_ids: frozenset[int]

    def common(self, prefix: Ids, sampling: SamplingConfig) -> dict[str, Any]:
        """What has the same name everywhere."""
        return {
            "model": self.model,
            "prompt": list(prefix),
            "stream": False,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "ignore_eos": False,
        }


@dataclass(frozen=True)
class VLLM(_Requests):
    """vLLM's `/v1/completions`."""

    seeds: bool = True
    """Each rollout is asked for with its own seed."""
    path = "/v1/completions"

    def body(self, prefix: Ids, limit: int, seed: int, sampling: SamplingConfig) -> dict[str, Any]:
        """A request for one completion of at most `limit` tokens."""
        return self.common(prefix, sampling) | {
            "max_tokens": limit,
            "min_tokens": 0,
            "n": 1,
            "seed": seed >> 1 if self.seeds else None,  # a signed 64-bit integer there
            "top_k": sampling.top_k or -1,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": sorted(self.stop_ids),
            "add_special_tokens": False,
            "skip_special_tokens": False,
            "return_token_ids": True,
        }

    def listing(self, prefix: Ids, width: int, sampling: SamplingConfig) -> dict[str, Any]:
        """A request for one token and the `width` likeliest ones at its place (ALL for all)."""
        asked = {"logprobs": width, "return_tokens_as_token_ids": True, "seed": None}
        return self.body(prefix, 1, 0, sampling) | asked

    def read(self, reply: Any, prefix: Ids) -> tuple[Ids, bool]:
        """The completion in a server's JSON, and whether the server says that it ended at a stop
        token. Raises Unreadable.
        """
        choice = take(reply, "choices", 0)
        ids = token_ids(choice, "token_ids", "it must be vLLM 0.10.2 or newer, or llama.cpp")
        echoed = choice.get("prompt_token_ids")
        if echoed is not None and tuple(echoed) != prefix:
            raise Unreadable("prompt_token_ids are not the prompt that was sent")
        return ids, vllm_stopped(choice.get("finish_reason"))

    def listed(self, reply: Any, prefix: Ids, width: int) -> TopLogprobs:
        """The list in the reply to a `listing`. Raises Unreadable."""
        drawn, _ = self.read(reply, prefix)
        found = take(reply["choices"][0], "logprobs", "top_logprobs", 0)
        if not isinstance(found, dict) or not found:
            raise Unreadable("logprobs.top_logprobs[0] lists no tokens")
        names = [str(name).removeprefix("token_id:") for name in found]
        if not all(name.isdigit() for name in names):
            raise Unreadable(
                f"logprobs name tokens by text ({names[0]!r}), not as token_id:N; two tokens may "
                "share a text, so the server must support return_tokens_as_token_ids"
            )
        listed = dict(zip(map(int, names), map(number, found.values()), strict=True))
        return vllm_listed(listed, drawn, width)

    def prompt_listing(self, ids: Ids) -> dict[str, Any]:
        """A request for the model's own log-probability of each token of a prompt. The sampling
        policy has no part in it; 1 lists the likeliest token besides.
        """
        return self.body(ids, 1, 0, SamplingConfig()) | {"prompt_logprobs": 1, "seed": None}

    def listed_prompt(self, reply: Any, ids: Ids, first: int) -> list[float]:
        """Those of the tokens from `first` on. Raises Unreadable."""
        self.read(reply, ids)
        listed = take(reply, "choices", 0).get("prompt_logprobs")
        if not isinstance(listed, list) or len(listed) != len(ids):
            raise Unreadable(
                "the reply holds no prompt_logprobs, a list of as many as the prompt has tokens; "
                "the server must be vLLM, or llama.cpp"
            )
        places = range(first, len(ids))
        return [number(take(listed, at, str(ids[at]), "logprob")) for at in places]

    def too_wide(self, width: int) -> str:
        """What a user can do when the server does not list that many tokens."""
        wanted = "-1" if width == ALL else f"{width} (or -1 for no limit)"
        return f"start vLLM with --max-logprobs {wanted}, or set top_k below its limit"


@dataclass(frozen=True)
class LlamaCpp(_Requests):
    """llama.cpp's own `/completion`. Its stop tokens are the model's; others are cut at."""

    vocabulary: int
    seeds: bool = True
    path = "/completion"
    order = ("temperature", "top_k", "top_p", "min_p")

    def body(self, prefix: Ids, limit: int, seed: int, sampling: SamplingConfig) -> dict[str, Any]:
        return self.common(prefix, sampling) | {
            "n_predict": limit,
            "seed": seed % RANDOM if self.seeds else RANDOM,
            "samplers": list(self.order),
            "top_k": sampling.top_k,
            "min_keep": 0,
            "dynatemp_range": 0.0,
            "mirostat": 0,
            "logit_bias": [],
            "stop": [],
            "cache_prompt": True,
            "return_tokens": True,
        }

    def listing(self, prefix: Ids, width: int, sampling: SamplingConfig) -> dict[str, Any]:
        """A row. The token that is drawn with it does not matter, but llama.cpp lists nothing when
        that is a part of a character: another try must draw another one.
        """
        wanted = self.vocabulary if width == ALL else width
        asked = {"n_probs": wanted, "post_sampling_probs": True, "seed": RANDOM}
        return self.body(prefix, 1, 0, sampling) | asked

    def forced_listing(self, prefix: Ids, token: int, sampling: SamplingConfig) -> dict[str, Any]:
        """The same of all tokens, with a token that is drawn for certain. llama.cpp lists what the
        model's probabilities were before the bias.
        """
        forced = {"post_sampling_probs": False, "logit_bias": [[token, CERTAIN]]}
        return self.listing(prefix, ALL, sampling) | forced

    def read(self, reply: Any, prefix: Ids) -> tuple[Ids, bool]:
        ids = token_ids(reply, "tokens", "the server must support return_tokens")
        if take(reply, "tokens_evaluated") != len(prefix) or reply.get("truncated"):
            raise Unreadable("the server did not evaluate the whole prompt; give it a longer -c")
        order = take(reply, "generation_settings", "samplers")
        if tuple(order) != self.order:
            raise Unreadable(f"the server sampled by {order}, not by {list(self.order)}")
        stopped = reply.get("stop_type") == "eos"
        first = next((n for n, token in enumerate(ids) if token in self.stop_ids), None)
        if first is not None:
            ids, stopped = ids[: first + 1], True
        return ids, stopped

    def listed(self, reply: Any, prefix: Ids, width: int) -> TopLogprobs:
        self.read(reply, prefix)
        if not reply.get("completion_probabilities"):
            raise Unlisted(
                "completion_probabilities is missing from the reply, as it is where the token that "
                "was drawn is a part of a character"
            )
        found = take(reply, "completion_probabilities", 0)
        if "top_logprobs" in found:  # of a forced listing
            named = {take(one, "id"): number(take(one, "logprob")) for one in found["top_logprobs"]}
            return TopLogprobs.ranked(list(named), list(named.values()), whole=width == ALL)
        found = take(found, "top_probs")
        ids = np.array([int(number(take(one, "id"))) for one in found])
        probs = np.array([number(take(one, "prob")) for one in found])
        whole = width == ALL or len(found) < width or bool((probs <= 0).any())
        return TopLogprobs.ranked(ids[probs > 0], np.log(probs[probs > 0]), whole=whole)

    def too_wide(self, width: int) -> str:
        return f"the server must list {width} tokens (n_probs); set top_k or top_p"


ServerProtocol: TypeAlias = VLLM | LlamaCpp
"""How one kind of server is spoken to; `VLLM` says what each method does."""


def vllm_stopped(reason: Any) -> bool:
    """Whether a finish_reason, of a server or of vLLM in this process, means a stop token."""
    if reason not in ("stop", "length"):
        raise Unreadable(f"finish_reason is {reason!r}, neither 'stop' nor 'length'")
    return bool(reason == "stop")


def vllm_listed(listed: dict[int, float], drawn: Ids, width: int) -> TopLogprobs:
    """What vLLM lists for the place of the token `drawn`: log-probabilities by token id."""
    if 0 < width < len(listed):  # the sampled token was added behind the likeliest ones
        listed = {i: lp for i, lp in listed.items() if i not in drawn}
    likely = {i: lp for i, lp in listed.items() if lp > EXCLUDED}
    whole = width == ALL or len(likely) < len(listed)
    return TopLogprobs.ranked(list(likely), list(likely.values()), whole=whole)


def take(value: Any, *path: str | int) -> Any:
    """The value at a path into JSON; Unreadable names the part that is missing."""
    seen = ""
    for part in path:
        seen += f"[{part}]" if isinstance(part, int) else f".{part}" if seen else part
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            raise Unreadable(f"{seen} is missing from the reply") from None
    return value


def token_ids(value: Any, name: str, remedy: str) -> Ids:
    """A list of token ids; Unreadable if it is missing or holds anything else."""
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, list) or not all(type(i) is int for i in found):
        raise Unreadable(f"the reply holds no token ids ({name}); {remedy}")
    return tuple(found)


def number(value: Any) -> float:
    """A JSON number; Unreadable for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unreadable(f"a number was expected, found {value!r}")
    return float(value)


def check_completion(
    ids: Ids, stopped: bool, limit: int, vocabulary: int, stop_ids: frozenset[int]
) -> Ids:
    """The ids of a completion that keeps to the rules. Raises Unreadable for any other.

    1 to `limit` ids below `vocabulary`; a stop id only at the end, and there exactly when the
    server says that it `stopped` (at the limit it may say either); shorter than `limit` only then.
    """
    wrong = [i for i in ids if not 0 <= i < vocabulary]
    if wrong:
        raise Unreadable(f"token id {wrong[0]} is not in the vocabulary of {vocabulary}")
    if not 1 <= len(ids) <= limit:
        raise Unreadable(f"the completion has {len(ids)} tokens, not 1 to {limit}")
    early = [i for i in ids[:-1] if i in stop_ids]
    if early:
        raise Unreadable(f"the completion goes on after the stop token {early[0]}")
    if stopped and ids[-1] not in stop_ids:
        raise Unreadable(
            f"the server stopped at token {ids[-1]}, which is no stop token here; if it should "
            "be, name it in stop_ids (vLLM: or start it with --generation-config vllm)"
        )
    if not stopped and len(ids) < limit:
        raise Unreadable(
            f"the completion ended after {len(ids)} of {limit} tokens without a stop token; the "
            "server has a limit of its own (vLLM: start it with --generation-config vllm)"
        )
    return ids
