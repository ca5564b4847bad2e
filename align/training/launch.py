"""Training in several processes, one a device: what `launch:` of a recipe asks for.

    return launched(train, context, rows)

calls `train(context, policy, tokenizer, rows)` here, or in as many processes as the recipe says.
What must be sampled or measured before the first step is done before, in this process alone; the
data go to the processes as they are. Each process makes its share of a step's forward passes, so
that a step has the same rows as in one process. Rank 0 writes the metrics, the checkpoints and the
policy. When a process dies, the others are stopped; the same command continues from the last
checkpoint.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import (
    ProcessExitedException,
    ProcessRaisedException,
    spawn,
)

from align.context import StageContext, StageResult
from align.errors import StageError
from align.training import record
from align.training.loop import load_trainable
from align.training.ranks import take_place
from pts.errors import PTSError

Train = Callable[..., StageResult]
"""`train(context, policy, tokenizer, *data)`; a function of a module, and data that can be sent to
another process."""

_FAULT = "fault.txt"


def launched(
    train: Train, context: StageContext, *data: Any, loaded: tuple[Any, Any] | None = None
) -> StageResult:
    """Train here, with the policy and tokenizer that are `loaded` already if there are such; or in
    the recipe's processes, each of which loads its own.

    Raises:
        StageError: a process failed, with its own message, or was killed.
    """
    processes = context.recipe.launch.processes
    if processes == 1:
        model = context.recipe.model
        loaded = loaded or load_trainable(context.policy, model, context.settings)
        return train(context, *loaded, *data)
    if loaded and torch.cuda.is_available():  # room for the processes
        loaded[0].to("cpu")
        torch.cuda.empty_cache()
    (context.folder / _FAULT).unlink(missing_ok=True)
    sent = replace(context, task=None)  # type: ignore[arg-type]  # built anew where it is needed
    try:
        spawn(_work, (train, sent, _free_port(), data), nprocs=processes)  # type: ignore[no-untyped-call]
    except ProcessExitedException as error:
        how = f"killed by {error.signal_name}" if error.signal_name else f"exit {error.exit_code}"
        raise StageError(
            f"{context.entry.name}: process {error.error_index} of {processes} that trained is "
            f"gone ({how}); the others were stopped. The same command continues from the last "
            "checkpoint"
        ) from None
    except ProcessRaisedException as error:
        told = context.folder / _FAULT
        if told.exists():
            raise StageError(told.read_text(encoding="utf-8")) from None
        raise StageError(
            f"{context.entry.name}: process {error.error_index} of {processes} failed:\n{error}"
        ) from None
    result = record.finished(context)
    assert result is not None
    return result


def _work(rank: int, train: Train, context: StageContext, port: int, data: tuple[Any, ...]) -> None:
    """One process of the training."""
    launch = context.recipe.launch
    take_place(rank, launch.processes)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    threads = max(1, torch.get_num_threads() // launch.processes)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # else accelerate warns, and sets another number
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    assert context.build_task is not None
    context = replace(context, task=context.build_task(context.recipe.task))
    model = context.recipe.model
    if launch.strategy != "ddp":  # a whole policy need not fit on one device
        model = model.model_copy(update={"device": "cpu"})
    try:
        loaded = load_trainable(context.policy, model, context.settings)
        train(replace(context, progress=context.progress and rank == 0), *loaded, *data)
    except PTSError as error:
        _tell(context.folder / _FAULT, str(error))
        raise


def _tell(file: Path, message: str) -> None:
    """The first fault is the one that is shown."""
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(message)
    except FileExistsError:
        pass


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
