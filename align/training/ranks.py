"""Which of the processes that train together this one is: rank 0 writes, the others compute."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")

_place = [0, 1]
"""Of this process, and of how many. Not taken from the environment: a cluster's job may have set
WORLD_SIZE for processes of another kind."""


def take_place(rank: int, processes: int) -> None:
    """Say which of how many this process is, to this project and to PyTorch."""
    _place[:] = rank, processes
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}


def rank() -> int:
    """Number of this process; 0 where one trains alone."""
    return _place[0]


def world() -> int:
    """How many processes train together."""
    return _place[1]


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world() > 1:
        distributed.barrier()


def outline(model: Any) -> Any:
    """A copy of a model whose parameters hold no numbers yet; tied ones stay tied."""
    empty = {
        id(parameter): torch.nn.Parameter(
            torch.empty_like(parameter, device="meta"), parameter.requires_grad
        )
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, empty)


def through(wrapper: Any, function: Callable[..., T], *args: Any) -> T:
    """`function(model, *args)`, called as the forward pass of the wrapper around the model.

    What shares gradients or shards weights (DDP, FSDP) prepares itself in the forward pass of its
    wrapper, and a loss that asks for the model's parts would pass it by. The means is Lightning's
    forward redirection: for one call, the model's own forward is the function.
    """
    if world() == 1:
        return function(wrapper, *args)
    model = getattr(wrapper, "module", wrapper)
    own = model.forward

    def redirected(*inner: Any) -> T:
        model.forward = own
        return function(model, *inner)

    model.forward = redirected
    found: T = wrapper(*args)
    return found
