from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from align.training.batches import StepSampler, length_groups

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


def cost(groups: Sequence[Sequence[int]], lengths: Sequence[int], overhead: int) -> int:
    return sum(len(group) * max(lengths[k] for k in group) + overhead for group in groups)


def splits(rows: list[int]) -> Iterator[list[list[int]]]:
    """All partitions into groups."""
    if not rows:
        yield []
        return
    first, *rest = rows
    for others in splits(rest):
        yield [[first], *others]
        for k, group in enumerate(others):
            yield [*others[:k], [first, *group], *others[k + 1 :]]


@pytest.mark.parametrize("overhead", [0, 1, 4, 100])
@pytest.mark.parametrize("seed", range(4))
def test_no_split_into_groups_is_cheaper(seed: int, overhead: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randrange(1, 12) for _ in range(6)]
    groups = length_groups(lengths, overhead)
    assert sorted(row for group in groups for row in group) == list(range(6))
    assert cost(groups, lengths, overhead) == min(
        cost(split, lengths, overhead) for split in splits(list(range(6)))
    )
