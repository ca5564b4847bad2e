"""Sampling and scoring on tiny random models: exactness, sharing, the live queue, memory."""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    Phi3ForCausalLM,
)

from pts.config import SamplingConfig
from pts.engines.base import Engine, SampleRequest
from pts.engines.transformers import kv_cache as slots
from pts.engines.transformers.batch import BatchLimits, ContinuousBatch
from pts.engines.transformers.kv_cache import Kv
from pts.engines.transformers.prefix_cache import CachedPrefix, PrefixCache
from pts.engines.transformers.sampling import truncate
from pts.errors import EngineError
from tests.pts.tiny_models import (
    PROMPT,
    STOP,
    VOCAB,
    drawn,
    engine,
    reference_rollout,
    some_requests,
    tiny,
    tiny_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(scope="module", params=["phi3", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny(request.param)


def test_it_is_an_engine(model: Any, tokenizer: Any) -> None:
    made = engine(model, tokenizer)
    assert isinstance(made, Engine)
    assert made.stop_ids == {STOP}
    assert made.reproducible


def test_greedy_equals_generate(model: Any, tokenizer: Any) -> None:
    greedy = engine(model, tokenizer, temperature=0)
    for at in [(), (7, 8), tuple(range(20, 40))]:
        ids = torch.tensor([[*PROMPT, *at]])
        out = model.generate(ids, do_sample=False, max_new_tokens=25, eos_token_id=STOP)
        expected = tuple(out[0, ids.shape[1] :].tolist())
        assert drawn(greedy, [SampleRequest(0, PROMPT, at, 25, (1, 2))])[0] == [expected, expected]


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 0},
    ],
)
def test_score_equals_a_plain_forward(model: Any, tokenizer: Any, sampling: dict) -> None:
    completion = tuple(range(10, 40))
    rows = engine(model, tokenizer, **sampling).score(PROMPT, completion)
    with torch.no_grad():
        logits = model(torch.tensor([[*PROMPT, *completion]])).logits[0]
    expected = truncate(logits[len(PROMPT) - 1 : -1], SamplingConfig(**sampling)).rows()
    assert len(rows) == len(completion)
    for row, other in zip(rows, expected, strict=True):
        assert sorted(row.ids) == sorted(other.ids)
        np.testing.assert_allclose(row.probs, other.probs, atol=1e-5)


def test_score_in_pieces_equals_score_at_once(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    completion = tuple(range(10, 40))
    whole = engine(model, tokenizer).score(PROMPT, completion)
    monkeypatch.setattr("pts.engines.transformers.engine.SCORE_CELLS", 3 * VOCAB)
    pieces = engine(model, tokenizer).score(PROMPT, completion)
    for row, other in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(row.probs, other.probs, atol=1e-5)
    assert engine(model, tokenizer).score(PROMPT, ()) == []


def test_score_does_not_depend_on_what_was_sampled_before(model: Any, tokenizer: Any) -> None:
    fresh, used = engine(model, tokenizer), engine(model, tokenizer)
    drawn(used, some_requests())
    for row, other in zip(
        fresh.score(PROMPT, (7, 8, 9)), used.score(PROMPT, (7, 8, 9)), strict=True
    ):
        assert (row.ids == other.ids).all()
        assert (row.probs == other.probs).all()


@pytest.mark.parametrize(
    "sampling", [{}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.05, "temperature": 0.7}]
)
def test_frequencies_match_score(tokenizer: Any, sampling: dict) -> None:
    n, made = 3000, engine(tiny("phi3"), tokenizer, **sampling)
    outputs = drawn(made, [SampleRequest(0, PROMPT, (7,), 2, tuple(range(n)))])[0]
    first = made.score(PROMPT, (7, 8))[1]
    assert chi_square(first, [o[0] for o in outputs]) > 1e-3
    common = int(first.ids[0]) if first.ids[0] != STOP else int(first.ids[1])
    second = made.score(PROMPT, (7, common, 8))[2]
    assert chi_square(second, [o[1] for o in outputs if o[0] == common]) > 1e-3


def chi_square(row: Any, tokens: list[int]) -> float:
    counts = np.array([tokens.count(int(i)) for i in row.ids])
    assert counts.sum() == len(tokens), "a token outside the support was drawn"
    expected = row.probs * len(tokens)
    small = expected < 5
    if small.any():
        expected = np.append(expected[~small], expected[small].sum())
        counts = np.append(counts[~small], counts[small].sum())
    return float(stats.chisquare(counts, expected).pvalue)


def test_rollouts_do_not_depend_on_the_batch(model: Any, tokenizer: Any) -> None:
    sampling = {"temperature": 0.9, "top_p": 0.95}
    requests = some_requests()
    expected = {
        w.key: [reference_rollout(model, w, s, SamplingConfig(**sampling)) for s in w.seeds]
        for w in requests
    }
    for max_rows in (1, 3, 512):
        assert drawn(engine(model, tokenizer, max_rows, **sampling), requests) == expected
    assert drawn(engine(model, tokenizer, 5, **sampling), requests[::-1]) == expected
    alone = engine(model, tokenizer, **sampling)
    assert drawn(alone, requests[7:8])[7] == expected[7]


def test_the_same_call_gives_the_same_bits(model: Any, tokenizer: Any) -> None:
    a, b = (engine(model, tokenizer, 7) for _ in range(2))
    assert drawn(a, some_requests()) == drawn(b, some_requests())


def test_sharing_a_path_changes_nothing(model: Any, tokenizer: Any) -> None:
    path = tuple(range(10, 40))
    requests = [
        SampleRequest(0, PROMPT, path[:12], 15, (1, 2, 3)),
        SampleRequest(1, PROMPT, (*path[:12], 50), 14, (4, 5, 6)),
        SampleRequest(2, PROMPT, path, 4, (7,)),
        SampleRequest(3, PROMPT, (*path[:5], 50, 51), 14, (8, 9)),
    ]
    cold, warm = engine(model, tokenizer), engine(model, tokenizer)
    warm.score(PROMPT, path)
    assert drawn(cold, requests) == drawn(warm, requests)


def test_limit_and_stop(model: Any, tokenizer: Any) -> None:
    request = SampleRequest(0, PROMPT, (), 6, tuple(range(300)))
    outputs = drawn(engine(model, tokenizer), [request])[0]
    assert all(1 <= len(o) <= 6 for o in outputs)
    assert all(STOP not in o[:-1] for o in outputs)
    stopped = [o for o in outputs if o[-1] == STOP]
    assert stopped
    assert all(len(o) == 6 for o in outputs if o[-1] != STOP)
    assert drawn(engine(model, tokenizer), [SampleRequest(1, PROMPT, (), 0, (1,))]) == {1: [()]}
    assert drawn(engine(model, tokenizer), [SampleRequest(2, PROMPT, (), 4, ())]) == {2: []}


def test_a_prefix_of_one_token(model: Any, tokenizer: Any) -> None:
    request = SampleRequest(0, (5,), (), 8, (1, 2))
    expected = [reference_rollout(model, request, s, SamplingConfig()) for s in request.seeds]
    assert drawn(engine(model, tokenizer), [request])[0] == expected


def test_a_live_queue_answers_before_it_is_exhausted(model: Any, tokenizer: Any) -> None:
    answered: list[int] = []

    def queue() -> Iterator[SampleRequest | None]:
        yield SampleRequest(0, PROMPT, (), 5, (1,))
        while 0 not in answered:
            yield None
        yield SampleRequest(1, PROMPT, (7,), 40, (2, 3))
        yield None
        yield SampleRequest(2, PROMPT, (7, 8), 5, (4,))

    for request, outputs in engine(model, tokenizer).sample(queue()):
        answered.append(request.key)
        assert len(outputs) == len(request.seeds)
    assert sorted(answered) == [0, 1, 2]
    assert list(engine(model, tokenizer).sample(iter([]))) == []


def test_a_queue_that_can_never_move_is_a_deadlock(model: Any, tokenizer: Any) -> None:
    def queue() -> Iterator[SampleRequest | None]:
        yield SampleRequest(0, PROMPT, (), 3, (1,))
        while True:
            yield None

    results = engine(model, tokenizer).sample(queue())
    assert next(results)[0].key == 0
    with pytest.raises(EngineError, match="deadlock"):
        next(results)


def test_bad_requests_are_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(EngineError, match="at least one token"):
        drawn(engine(model, tokenizer), [SampleRequest(4, (), (), 3, (1,))])
    with pytest.raises(EngineError, match="max_rows"):
        engine(model, tokenizer, max_rows=0)
    with pytest.raises(EngineError, match="prompt token"):
        engine(model, tokenizer).score((), (3,))


def test_small_budgets_make_requests_wait_and_grow(model: Any, tokenizer: Any) -> None:
    """A byte budget for few rows: the batch resizes between short and long requests."""
    made = engine(model, tokenizer)
    room = made._shape.bytes_per_token * 64 * 4  # four rows of 64 positions, two of 128
    made._limits = BatchLimits(100, room)
    requests = [SampleRequest(i, PROMPT, (), 20 if i < 4 else 90, (i, i + 50)) for i in range(8)]
    assert drawn(made, requests) == drawn(engine(model, tokenizer), requests)


class Cramped(Phi3ForCausalLM):
    """Runs out of device memory above three rows."""

    def forward(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if input_ids.shape[0] > 3:
            raise torch.cuda.OutOfMemoryError("too many rows")
        return super().forward(input_ids, *args, **kwargs)

    forward.__signature__ = inspect.signature(Phi3ForCausalLM.forward)  # type: ignore[attr-defined]


def test_out_of_memory_halves_the_batch(tokenizer: Any) -> None:
    """In a prefill (first requests: six prompts) as in a step; no rollout is lost or changed."""
    roomy = tiny("phi3")
    cramped = Cramped(roomy.config).eval()
    cramped.load_state_dict(roomy.state_dict())
    requests = [SampleRequest(i, (*PROMPT, i + 3), (), 12, (i, i + 50, i + 90)) for i in range(6)]
    assert drawn(engine(cramped, tokenizer, 16), requests) == drawn(
        engine(roomy, tokenizer), requests
    )


class Device:
    """Memory for `room` bytes of slots. `sizes` are the rows and positions that were asked for."""

    def __init__(self, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room, self.peak, self.refused = room, 0, 0
        self.sizes: list[tuple[int, int]] = []
        self.alive: list[weakref.ref[torch.Tensor]] = []
        self.make = slots.new_buffer
        monkeypatch.setattr(slots, "new_buffer", self.new_buffer)

    def new_buffer(self, shape: Any, rows: int, capacity: int, dim: int) -> torch.Tensor:
        if self.sizes[-1:] != [(rows, capacity)]:
            self.sizes.append((rows, capacity))
        used = sum(buffer.nbytes for ref in self.alive if (buffer := ref()) is not None)
        needed = used + rows * capacity * shape.heads * dim * 4  # float32
        if needed > self.room:
            self.refused += 1
            raise torch.OutOfMemoryError("out of memory")
        self.peak = max(self.peak, needed)
        made = self.make(shape, rows, capacity, dim)
        self.alive.append(weakref.ref(made))
        return made


@pytest.fixture
def no_collection() -> Iterator[None]:
    """A device's memory must be free as soon as it is needed, not after a garbage collection."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("live", [True, False])
def test_growing_needs_no_second_cache(
    model: Any, tokenizer: Any, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve rows of 64 positions fit, or six of 128. While they grow, one of the two layers' four
    buffers exists twice: at most 5/4 of the budget are in use, of the 10/6 that are there."""
    made = engine(model, tokenizer)
    budget = made._shape.bytes_per_token * 64 * 12
    made._limits = BatchLimits(100, budget)
    short, long = (
        SampleRequest(0, (5,), (), 30, (1, 2, 3)),
        SampleRequest(1, (6,), (), 80, tuple(range(9))),
    )
    expected = drawn(engine(model, tokenizer), [short, long])
    device = Device(budget * 10 // 6, monkeypatch)

    def queue() -> Iterator[SampleRequest | None]:
        yield short
        yield None  # a step, after which three rows are live
        while not live and 0 not in got:
            yield None
        yield long

    got: dict[int, list[Any]] = {}
    for request, outputs in made.sample(queue()):
        got[request.key] = outputs
    assert got == expected
    assert device.sizes == [(12, 64), (6, 128)]
    assert device.peak <= (budget * 5 // 4 if live else budget)


@pytest.mark.usefixtures("no_collection")
def test_slots_that_do_not_fit_are_halved(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes allow 12 rows of 64 positions, or 6 of 128; the device has room for 5, or 2."""
    made = engine(model, tokenizer)
    requests = [
        SampleRequest(i, (5 + i,), (), 30 + 40 * i, (i, i + 50, i + 90, i + 99)) for i in range(2)
    ]
    expected = drawn(engine(model, tokenizer), requests)
    row = made._shape.bytes_per_token * 64
    made._limits = BatchLimits(100, 12 * row)
    device = Device(5 * row, monkeypatch)
    assert drawn(made, requests) == expected
    # The long request finds three rows too many while the short one runs; that starts again.
    assert device.sizes == [(12, 64), (6, 64), (3, 64), (3, 128), (1, 64), (1, 128)]
    assert device.refused == 3


@pytest.mark.usefixtures("no_collection")
def test_out_of_memory_in_a_step_never_enlarges_the_slots(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the rows that were in use, not half of the rows that are allowed."""
    roomy = tiny("phi3")
    cramped = Cramped(roomy.config).eval()
    cramped.load_state_dict(roomy.state_dict())
    request = SampleRequest(0, (5,), (), 20, tuple(range(30)))
    expected = drawn(engine(roomy, tokenizer), [request])
    made = engine(cramped, tokenizer)
    made._limits = BatchLimits(100, made._shape.bytes_per_token * 64 * 12)
    device = Device(made._limits.nbytes, monkeypatch)
    assert drawn(made, [request]) == expected
    assert device.sizes == [(12, 64), (6, 64), (3, 64)]
    assert device.refused == 0


def test_out_of_memory_while_gaps_are_closed_loses_nothing(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = SampleRequest(0, (5,), (), 20, tuple(range(30)))
    expected = drawn(engine(model, tokenizer), [request])
    move, moves = slots.SlotCache.move, []

    def moved(self: slots.SlotCache, *args: Any) -> None:
        moves.append(args)
        if len(moves) == 1:
            raise torch.OutOfMemoryError("no room for a copy of the rows")
        move(self, *args)

    monkeypatch.setattr(slots.SlotCache, "move", moved)
    assert drawn(engine(model, tokenizer), [request]) == expected
    assert len(moves) > 1


def test_a_path_beyond_the_whole_budget_pushes_none_out() -> None:
    def path(first: int, tokens: int) -> CachedPrefix:
        kv = Kv(*(torch.zeros(1, 1, tokens, 1) for _ in range(2)))  # 8 bytes a token
        return CachedPrefix((first,) * tokens, kv)

    store = PrefixCache(80)
    for first in range(3):
        store.put((0,), path(first, 3))
    store.put((0,), path(9, 11))
    assert [store.find((0,), (first,) * 11)[0] for first in (0, 1, 2, 9)] == [3, 3, 3, 0]
    store.put((0,), path(9, 10))  # exactly the budget: the others make room
    assert [store.find((0,), (first,) * 11)[0] for first in (0, 1, 2, 9)] == [0, 0, 0, 10]
    assert store.nbytes == 80


def test_one_row_that_does_not_fit_is_an_error(tokenizer: Any) -> None:
    class Full(Cramped):
        def forward(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("logits_to_keep") == 1:
                raise torch.cuda.OutOfMemoryError("no row fits")
            return super().forward(input_ids, *args, **kwargs)

        forward.__signature__ = inspect.signature(Phi3ForCausalLM.forward)  # type: ignore[attr-defined]

    made = engine(Full(tiny("phi3").config).eval(), tokenizer, 4)
    with pytest.raises(EngineError, match="does not fit into device memory"):
        drawn(made, [SampleRequest(0, PROMPT, (), 5, (1, 2, 3))])


def test_long_prefixes_are_fed_in_chunks(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tuple(range(10, 40))
    expected = drawn(engine(model, tokenizer), [SampleRequest(0, PROMPT, path, 9, (1, 2))])
    rows = engine(model, tokenizer).score(PROMPT, path)
    monkeypatch.setattr("pts.engines.transformers.batch.MASK_CELLS", 100)
    monkeypatch.setattr("pts.engines.transformers.engine.MASK_CELLS", 100)
    assert drawn(engine(model, tokenizer), [SampleRequest(0, PROMPT, path, 9, (1, 2))]) == expected
    for row, other in zip(engine(model, tokenizer).score(PROMPT, path), rows, strict=True):
        np.testing.assert_allclose(row.probs, other.probs, atol=1e-5)


def test_eager_attention_gives_the_same_rollouts(tokenizer: Any) -> None:
    eager = tiny("phi3")
    eager.set_attn_implementation("eager")
    assert drawn(engine(eager, tokenizer), some_requests()) == drawn(
        engine(tiny("phi3"), tokenizer), some_requests()
    )


def test_batch_shrinks_to_the_live_rows(tokenizer: Any) -> None:
    made = engine(tiny("phi3"), tokenizer)
    sizes: list[int] = []

    class Watched(Phi3ForCausalLM):
        def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
            sizes.append(input_ids.shape[0])
            return super().forward(input_ids=input_ids, **kwargs)

    watched = Watched(made.model.config).eval()
    watched.load_state_dict(made.model.state_dict())
    batch = ContinuousBatch(
        watched, made._shape, made.sampling, made.stop_ids, made._paths, BatchLimits(64, 2**28)
    )
    batch.add(SampleRequest(0, (5,), (), 2, tuple(range(40))))
    batch.add(SampleRequest(1, (6,), (), 9, (1,)))
    while not batch.idle:
        batch.advance()
    assert sizes[0] == 41
    assert max(sizes[2:], default=0) <= 1
    assert sizes == sorted(sizes, reverse=True)
