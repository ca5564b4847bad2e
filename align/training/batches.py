"""Which rows go through the model together: less padding, and the same gradient.

A batch is padded to its longest row. Where a step is split into micro-batches (gradient
accumulation), `StepSampler` puts rows of like length into the same one; the rows of a step are the
same random draw as without sorting. `length_groups` splits the rows of one batch in the same way.
`StepMean` gives every row of a step the same weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
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


class StepMean(ABC):
    """Mixin of a trainer whose loss is a mean over a micro-batch's rows: makes it the mean over the
    step's rows.

    transformers takes the plain mean of a step's micro-batches, and in the last step of an epoch
    one of them may have fewer rows, which would count for more.
    """

    accelerator: Any
    _step: tuple[int, int] = (0, 0)
    """Of the step at hand: the micro-batches, and the rows in them, of all processes."""

    @abstractmethod
    def rows_of(self, batch: dict[str, Tensor]) -> int:
        """Rows of a micro-batch."""

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Fetch the micro-batches of a step, and count their rows."""
        above: Any = super()
        batches, items = above.get_batch_samples(epoch_iterator, num_batches, device)
        count, rows = len(batches), sum(map(self.rows_of, batches))
        if self.accelerator.num_processes > 1:
            told = torch.tensor([[count, rows]], device=device)
            count, rows = self.accelerator.gather(told).sum(0).tolist()
        self._step = count, rows
        return batches, items

    def of_step(self, loss: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The mean loss of a micro-batch, times what makes the mean over the step's micro-batches
        one over its rows. Where all have as many rows it is the loss itself, bit for bit."""
        count, rows = self._step
        share = count * self.rows_of(batch)
        return loss if share == rows or not rows else loss * (share / rows)


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
