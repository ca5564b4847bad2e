"""The numpy truncation, and that the one on logits of whole batches gives the same rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pts.config import SamplingConfig
from pts.engines.transformers.sampling import truncate as truncate_logits
from pts.engines.truncation import STEPS, temper, top_k, top_p, truncate

SETTINGS = [
    SamplingConfig(),
    SamplingConfig(temperature=0),
    SamplingConfig(temperature=0.6),
    SamplingConfig(temperature=0.8, top_k=4),
    SamplingConfig(temperature=1.5, top_p=0.8),
    SamplingConfig(temperature=0.7, min_p=0.1),
    SamplingConfig(temperature=0.8, top_k=12, top_p=0.9, min_p=0.05),
    SamplingConfig(top_k=1000, top_p=0.999),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=repr)
@pytest.mark.parametrize("levels", [None, 6], ids=["all different", "many ties"])
def test_both_truncations_give_the_same_rows(sampling: SamplingConfig, levels: int | None) -> None:
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 3, (40, 200))
    if levels is not None:
        logits = np.rint(logits * levels / 9)
    rows = truncate_logits(torch.from_numpy(logits), sampling).rows()
    for logit, row in zip(logits, rows, strict=True):
        ids = np.argsort(-logit, kind="stable")
        weights = np.exp(logit[ids] - logit.max())
        probs = truncate(weights / weights.sum(), sampling)
        assert row.ids.tolist() == ids[: len(probs)].tolist()
        np.testing.assert_allclose(row.probs, probs, rtol=1e-12)


def test_what_is_left_is_a_head_and_sums_to_one() -> None:
    probs = np.array([0.4, 0.3, 0.1, 0.1, 0.1])
    assert truncate(probs, SamplingConfig(top_k=3)) == pytest.approx(probs)  # ties are kept
    assert truncate(probs, SamplingConfig(top_p=0.69)) == pytest.approx([4 / 7, 3 / 7])
    assert truncate(probs, SamplingConfig(top_p=0.71)) == pytest.approx([0.5, 0.375, 0.125])
    assert truncate(probs, SamplingConfig(min_p=0.5)) == pytest.approx([4 / 7, 3 / 7])
    assert truncate(probs, SamplingConfig(temperature=0)).tolist() == [1.0]
    assert truncate(probs, SamplingConfig(temperature=0.5)) == pytest.approx(probs**2 / 0.28)


def test_the_order_of_steps_matters() -> None:
    probs, sampling = np.array([0.5, 0.3, 0.2]), SamplingConfig(temperature=2, top_k=2, top_p=0.6)
    assert STEPS[0] is temper
    assert len(truncate(probs, sampling)) == 2
    assert len(truncate(probs, sampling, (temper, top_p, top_k))) == 2
    assert len(truncate(probs, SamplingConfig(temperature=0.3, top_p=0.6))) == 1
    assert len(truncate(probs, SamplingConfig(temperature=0.3, top_p=0.6), (top_p, temper))) == 2


def test_equal_tokens_are_cut_by_id_whatever_the_other_rows_hold() -> None:
    """Rows with many ties make all rows of a batch longer; what is listed there is left open."""
    rng = np.random.default_rng(7)
    logits = torch.from_numpy(np.rint(rng.normal(0, 3, (40, 200)) * 2 / 3))
    sampling = SamplingConfig(temperature=1.5, top_p=0.8)
    together = truncate_logits(logits, sampling).rows()
    for row, logit in zip(together, logits, strict=True):
        (alone,) = truncate_logits(logit[None], sampling).rows()
        assert row.ids.tolist() == alone.ids.tolist()
