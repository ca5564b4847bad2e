"""Rollouts and scores from a Hugging Face causal language model in this process.

    engine = TransformersEngine.load("recipes/phi-nano/base", SamplingConfig(temperature=0.7))
    rows = engine.score(prompt, completion)
    for request, completions in engine.sample(iter(requests)): ...

Any decoder-only model with the `transformers` Cache API and plain attention layers works; its own
forward is used. Sampling is a continuous batch over preallocated KV slots
(`pts.engines.transformers.batch`). A path that was scored lends its KV to every rollout whose
prefix lies on it.

Exactness. A rollout's random numbers are a function of its seed and step alone, so its tokens do
not depend on which rollouts share the batch, except for the last bits of the logits: a matrix
product may round differently for another number of rows (and of threads), and a draw that falls
within that rounding of a boundary of the inverse CDF changes. With a fixed batch shape (the same
requests in the same order, `max_rows` and thread count) results are bit-identical. `score` runs one
path at a time, so its bits depend on the path alone.

Models with sliding-window layers are exact while a sequence fits into the window; longer ones are
refused. A mixed batch is compared with single rows when an engine is made: a model whose rows
disturb each other (GPT-Neo's local attention) runs them one by one, others are refused. The CUDA
and MPS paths (among them the halving of the batch when memory runs out) are written with care but
have not been run on such hardware. Weights must not change while an engine lives: `policy_digest`
and the stored KV would be stale.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import torch

from pts.config import SamplingConfig
from pts.engines.base import Answer, RequestQueue, answer_requests
from pts.engines.digest import local_files, model_digest
from pts.engines.text import TokenizerEngine, stop_ids_of
from pts.engines.transformers.batch import BatchLimits, ContinuousBatch
from pts.engines.transformers.exactness import batches_exactly
from pts.engines.transformers.kv_cache import (
    MASK_CELLS,
    SlotCache,
    check_forward,
    exact_length,
    forward,
    kv_shape,
)
from pts.engines.transformers.likelihood import loglikelihoods
from pts.engines.transformers.loading import load_model_and_tokenizer
from pts.engines.transformers.prefix_cache import CachedPrefix, PrefixCache
from pts.engines.transformers.sampling import truncate
from pts.errors import EngineError
from pts.types import Ids, Problem, TokenDistribution

_log = logging.getLogger(__name__)

CPU_ROWS = 512
CUDA_ROWS = 2048
CPU_BYTES = 2**30
STORE_SHARE = 2
"""The store of paths may hold half of what the slots may."""
SCORE_CELLS = 2**25
"""Logits at most in one scoring forward: T x V is cut into pieces of this size."""
ROWS_AT_ONCE = 16
"""Positions whose rows are made together: float64 weights and their ranks take 16 bytes a token."""


class TransformersEngine(TokenizerEngine):
    """An `Engine` over a loaded model and tokenizer. See the module's text for exactness.

    `stop_ids` default to the model's generation config and the tokenizer's eos. `max_rows` bounds
    the batch; the KV slots take at most `memory_bytes` (by default 1 GiB, on CUDA 60 % of the free
    memory), which bounds the rows further, and stored paths half as much again. `policy_digest`
    defaults to `weights_digest(model)`, fit for a model that was made in memory; `load` gives that
    of the files, which is the same for every engine. The model is put in eval mode and, when
    `device` is given, moved there. Raises EngineError for a model that slots cannot hold.
    """

    reproducible = True

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        sampling: SamplingConfig,
        *,
        chat_template: str | None = None,
        stop_ids: Iterable[int] | None = None,
        max_rows: int | None = None,
        memory_bytes: int | None = None,
        device: str | torch.device | None = None,
        policy_digest: str | None = None,
    ) -> None:
        if max_rows is not None and max_rows < 1:
            raise EngineError(f"max_rows must be at least 1, got {max_rows}")
        self.model = (model if device is None else model.to(device)).eval()
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.chat_template = chat_template
        self.stop_ids = frozenset(stop_ids) if stop_ids else stop_ids_of(model, tokenizer)
        self.policy_digest = policy_digest or weights_digest(model)
        check_forward(model)
        self._shape = kv_shape(model)
        self.max_model_len, key = exact_length(model.config) or (None, "")
        self._too_long = (
            f"{key} = {self.max_model_len}; beyond it this engine's attention would not be the "
            "model's: lower max_new_tokens or shorten the prompt"
        )
        if not batches_exactly(model, self._shape, self.max_model_len):
            _log.warning(
                "%s: rows of unlike lengths disturb each other; rollouts run one by one, which is "
                "slow (a server engine is faster)",
                type(model).__name__,
            )
            max_rows = 1
        rows, nbytes = CPU_ROWS, CPU_BYTES
        if self._shape.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._shape.device)
            rows, nbytes = CUDA_ROWS, free * 6 // 10
        self.max_rows = max_rows or rows
        self._limits = BatchLimits(self.max_rows, memory_bytes or nbytes)
        self._paths = PrefixCache(self._limits.nbytes // STORE_SHARE)

    @property
    def dtype(self) -> str:
        """In which the model computes, e.g. float32."""
        return str(self._shape.dtype).removeprefix("torch.")

    @classmethod
    def load(
        cls,
        path: str | FilePath,
        sampling: SamplingConfig,
        *,
        adapter: str | FilePath | None = None,
        gguf_file: str | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> TransformersEngine:
        """Load a model directory (safetensors, no remote code), merge an adapter, build an engine.

        `path` may itself be a LoRA adapter directory, or hold a GGUF named by `gguf_file`. dtype
        defaults to float32, on CUDA to the one in the config. `options` go to the constructor.
        """
        model, tokenizer = load_model_and_tokenizer(
            FilePath(path), adapter=adapter, gguf_file=gguf_file, dtype=dtype, device=device
        )
        if not options.get("policy_digest"):
            files = local_files(path) / gguf_file if gguf_file else path
            options["policy_digest"] = (
                model_digest(adapter, base=files) if adapter else model_digest(files)
            )
        return cls(model, tokenizer, sampling, device=device, **options)

    def encode(self, problem: Problem) -> Ids:
        """The prompt's ids. Raises EngineError for a token that the model has no row for."""
        ids = super().encode(problem)
        rows = int(self.model.get_input_embeddings().weight.shape[0])
        if max(ids) >= rows:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise EngineError(
                f"problem {problem.id!r}: its prompt holds the token {token!r} ({max(ids)}), but "
                f"the model has {rows:,} rows of tokens; it needs the adapter or the weights that "
                "were trained with this tokenizer"
            )
        return ids

    def score(self, prompt: Ids, completion: Ids) -> list[TokenDistribution]:
        """The sampling distribution before each token of the completion, teacher-forced.

        One forward a path (several in a row where T x V logits would be too many), never batched
        with others. The path's KV is kept for `sample`. Raises EngineError for an empty prompt or
        a path longer than the model's attention window.
        """
        return list(self.iter_score(prompt, completion))

    @torch.inference_mode()
    def iter_score(self, prompt: Ids, completion: Ids) -> Iterator[TokenDistribution]:
        """The rows of `score` one after another: all at once, those of a whole vocabulary take
        16 bytes a token and position."""
        if not completion:
            return
        ids = self._path(prompt, completion)
        vocabulary = int(self.model.config.get_text_config().vocab_size)
        if not 0 <= min(ids) <= max(ids) < vocabulary:
            raise EngineError(
                f"a path holds the token ids {min(ids)} to {max(ids)}; the model's end at "
                f"{vocabulary - 1}: these are another tokenizer's"
            )
        fed, device = ids[:-1], self._shape.device
        cache = SlotCache(self._shape, 1, len(fed))
        step = max(1, min(SCORE_CELLS // vocabulary, MASK_CELLS // len(fed)))
        for start in range(0, len(fed), step):
            stop = min(start + step, len(fed))
            positions = torch.arange(start, stop, device=device)[None]
            tokens = torch.tensor([fed[start:stop]], device=device)
            wanted = stop - max(start, len(prompt) - 1)
            logits = forward(self.model, cache, tokens, positions, keep=max(wanted, 1))
            for at in range(len(logits[0]) - max(wanted, 0), len(logits[0]), ROWS_AT_ONCE):
                yield from truncate(logits[0, at : at + ROWS_AT_ONCE], self.sampling).rows()
        self._paths.put(prompt, CachedPrefix(fed, cache.take(0, len(fed))))

    def loglikelihoods(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[float]:
        """Sums of the model's own log-probabilities (nats), see `Engine`; in batches.

        Raises EngineError for a completion that alone is longer than the attention window.
        """
        return loglikelihoods(self.model, pairs, self.max_model_len)

    def sample(self, requests: RequestQueue) -> Iterator[Answer]:
        """Answer requests as they finish, pulling new ones whenever rows are free.

        Raises EngineError as `answer_requests` does, for a request without a prefix and for one
        that could outgrow the model's attention window.
        """
        batch = ContinuousBatch(
            self.model, self._shape, self.sampling, self.stop_ids, self._paths, self._limits
        )
        return answer_requests(requests, batch, self._check_request)


def weights_digest(model: Any) -> str:
    """sha256 over names, dtypes, shapes and bytes of the state dict, in order of names.

    For a model without files; one that has them is known by `pts.engines.digest.model_digest`.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {tuple(flat.shape)}\n".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
