from __future__ import annotations

import random

from align.training.batches import StepSampler

LENGTHS = [random.Random(0).randint(1, 50) for _ in range(22)]


def epoch(seed: int, number: int, rows: int = 4) -> list[int]:
    sampler = StepSampler(LENGTHS, rows, seed)
    sampler.set_epoch(number)
    return list(sampler)


def steps(order: list[int], rows: int = 4) -> list[list[int]]:
    return [order[start : start + rows] for start in range(0, len(order), rows)]


def test_every_row_once_and_short_ones_first_in_each_step() -> None:
    order = epoch(7, 0)
    assert sorted(order) == list(range(22))
    for step in steps(order):
        lengths = [LENGTHS[row] for row in step]
        assert lengths == sorted(lengths)
    assert len(StepSampler(LENGTHS, 4, 7)) == 22


def test_sorting_moves_no_row_to_another_step() -> None:
    unsorted = epoch(7, 0, rows=1)
    assert [set(step) for step in steps(epoch(7, 0))] == [set(step) for step in steps(unsorted)]


def test_seed_and_epoch_decide_the_order() -> None:
    assert epoch(7, 1) == epoch(7, 1)
    assert epoch(7, 0) != epoch(7, 1)
    assert epoch(7, 0) != epoch(9, 0)
