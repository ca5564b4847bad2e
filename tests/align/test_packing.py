"""Packed rows: as few sequences as the longest row allows, each row by itself, the same losses."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from align.errors import StageError
from align.stages import sft
from align.training.packing import IGNORED, PackedCollator, bins, check_packing
from tests.align import tiny

SETTINGS = {"num_examples": 64, "batch_size": 8, "gradient_accumulation": 2, "learning_rate": 1e-2}


def rows(*lengths: int) -> list[dict[str, list[int]]]:
    """Rows of distinct ids, the second half of each with labels."""
    rng = random.Random(0)
    made = []
    for length in lengths:
        ids = rng.sample(range(5, 250), length)
        masked = [IGNORED] * (length // 2)
        made.append({"input_ids": ids, "labels": masked + ids[length // 2 :]})
    return made


def test_rows_go_where_they_leave_the_least_room() -> None:
    # 7 alone; 6 leaves 4, 5 leaves 5; 4 fills the room behind 6, 3 behind 7, 2 goes behind 5.
    assert bins([4, 7, 2, 6, 3, 5], 10) == [[1, 4], [3, 0], [5, 2]]
    assert bins([5, 5, 5], 5) == [[0], [1], [2]]


def test_every_row_is_in_one_sequence_no_longer_than_the_longest_row() -> None:
    rng = random.Random(1)
    for _ in range(50):
        lengths = [rng.randrange(1, 60) for _ in range(rng.randrange(1, 20))]
        found = bins(lengths, max(lengths))
        assert sorted(n for group in found for n in group) == [*range(len(lengths))]
        assert all(sum(lengths[n] for n in group) <= max(lengths) for group in found)
        # No two sequences would fit into one: the last row of one would have gone to the other.
        sums = sorted(sum(lengths[n] for n in group) for group in found)
        assert len(sums) < 2 or sums[0] + sums[1] > max(lengths)


def test_a_batch_restarts_positions_and_has_no_label_at_a_row_s_start() -> None:
    made = rows(4, 2, 1)
    made[1]["labels"] = made[1]["input_ids"]  # its first token would follow the row before it
    batch = PackedCollator(pad_id=9)(made)
    (a, b, c), labels = (row["input_ids"] for row in made), made[0]["labels"]
    assert batch["input_ids"].tolist() == [a, [*b, *c, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 0, 0]]
    assert batch["labels"].tolist() == [labels, [IGNORED, b[1], IGNORED, IGNORED]]
    whole = PackedCollator(pad_id=9, whole=True)(made)
    assert whole["input_ids"].tolist() == [[*a, *b, *c]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [None, 5])
def test_packed_rows_have_the_logits_that_they_have_alone(
    attention: str, window: int | None
) -> None:
    model = tiny.model(261, sliding_window=window)
    model.set_attn_implementation(attention)
    made = rows(20, 7, 9, 4, 12)
    batch = PackedCollator(pad_id=4)(made)
    assert batch["input_ids"].shape == (3, 20)
    ids_RT, position_RT = batch["input_ids"], batch["position_ids"]
    packed = model(input_ids=ids_RT, position_ids=position_RT, use_cache=False).logits
    for row in made:
        alone = model(torch.tensor([row["input_ids"]])).logits[0]
        at = next(
            (r, t) for r in range(3) for t in range(20)
            if ids_RT[r, t : t + len(alone)].tolist() == row["input_ids"]
        )  # fmt: skip
        torch.testing.assert_close(packed[at[0], at[1] : at[1] + len(alone)], alone)
    check_packing(model, PackedCollator(4), made[0]["input_ids"])


def test_a_model_in_which_rows_see_each_other_is_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=261, hidden_size=32, num_hidden_layers=2, initializer_range=0.2)
    with pytest.raises(StageError, match=r"packing: in MambaForCausalLM a row changes the logits"):
        check_packing(MambaForCausalLM(config), PackedCollator(0), rows(20)[0]["input_ids"])


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_packing_changes_no_loss_no_count_and_no_policy(lora: Any, tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base")
    found = []
    for packing in (False, True):
        settings = {**SETTINGS, "packing": packing, "lora": lora}
        folder = tmp_path / str(packing)
        result = sft.run(tiny.context(base, folder, tiny.ParityTask(), sft=settings))
        lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        found.append((result, torch.tensor([line["loss"] for line in lines]), lines))
    (padded, losses, lines), (packed, same, others) = found
    assert len(losses) == 4
    torch.testing.assert_close(same, losses, rtol=1e-5, atol=1e-5)
    assert lines[0].keys() == others[0].keys()
    for key in ("rows", "rows_too_long", "assistant_tokens", "steps", "trained_tokens"):
        assert packed.metrics[key] == padded.metrics[key]
    one, two = tiny.weights(padded.model), tiny.weights(packed.model)  # type: ignore[arg-type]
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-4)
