"""Truncation against transformers' own warpers; random numbers against published vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pts.config import SamplingConfig
from pts.engines.transformers.sampling import philox, truncate, uniforms
from pts.errors import EngineError

CONFIGS = [
    SamplingConfig(),
    SamplingConfig(temperature=0.6),
    SamplingConfig(top_k=7),
    SamplingConfig(top_p=0.8),
    SamplingConfig(min_p=0.07),
    SamplingConfig(temperature=1.7, top_k=20, top_p=0.9, min_p=0.05),
    SamplingConfig(temperature=0.3, top_p=0.5, min_p=0.2),
    SamplingConfig(top_k=500),
]


def warped(logits: torch.Tensor, sampling: SamplingConfig) -> np.ndarray:
    """The distribution that `generate(do_sample=True)` samples from, [N, V]."""
    chain = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        chain.append(MinPLogitsWarper(sampling.min_p))
    return chain(None, logits.double()).softmax(-1).numpy()


def dense(rows: list, vocabulary: int) -> np.ndarray:
    table = np.zeros((len(rows), vocabulary))
    for i, row in enumerate(rows):
        table[i, row.ids] = row.probs
    return table


@pytest.mark.parametrize("sampling", CONFIGS, ids=lambda s: s.model_dump_json())
@pytest.mark.parametrize("scale", [0.05, 1.0, 6.0])
def test_rows_equal_the_warped_distribution(sampling: SamplingConfig, scale: float) -> None:
    logits = scale * torch.randn(40, 300, generator=torch.Generator().manual_seed(0))
    rows = truncate(logits, sampling).rows()
    np.testing.assert_allclose(dense(rows, 300), warped(logits, sampling), atol=1e-12)
    for row in rows:
        assert row.ids.dtype == np.int64
        assert row.probs.dtype == np.float64
        assert (np.diff(row.probs) <= 0).all()
        assert row.probs.min() > 0
        assert abs(row.probs.sum() - 1) < 1e-12


def test_temperature_zero_keeps_the_first_of_equal_maxima() -> None:
    rows = truncate(torch.tensor([[0.0, 3.0, 3.0]]), SamplingConfig(temperature=0)).rows()
    assert rows[0].ids.tolist() == [1]
    assert rows[0].probs.tolist() == [1.0]


def test_ties_at_the_kth_token_are_kept_and_ranked_by_id() -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0, 1.0, 0.0], [4.0, 3.0, 2.0, 1.0, 0.0]])
    rows = truncate(logits, SamplingConfig(top_k=2)).rows()
    assert rows[0].ids.tolist() == [1, 0, 2, 3]
    assert rows[1].ids.tolist() == [0, 1]


def test_ties_at_the_edge_of_the_nucleus_are_cut_by_id_in_any_company() -> None:
    flat = torch.zeros(1, 200)
    peaked = torch.zeros(1, 200)
    peaked[0, 5] = 50.0
    sampling = SamplingConfig(top_p=0.245)
    alone = truncate(flat, sampling).rows()[0]
    together = truncate(torch.cat([peaked, flat]), sampling).rows()[1]
    assert alone.ids.tolist() == list(range(49))  # 49 of 200 equal tokens hold 0.245
    assert together.ids.tolist() == alone.ids.tolist()


def test_rows_of_different_widths_share_a_batch() -> None:
    scales = torch.tensor([0.01, 30.0, 1.0, 3.0, 0.3])[:, None]
    logits = scales * torch.randn(5, 3000, generator=torch.Generator().manual_seed(2))
    sampling = SamplingConfig(top_p=0.9)
    rows = truncate(logits, sampling).rows()
    assert len({len(row.ids) for row in rows}) == 5
    np.testing.assert_allclose(dense(rows, 3000), warped(logits, sampling), atol=1e-12)
    for i in range(5):
        alone = truncate(logits[i : i + 1], sampling).rows()[0]
        assert alone.ids.tolist() == rows[i].ids.tolist()
        np.testing.assert_allclose(alone.probs, rows[i].probs, rtol=1e-12)


def test_nan_logits_are_refused() -> None:
    with pytest.raises(EngineError, match="NaN"):
        truncate(torch.tensor([[0.0, float("nan")]]), SamplingConfig())


@pytest.mark.parametrize("sampling", CONFIGS, ids=lambda s: s.model_dump_json())
def test_draws_follow_the_rows(sampling: SamplingConfig) -> None:
    logits = 2 * torch.randn(1, 30, generator=torch.Generator().manual_seed(1))
    row = truncate(logits, sampling).rows()[0]
    n = 20_000
    numbers = uniforms(np.arange(n, dtype=np.uint64), np.zeros(n, np.int64))
    drawn = truncate(logits.expand(n, -1), sampling).draw(numbers)
    counts = np.array([(drawn == i).sum() for i in row.ids])
    assert counts.sum() == n
    seen = row.probs * n >= 5
    expected = np.append(row.probs[seen], row.probs[~seen].sum()) * n
    observed = np.append(counts[seen], counts[~seen].sum())
    used = expected > 0
    if used.sum() > 1:
        assert stats.chisquare(observed[used], expected[used]).pvalue > 1e-3


def test_a_draw_at_the_ends_stays_in_the_support() -> None:
    logits = torch.tensor([[-9.0, 2.0, 1.0, 0.0, -9.0]]).expand(2, -1)
    ends = np.array([0.0, 1 - 2.0**-53])
    for sampling in (SamplingConfig(min_p=0.1), SamplingConfig(top_k=3), SamplingConfig(top_p=0.9)):
        row = truncate(logits[:1], sampling).rows()[0]
        assert set(truncate(logits, sampling).draw(ends).tolist()) <= set(row.ids.tolist())


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            [0xFFFFFFFF] * 2,
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_vectors(
    counter: list[int], key: list[int], expected: list[int]
) -> None:
    """Known answers of philox4x32-10 from the authors' Random123 distribution."""
    words = [np.array([w], np.uint64) for w in (*counter, *key)]
    result = philox((words[0], words[1], words[2], words[3]), (words[4], words[5]))
    assert [int(w[0]) for w in result] == expected


def test_uniforms_are_a_function_of_seed_and_step() -> None:
    seeds = np.array([7, 2**64 - 1, 7], np.uint64)
    steps = np.array([3, 0, 3], np.int64)
    together = uniforms(seeds, steps)
    alone = [float(uniforms(seeds[i : i + 1], steps[i : i + 1])[0]) for i in range(3)]
    assert together.tolist() == alone
    assert together[0] == together[2]
    grid = uniforms(np.arange(50_000, dtype=np.uint64) % 500, np.arange(50_000) // 500)
    assert len(np.unique(grid)) == 50_000
    assert stats.kstest(grid, "uniform").pvalue > 1e-3
