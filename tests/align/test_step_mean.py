"""The loss of a step is the mean over its rows, however they are split into micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments
from trl import DPOConfig  # type: ignore[attr-defined]

from align.training.batches import StepMean
from align.training.token_dpo import TokenDPOTrainer, TokenRow
from align.training.trl import IdDPOTrainer, pair_rows
from tests.align import tiny

ROWS = 10


def arguments(folder: Path, size: int, number: int) -> dict[str, Any]:
    """One step of plain gradient descent on all rows, in `number` micro-batches."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": number,
        "max_steps": 1,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
    }


def token_trainer(folder: Path, size: int, number: int) -> TokenDPOTrainer:
    rows = [TokenRow((5 + k, 6, 7, 8), k + 1, k + 2, 1.0, 0.3 * k) for k in range(ROWS)]
    policy, args = tiny.model(64, seed=1), TrainingArguments(**arguments(folder, size, number))
    return TokenDPOTrainer(policy, args, rows, 1.0)


def full_trainer(folder: Path, size: int, number: int) -> IdDPOTrainer:
    made = tiny.tokenizer()
    pairs = [((5 + k, 6, 7), tuple(range(20, 22 + k)), (3 + k, 40, 41)) for k in range(ROWS)]
    args = DPOConfig(
        **arguments(folder, size, number), beta=1.0, max_length=None, precompute_ref_log_probs=True
    )
    return IdDPOTrainer(
        model=tiny.model(len(made), seed=1),
        args=args,
        train_dataset=pair_rows(pairs),
        processing_class=made,
    )


def step(trainer: Any) -> tuple[Tensor, float]:
    """How far one step moves the weights, and the loss that is logged."""
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    pairs = zip(before, trainer.model.parameters(), strict=True)
    moved = torch.cat([(old - new.detach()).flatten() for old, new in pairs])
    return moved, trainer.state.log_history[0]["loss"]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
@pytest.mark.parametrize("made", [token_trainer, full_trainer])
@pytest.mark.parametrize(("size", "number"), [(5, 2), (4, 3), (3, 4), (6, 2)])
def test_micro_batches_of_unlike_size_make_the_same_step(
    made: Any, size: int, number: int, tmp_path: Path
) -> None:
    whole, loss = step(made(tmp_path, ROWS, 1))
    parts, found = step(made(tmp_path, size, number))
    assert float((whole - parts).norm() / whole.norm()) < 1e-4
    assert found == pytest.approx(loss, abs=1e-5)


class Counted(StepMean, Trainer):
    """Batches are lists of rows."""

    def __init__(self, num_processes: int = 1) -> None:
        self.accelerator = self
        self.num_processes = num_processes

    def _get_num_items_in_batch(self, *args: Any) -> None:
        return None

    def rows_of(self, batch: Any) -> int:
        return len(batch)

    def gather(self, told: Tensor) -> Tensor:
        """Another process has two micro-batches too, with a row less in each."""
        return torch.cat([told, told - torch.tensor([[0, 2]])])


def fetched(*batches: list[int], processes: int = 1) -> Counted:
    trainer = Counted(processes)
    trainer.get_batch_samples(iter(batches), len(batches), torch.device("cpu"))
    return trainer


def test_a_loss_is_left_alone_where_all_micro_batches_have_as_many_rows() -> None:
    loss = torch.tensor(0.7)
    assert fetched([1, 2], [3, 4], [5, 6]).of_step(loss, [1, 2]) is loss  # type: ignore[arg-type]
    assert Counted().of_step(loss, [1]) is loss  # type: ignore[arg-type]  # outside of a training


def test_the_rows_of_all_processes_count() -> None:
    trainer = fetched([1, 2, 3], [4, 5, 6], processes=2)
    # 6 rows here and 4 there, in 4 micro-batches: one of 3 rows has 3/10 of the step, not 1/4.
    found = trainer.of_step(torch.tensor(1.0), [1, 2, 3])  # type: ignore[arg-type]
    assert float(found) == pytest.approx(4 * 3 / 10)
