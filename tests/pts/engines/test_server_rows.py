"""Rows from a server's lists: the exact row, or none while the support is not certain."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pts.config import SamplingConfig
from pts.engines.server.endpoints import Unreadable
from pts.engines.server.logprobs import TopLogprobs, processed_row, raw_row, widths
from pts.engines.server.protocols import RANDOM, LlamaCpp
from pts.engines.truncation import truncate

VOCABULARY = 40
POLICIES = [
    SamplingConfig(),
    SamplingConfig(temperature=0.6),
    SamplingConfig(temperature=1.7, top_k=5),
    SamplingConfig(top_p=0.8),
    SamplingConfig(temperature=0.5, top_p=0.95),
    SamplingConfig(temperature=1.5, top_p=0.9),
    SamplingConfig(min_p=0.1),
    SamplingConfig(temperature=0.8, top_k=12, top_p=0.9, min_p=0.05),
    SamplingConfig(temperature=0),
]


def distribution(seed: int, concentration: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Ids and probabilities of a vocabulary, likeliest first."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(VOCABULARY, concentration)) + 1e-12
    ids = rng.permutation(VOCABULARY)
    order = np.argsort(-probs)
    return ids[order], probs[order] / probs.sum()


def listing(ids: np.ndarray, probs: np.ndarray, width: int) -> TopLogprobs:
    shown = slice(0, width)
    return TopLogprobs.ranked(
        ids[shown].tolist(), np.log(probs[shown]).tolist(), whole=width >= len(ids)
    )


@pytest.mark.parametrize("sampling", POLICIES, ids=str)
def test_a_raw_row_is_the_truncated_distribution_or_none(sampling: SamplingConfig) -> None:
    """Whatever the width, and the whole list always decides."""
    for seed, width in itertools.product(range(12), (1, 2, 3, 5, 8, 13, 20, 39, VOCABULARY)):
        ids, probs = distribution(seed)
        expected = truncate(probs, sampling)
        row = raw_row(listing(ids, probs, width), sampling, VOCABULARY)
        if row is None:
            assert width < VOCABULARY
            continue
        assert row.ids.tolist() == ids[: len(expected)].tolist()
        np.testing.assert_allclose(row.probs, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("sampling", "width"),
    [
        (SamplingConfig(top_k=5), 6),
        (SamplingConfig(temperature=0), 1),
        (SamplingConfig(top_p=0.5), 20),
        (SamplingConfig(min_p=0.2), 20),
    ],
    ids=str,
)
def test_short_lists_suffice(sampling: SamplingConfig, width: int) -> None:
    """None would be a right answer too, but one that asks for 128,000 tokens."""
    for seed in range(12):
        assert raw_row(listing(*distribution(seed), width), sampling, VOCABULARY) is not None


@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(temperature=0.7)], ids=str)
def test_without_truncation_only_the_whole_list_is_a_row(sampling: SamplingConfig) -> None:
    ids, probs = distribution(0, concentration=5.0)
    assert raw_row(listing(ids, probs, VOCABULARY - 1), sampling, VOCABULARY) is None
    assert processed_row(listing(ids, probs, VOCABULARY - 1), sampling) is None
    row = processed_row(listing(ids, probs, VOCABULARY), sampling)
    assert row is not None
    np.testing.assert_allclose(row.probs, probs, rtol=1e-12)


def test_hidden_tokens_may_change_a_nucleus() -> None:
    """Listed: .4, .3. The other .3 decides at T = 2 whether two tokens are half of all weight:
    one hidden token of .3 leaves them at 67 %, thirty of .01 at 28 %."""
    shown = TopLogprobs.ranked([7, 8], np.log([0.4, 0.3]).tolist(), whole=False)
    sampling = SamplingConfig(temperature=2.0, top_p=0.5)
    assert raw_row(shown, sampling, 32) is None
    row = raw_row(shown, sampling, 3)
    assert row is not None
    assert row.ids.tolist() == [7, 8]


def test_hidden_mass_that_rounding_swallows_still_counts() -> None:
    """The list sums to 1, but 50,000 tokens of 1e-12 (5e-8 in all) are lost in the rounding.

    At T = 2 the listed weigh 0.6^.5 + 0.4^.5 = 1.407 and those 50,000 x 1e-6 = 0.05, so 97 % of the
    sum, 1.413, is more than what is listed. At T = 1 the two are the nucleus, as are they at T = 2
    when one token is hidden: it has a mass below 1e-5 and so a weight below 0.0032.
    """
    shown = TopLogprobs.ranked([7, 8], np.log([0.6, 0.4]).tolist(), whole=False)
    hot = SamplingConfig(temperature=2.0, top_p=0.97)
    assert raw_row(shown, hot, 50_002) is None
    for sampling, vocabulary in ((SamplingConfig(top_p=0.97), 50_002), (hot, 3)):
        row = raw_row(shown, sampling, vocabulary)
        assert row is not None
        assert row.ids.tolist() == [7, 8]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5, 2.0, 3.0])
def test_rows_of_float32_lists_with_long_tails_are_exact_or_none(temperature: float) -> None:
    rng = np.random.default_rng(1)
    for _, top_p in itertools.product(range(12), (0.5, 0.8, 0.95)):
        head, tail = rng.normal(0, 1.5, 8), rng.normal(-rng.uniform(12, 24), 1.5, 5000)
        logits = np.sort(np.concatenate([head, tail]))[::-1]
        probs = np.exp(logits) / np.exp(logits).sum()
        sampling = SamplingConfig(temperature=temperature, top_p=top_p)
        expected = truncate(probs, sampling)
        for width in (20, 160, 1280):
            told = np.log(probs[:width]).astype(np.float32).tolist()
            row = raw_row(TopLogprobs.ranked(range(width), told, whole=False), sampling, len(probs))
            assert row is None or len(row.ids) == len(expected)


def test_a_tie_at_the_edge_of_top_k_needs_a_longer_list() -> None:
    probs = np.array([0.5, 0.2, 0.2, 0.1])
    ids = np.array([3, 1, 2, 0])
    sampling = SamplingConfig(top_k=2)
    assert raw_row(listing(ids, probs, 2), sampling, 4) is None
    assert raw_row(listing(ids, probs, 3), sampling, 4) is None
    row = raw_row(listing(ids, probs, 4), sampling, 4)
    assert row is not None
    assert row.ids.tolist() == [3, 1, 2]


def test_of_equals_at_the_edge_of_a_nucleus_the_path_goes_first() -> None:
    probs, ids = np.array([0.5, 0.2, 0.2, 0.1]), np.array([3, 1, 2, 0])
    sampling = SamplingConfig(top_p=0.6)
    kept = [raw_row(listing(ids, probs, 4), sampling, 4, path) for path in (-1, 2)]
    assert [row.ids.tolist() for row in kept if row] == [[3, 1], [3, 2]]
    assert all(row.probs.tolist() == pytest.approx([5 / 7, 2 / 7]) for row in kept if row)


def test_processed_rows_need_all_the_mass() -> None:
    short = TopLogprobs.ranked([1, 2], np.log([0.6, 0.3999]).tolist(), whole=False)
    assert processed_row(short, SamplingConfig(top_p=0.9)) is None
    rounded = TopLogprobs.ranked([1, 2], np.log([0.6, 0.399999]).tolist(), whole=False)
    row = processed_row(rounded, SamplingConfig(top_p=0.9))
    assert row is not None
    assert row.probs.sum() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    ("ids", "logprobs", "message"),
    [
        ([1, 1], [-1.0, -2.0], "listed twice"),
        ([], [], "are none"),
        ([1, 2], [3.0, 2.0], "--logprobs-mode processed_logprobs"),
        ([1, 2], [-1.0, float("nan")], "mass"),
    ],
)
def test_lists_that_are_none_are_rejected(
    ids: list[int], logprobs: list[float], message: str
) -> None:
    with pytest.raises(Unreadable, match=message):
        TopLogprobs.ranked(ids, logprobs, whole=True)


def test_widths_grow_to_everything() -> None:
    assert list(widths(SamplingConfig(temperature=0), -1)) == [1]
    assert list(widths(SamplingConfig(), -1)) == [-1]
    assert list(widths(SamplingConfig(top_p=0.9), -1)) == [20, 160, 1280, 10240, -1]
    assert list(widths(SamplingConfig(top_k=4), -1))[:3] == [5, 20, 160]


def test_a_row_of_llama_cpp_is_asked_for_with_another_draw_each_time() -> None:
    """It lists nothing where the drawn token is a part of a character (llama.cpp, 2026)."""
    protocol = LlamaCpp("model", frozenset({2}), VOCABULARY)
    assert protocol.listing((1, 2), 5, SamplingConfig())["seed"] == RANDOM
    assert protocol.body((1, 2), 5, 7, SamplingConfig())["seed"] == 7
