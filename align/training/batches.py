"""The order in which rows are drawn: random optimiser steps, sorted by length inside each.

A batch is padded to its longest row. Where a step is split into micro-batches (gradient
accumulation), rows of like length go into the same one: less padding, and the same gradient,
because the rows of a step are the same random draw as without sorting.
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
