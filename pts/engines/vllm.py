"""Rollouts and scores from vLLM in this process: `pip install 'three-stage[vllm]'`.

    engine = VLLMEngine.load("models/phi-4", SamplingConfig(top_p=0.95), tensor_parallel_size=2)
    run = pts.search(problems, engine, verifier, output="runs/first")

Requests go into vLLM's own queue, one request of n rollouts a request, whenever fewer than
`in_flight` rollouts are asked for; prefix caching lets rollouts share what they have in common.
Rows come from vLLM's processed log-probabilities, by one-token requests through the code that
samples.

Rollouts have no seeds of their own: `reproducible` is False, nothing is lost or repeated, and a run
cannot be replayed. vLLM's generator is seeded from the system's, because a run that is resumed
would otherwise meet the random numbers again that it began with.

Conforms on vLLM 0.32 (its CPU build; `make test-servers`); not run on a GPU.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from pts.config import SamplingConfig
from pts.engines.base import Answer, RequestQueue, SampleRequest, answer_requests
from pts.engines.digest import model_digest
from pts.engines.server.endpoints import Unreadable
from pts.engines.server.logprobs import processed_row, widths
from pts.engines.server.probe import check_policy
from pts.engines.server.protocols import ALL, check_completion, vllm_listed, vllm_stopped
from pts.engines.text import TokenizerEngine, load_tokenizer
from pts.errors import ConfigError, EngineError, MissingExtra
from pts.types import Ids, TokenDistribution

REQUIRED: dict[str, Any] = {
    "enable_prefix_caching": True,
    "max_logprobs": ALL,
    "logprobs_mode": "processed_logprobs",
    "generation_config": "vllm",
}
"""Options of vLLM that the engine relies on."""
OWN = {
    "model": "the folder",
    "tokenizer": "that of the folder",
    "trust_remote_code": "never on",
    "seed": "drawn anew at each start, so that a resumed run meets other random numbers",
}
"""Options of vLLM that are not for the caller to give, and what they are."""


def option_faults(options: Mapping[str, Any]) -> Iterator[str]:
    """A line for each option of vLLM that clashes with what the engine sets itself."""
    for name in options:
        if name in OWN:
            yield f"{name} is {OWN[name]}; leave it out"
        elif name in REQUIRED:
            yield f"{name} must be {REQUIRED[name]!r}; leave it out"


class VLLMEngine(TokenizerEngine):
    """An `Engine` over a `vllm.LLM`. See the module's text; `load` makes both."""

    reproducible = False

    def __init__(
        self,
        llm: Any,
        folder: str | Path,
        sampling: SamplingConfig,
        *,
        policy_digest: str | None = None,
        chat_template: str | None = None,
        stop_ids: Iterable[int] | None = None,
        in_flight: int = 1024,
    ) -> None:
        """An engine over an LLM that was made from `folder` with the options of `REQUIRED`.

        `policy_digest` defaults to `model_digest(folder)`. Raises EngineError for an LLM without
        those options, a folder without a tokenizer, and a policy that vLLM applies in another
        order.
        """
        check_policy("vLLM", sampling)
        config = llm.llm_engine.vllm_config
        holders = {"enable_prefix_caching": config.cache_config}
        found = {name: getattr(holders.get(name, config.model_config), name) for name in REQUIRED}
        wrong = [
            f"{name} is {found[name]!r}, not {wanted!r}"
            for name, wanted in REQUIRED.items()
            if found[name] != wanted
        ]
        if wrong:
            raise EngineError(f"the vllm.LLM has other options than needed: {'; '.join(wrong)}")
        self.tokenizer, self.stop_ids, size = load_tokenizer(Path(folder), stop_ids)
        self.llm, self.sampling, self.chat_template = llm, sampling, chat_template
        self.policy_digest = policy_digest or model_digest(folder)
        self.vocabulary = max(size, config.model_config.get_vocab_size())
        self.max_model_len = config.model_config.max_model_len
        self._too_long = (
            f"max_model_len = {self.max_model_len}; lower max_new_tokens, "
            "shorten the prompt or load the model with a larger max_model_len"
        )
        self.in_flight = in_flight
        self._done: dict[str, Any] = {}
        """Outputs of completed requests that nobody has taken yet."""
        self._names = map(str, itertools.count(secrets.randbits(48)))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        sampling: SamplingConfig,
        *,
        policy_digest: str | None = None,
        chat_template: str | None = None,
        stop_ids: Iterable[int] | None = None,
        in_flight: int = 1024,
        **options: Any,
    ) -> VLLMEngine:
        """Load a local model folder into vLLM; `options` go to `vllm.LLM` as they are
        (tensor_parallel_size, quantization, dtype, max_model_len…).

        Raises ConfigError for options that the engine sets itself, MissingExtra without vLLM,
        EngineError as the constructor does.
        """
        if faults := [f"vllm: {fault}" for fault in option_faults(options)]:
            raise ConfigError(*faults)
        try:
            from vllm import LLM
        except ImportError:
            raise MissingExtra("vllm", "vllm") from None
        check_policy("vLLM", sampling)
        seed = secrets.randbits(31)
        llm = LLM(model=str(folder), seed=seed, trust_remote_code=False, **options, **REQUIRED)
        return cls(
            llm, folder, sampling, policy_digest=policy_digest,
            chat_template=chat_template, stop_ids=stop_ids, in_flight=in_flight,
        )  # fmt: skip

    def score(self, prompt: Ids, completion: Ids) -> list[TokenDistribution]:
        """The sampling distribution before each token of the completion; one request a row.

        Raises EngineError for an empty prompt or a path longer than `max_model_len`.
        """
        if not completion:
            return []
        ids = self._path(prompt, completion)
        rows: dict[int, TokenDistribution] = {}
        for width in widths(self.sampling, ALL):
            left = [at for at in range(len(prompt), len(ids)) if at not in rows]
            asked = {self._ask(ids[:at], max_tokens=1, logprobs=width): at for at in left}
            while asked:
                for name, done in self._finished(asked):
                    (output,) = done.outputs
                    listed = {token: one.logprob for token, one in output.logprobs[0].items()}
                    listing = vllm_listed(listed, output.token_ids, width)
                    at, row = asked.pop(name), processed_row(listing, self.sampling)
                    if row is not None:
                        rows[at] = row
            if len(rows) == len(completion):
                return [rows[at] for at in sorted(rows)]
        raise EngineError(
            "vLLM listed every token, yet not all of the mass; use float32 or bfloat16"
        )

    def loglikelihoods(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[float]:
        """Sums of the model's own log-probabilities (nats), see `Engine`; one request a pair.

        vLLM does not serve them from its prefix cache. Raises EngineError for a completion that
        alone is longer than `max_model_len`.
        """
        paths = [self._scored(pair) for pair in pairs]
        asked = {
            self._ask(ids, sampling=SamplingConfig(), max_tokens=1, prompt_logprobs=1): number
            for number, (ids, _) in enumerate(paths)
        }
        found = [0.0] * len(paths)
        while asked:
            for name, done in self._finished(asked):
                number = asked.pop(name)
                ids, first = paths[number]
                listed = done.prompt_logprobs
                places = range(first, len(ids))
                found[number] = sum(float(listed[at][ids[at]].logprob) for at in places)
        return found

    def sample(self, requests: RequestQueue) -> Iterator[Answer]:
        """Answer requests as they finish, pulling new ones while fewer than `in_flight` are asked.

        Raises EngineError as `answer_requests` does, for a request that could outgrow
        `max_model_len` and for a completion that breaks the protocol's rules. Whatever ends it,
        nothing stays in flight.
        """
        with closing(InFlight(self)) as flight:
            yield from answer_requests(requests, flight, self._check_request)

    def close(self) -> None:
        """End vLLM, with its processes and their memory. No engine over it can be used then."""
        core = getattr(self.llm.llm_engine, "engine_core", None)
        if core is not None:
            core.shutdown()

    # vLLM's queue

    def _ask(self, prefix: Ids, sampling: SamplingConfig | None = None, **settings: Any) -> str:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = sampling or self.sampling
        params = SamplingParams(
            temperature=sampling.temperature,
            top_k=sampling.top_k or -1,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            stop_token_ids=sorted(self.stop_ids),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **settings,
        )
        name = next(self._names)
        self.llm.llm_engine.add_request(name, {"prompt_token_ids": list(prefix)}, params)
        return name

    def _finished(self, asked: Collection[str]) -> Iterator[tuple[str, Any]]:
        """Those of the requests that are completed, after a step of vLLM if none was before.

        A step may complete requests of another caller (`score` is called while `sample` waits):
        they are kept for it.
        """
        if not self._done.keys() & asked:
            for done in self.llm.llm_engine.step():
                if done.finished:
                    self._done[done.request_id] = done
        for name in [name for name in asked if name in self._done]:
            yield name, self._done.pop(name)

    def _ids(self, output: Any, request: SampleRequest) -> Ids:
        try:
            stopped = vllm_stopped(output.finish_reason)
            ids, limit = tuple(output.token_ids), request.max_tokens
            return check_completion(ids, stopped, limit, self.vocabulary, self.stop_ids)
        except Unreadable as why:
            raise EngineError(f"request {request.key}: {why}") from None


class InFlight:
    """The requests that one `sample` has asked for and not delivered."""

    def __init__(self, engine: VLLMEngine) -> None:
        self.engine = engine
        self.rollouts = 0
        self._asked: dict[str, SampleRequest] = {}

    @property
    def hungry(self) -> bool:
        """Fewer rollouts than the engine allows are in flight."""
        return self.rollouts < self.engine.in_flight

    @property
    def idle(self) -> bool:
        """Everything was delivered."""
        return not self._asked

    def add(self, request: SampleRequest) -> None:
        """Ask for the rollouts of a request."""
        # Greedy rollouts are all alike, and vLLM refuses to draw more than one.
        n = len(request.seeds) if self.engine.sampling.temperature else 1
        prefix = request.prompt + request.prefix
        self._asked[self.engine._ask(prefix, n=n, max_tokens=request.max_tokens)] = request
        self.rollouts += len(request.seeds)

    def advance(self) -> Iterator[Answer]:
        """A step of vLLM, unless something is finished already; then what is."""
        for name, done in self.engine._finished(self._asked):
            request = self._asked.pop(name)
            self.rollouts -= len(request.seeds)
            drawn = [self.engine._ids(output, request) for output in done.outputs]
            yield request, drawn if self.engine.sampling.temperature else drawn * len(request.seeds)

    def close(self) -> None:
        """Drop what is in flight."""
        done = self.engine._done
        running = [name for name in self._asked if done.pop(name, None) is None]
        if running:
            self.engine.llm.llm_engine.abort_request(running)
