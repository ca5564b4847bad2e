"""The continuous batch behind `TransformersEngine.sample`.

`ContinuousBatch.add` queues a request; `advance` lets rollouts into free rows, samples one token in
every row and returns the requests that are finished. A rollout enters with the KV of its prefix but
the last token, which its first step feeds; so a request whose prefix is a stored path and one
sibling costs no prefill. Unknown prefixes are run once, together with others of similar length.

Rows in use are always 0..live-1: the last rows move into the places of finished ones, the batch
shrinks when nothing waits, and attention reads up to the longest live row only. The step itself
has no loop over rows; Python runs per admitted request and per finished rollout.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from pts.config import SamplingConfig
from pts.engines.base import Answer, SampleRequest
from pts.engines.transformers.kv_cache import MASK_CELLS, Kv, KvShape, SlotCache, forward
from pts.engines.transformers.prefix_cache import CachedPrefix, PrefixCache
from pts.engines.transformers.sampling import truncate, uniforms
from pts.errors import EngineError
from pts.types import Ids

CAPACITY_MULTIPLE = 64
"""Capacities are multiples of this, so that few requests force a reallocation."""
PREFILL_TOKENS = 8192
"""Tokens at most in one prefill forward, padding included."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What bounds a batch: rows, and bytes of KV buffers."""

    rows: int
    nbytes: int


@dataclass(slots=True, eq=False)
class RequestState:
    """A request under way: `waiting` are the indices of rollouts not yet in a row."""

    request: SampleRequest
    ids: Ids
    results: list[Ids]
    waiting: deque[int]
    left: int
    kv: Kv | None = None
    """The prefix without its last token; None for a prefix of one token, or not looked up yet."""

    @property
    def known(self) -> int:
        """Tokens whose KV a rollout enters with."""
        return len(self.ids) - 1


ROW = np.dtype(
    [("token", "i8"), ("position", "i8"), ("count", "i8"), ("limit", "i8"), ("seed", "u8")]
)
"""Numbers of a row: the token to feed and its position, tokens drawn, their limit and the seed."""


class _Rows:
    """Host-side state of the rows, one entry a row; `owner` has the live ones only."""

    def __init__(self, rows: int, width: int) -> None:
        self.numbers = np.zeros(rows, ROW)
        self.output = np.zeros((rows, width), np.int64)
        self.owner: list[tuple[RequestState, int]] = []

    def move(self, source: list[int], target: list[int], kept: int) -> None:
        """Copy rows over others, then keep the first `kept` rows."""
        for array in (self.numbers, self.output):
            array[target] = array[source]
        for a, b in zip(source, target, strict=True):
            self.owner[b] = self.owner[a]
        del self.owner[kept:]

    def resized(self, rows: int, width: int) -> _Rows:
        """The live rows among `rows`, with room for outputs of `width` tokens or more."""
        other, live = _Rows(rows, max(width, self.output.shape[1])), len(self.owner)
        other.numbers[:live] = self.numbers[:live]
        other.output[:live, : self.output.shape[1]] = self.output[:live]
        other.owner = self.owner
        return other


class ContinuousBatch:
    """Rows of rollouts in flight, and the requests that wait for a row."""

    def __init__(
        self,
        model: Any,
        shape: KvShape,
        sampling: SamplingConfig,
        stop_ids: frozenset[int],
        paths: PrefixCache,
        limits: BatchLimits,
    ) -> None:
        self.model, self.shape, self.sampling, self.paths = model, shape, sampling, paths
        self.limits = limits
        self.stops = np.array(sorted(stop_ids), np.int64)
        self.waiting: deque[RequestState] = deque()
        self.queued = 0
        self.finished: list[RequestState] = []
        self.cache: SlotCache | None = None
        self.rows = _Rows(0, 0)

    @property
    def live(self) -> int:
        """Rows in use."""
        return len(self.rows.owner)

    @property
    def idle(self) -> bool:
        """Nothing waits, runs or is to be delivered."""
        return not (self.live or self.waiting or self.finished)

    @property
    def hungry(self) -> bool:
        """There is room for more than what waits already."""
        return self.live + self.queued < self.limits.rows

    def add(self, request: SampleRequest) -> None:
        """Queue a request; one without tokens to draw is finished at once."""
        ids, n = request.prompt + request.prefix, len(request.seeds)
        active = n if request.max_tokens else 0
        job = RequestState(request, ids, [()] * n, deque(range(active)), active)
        (self.waiting if job.left else self.finished).append(job)
        self.queued += job.left

    @torch.inference_mode()
    def advance(self) -> list[Answer]:
        """Admit, sample one token in every row, and return the requests finished since."""
        full = False
        try:
            self._admit()
            if self.live:
                self._step()
        except torch.OutOfMemoryError:
            full = True
        if full:  # not in the handler: the exception's frames hold the cache that is to be freed
            self._halve()
        done = [(job.request, job.results) for job in self.finished]
        self.finished.clear()
        return done

    def _step(self) -> None:
        live, device = self.rows.numbers[: self.live], self.shape.device
        tokens = torch.from_numpy(live["token"][:, None]).to(device)
        positions = torch.from_numpy(live["position"][:, None]).to(device)
        logits = forward(self.model, self._cache(), tokens, positions, keep=1)[:, 0]
        drawn = truncate(logits, self.sampling).draw(uniforms(live["seed"], live["count"]))
        self.rows.output[np.arange(self.live), live["count"]] = drawn
        live["token"] = drawn
        live["count"] += 1
        live["position"] += 1
        done = np.isin(drawn, self.stops) | (live["count"] >= live["limit"])
        if done.any():
            self._leave(np.flatnonzero(done).tolist())

    def _leave(self, done: list[int]) -> None:
        """Hand over the finished rows and close the gaps with the last rows."""
        kept = self.live - len(done)
        gone = set(done)
        source = [row for row in range(kept, self.live) if row not in gone]
        target = [row for row in done if row < kept]
        if source:  # the device's part goes first: where memory runs out, all rows start again
            length = int(self.rows.numbers["position"][source].max())
            device = self.shape.device
            self._cache().move(
                torch.tensor(source, device=device), torch.tensor(target, device=device), length
            )
        counts = self.rows.numbers["count"]
        for row in done:
            job, index = self.rows.owner[row]
            job.results[index] = tuple(self.rows.output[row, : counts[row]].tolist())
            job.left -= 1
            if not job.left:
                self.finished.append(job)
        self.rows.move(source, target, kept)

    def _admit(self) -> None:
        """Let waiting rollouts into free rows, prefilling unknown prefixes first.

        Rows are refilled in groups: a few free ones wait for more unless the batch is small.
        """
        free, pending = self.limits.rows - self.live, 0
        if not self.waiting or free < self.limits.rows // 16:
            return
        chosen: list[tuple[RequestState, int]] = []
        for job in self.waiting:
            reach = len(job.ids) + job.request.max_tokens  # positions of the longest rollout
            count = min(self._reserve(reach, pending), len(job.waiting))
            if count:
                chosen.append((job, count))
            pending += count
            if pending == free or count < len(job.waiting):
                break
        self._know([job for job, _ in chosen])
        for job, count in chosen:
            self._enter(job, count)

    def _reserve(self, reach: int, pending: int) -> int:
        """Make rows long enough for `reach` positions; return how many are free (0: wait)."""
        if self.cache is not None and reach <= self.cache.capacity:
            return self.cache.rows - self.live - pending
        capacity = -(-reach // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE
        fitting = self.limits.nbytes // (self.shape.bytes_per_token * capacity)
        rows = max(1, min(self.limits.rows, fitting))
        if self.live + pending > rows:
            return 0
        self.rows = self.rows.resized(rows, capacity)  # first: `_halve` reads its size
        if self.live:
            length = int(self.rows.numbers["position"][: self.live].max())
            self._cache().resize(rows, capacity, self.live, length)
        else:
            self.cache = None  # before the new one: there is no memory for both
            self.cache = SlotCache(self.shape, rows, capacity)
        return rows - self.live - pending

    def _cache(self) -> SlotCache:
        assert self.cache is not None
        return self.cache

    def _know(self, jobs: list[RequestState]) -> None:
        """Find or compute the KV of every job's prefix without its last token."""
        missing: dict[Ids, list[RequestState]] = {}
        for job in jobs:
            if job.kv is not None or not job.known:
                continue
            covered, path = self.paths.find(job.request.prompt, job.ids[:-1])
            if path is not None and covered == job.known:
                job.kv = path.kv
            else:
                missing.setdefault(job.ids[:-1], []).append(job)
        for group in _similar(sorted(missing, key=len)):
            for ids, kv in zip(group, self._prefill(group), strict=True):
                for job in missing[ids]:
                    job.kv = kv
                self.paths.put(missing[ids][0].request.prompt, CachedPrefix(ids, kv))

    def _prefill(self, group: list[Ids]) -> list[Kv]:
        """KV of several sequences in one forward, padded at their ends."""
        sequences = [torch.tensor(ids, device=self.shape.device) for ids in group]
        tokens = pad_sequence(sequences, batch_first=True)
        width = tokens.shape[1]
        positions = torch.arange(width, device=tokens.device).expand_as(tokens)
        cache = SlotCache(self.shape, len(group), width)
        step = max(1, MASK_CELLS // (len(group) * width))
        for a in range(0, width, step):
            piece = slice(a, a + step)
            forward(self.model, cache, tokens[:, piece], positions[:, piece], keep=1)
        return [cache.take(row, len(ids)) for row, ids in enumerate(group)]

    def _enter(self, job: RequestState, count: int) -> None:
        """Put `count` waiting rollouts of a job into the rows after the live ones."""
        if job.kv is not None:
            self._cache().put(self.live, count, job.kv, job.known)
        taken = [job.waiting.popleft() for _ in range(count)]
        self.rows.numbers[self.live : self.live + count] = [
            (job.ids[-1], job.known, 0, job.request.max_tokens, seed & 0xFFFFFFFFFFFFFFFF)
            for seed in (job.request.seeds[i] for i in taken)
        ]
        self.rows.owner += [(job, i) for i in taken]
        self.queued -= count
        if not job.waiting:
            self.waiting.popleft()
            job.kv = None

    def _halve(self) -> None:
        """After the device ran out of memory: half the rows, and all rollouts start again.

        Nothing is allocated here, and the next request gets a cache of the size that it needs. A
        restarted rollout draws the same numbers, since they depend on its seed and step only.
        """
        rows = len(self.rows.numbers) // 2  # bytes may have bounded them below the limit
        if rows < 1:
            raise EngineError(
                "one rollout does not fit into device memory; lower max_new_tokens or "
                "use a smaller model or dtype"
            )
        for job, index in reversed(self.rows.owner):
            job.waiting.appendleft(index)
            self.queued += 1
            if job not in self.waiting:
                self.waiting.appendleft(job)
        self.rows.owner.clear()
        self.limits = BatchLimits(rows, self.limits.nbytes)
        self.cache = None
        torch.cuda.empty_cache()


def _similar(lengths_ascending: list[Ids]) -> list[list[Ids]]:
    """Groups for joint prefill: at most half padding, bounded in tokens."""
    groups: list[list[Ids]] = []
    for ids in lengths_ascending:
        group = groups[-1] if groups else []
        fits = (len(group) + 1) * len(ids) <= PREFILL_TOKENS
        if group and fits and len(ids) <= 2 * len(group[0]) + CAPACITY_MULTIPLE // 4:
            group.append(ids)
        else:
            groups.append([ids])
    return groups
