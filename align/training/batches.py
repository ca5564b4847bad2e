"""Which rows go through the model together: less padding, and the same gradient.

A batch is padded to its longest row. Where a step is split into micro-batches (gradient
accumulation), `StepSampler` puts rows of like length into the same one; the rows of a step are the
same random draw as without sorting. `length_groups` splits the rows of one batch in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class StepSampler(Sampler[int]):
    """Row numbers of one epoch: a random permutation, each step's rows from short to long.

    Args:
        lengths: tokens of every row.
        rows: rows of an optimiser step, over all its micro-batches.
        seed: with the epoch's number it decides the permutation.
    """

    def __init__(self, lengths: Sequence[int], rows: int, seed: int) -> None:
        self.lengths = lengths
        self.rows = rows
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch; a resumed run sees the same order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed + self.epoch) % 2**63)
        order: list[int] = torch.randperm(len(self.lengths), generator=generator).tolist()
        for start in range(0, len(order), self.rows):
            yield from sorted(order[start : start + self.rows], key=self.lengths.__getitem__)


def length_groups(lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Row numbers in groups of like length, the cheapest of all such splits.

    A group costs its rows times its longest row, which they are padded to, and `overhead` tokens
    for a forward pass of its own.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    costs, starts = [0], [0]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        options = [costs[start] + (end - start) * longest for start in range(end)]
        start = min(range(end), key=options.__getitem__)
        costs.append(options[start] + overhead)
        starts.append(start)
    groups, end = [], len(order)
    while end:
        groups.append(order[starts[end] : end])
        end = starts[end]
    return groups[::-1]
