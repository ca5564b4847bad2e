"""The two trainers that come from TRL, fed with token ids: SFT and full-length DPO.

TRL tokenises text itself and changes it on the way (it appends an end-of-text token to
preference pairs and closes open turns). Here rows are ids from the start, so that what was
sampled is what is trained, and every row that enters is used: nothing is cut or filtered.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as compute
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from align.context import StageContext, StageResult
from align.data.chat import ChatIds
from align.settings import ChatTrainingConfig, TrainingConfig
from align.training import loop as training
from align.training.batches import StepMean, StepSampler
from align.training.packing import IGNORED, PackedCollator, check_packing
from align.training.quantized import hold_adapter_in_float32, in_4bit
from pts.types import Ids

# TRL asks a property that transformers has renamed; nobody who runs a recipe can mend that.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
warnings.filterwarnings("ignore", "`use_liger_kernel=True` is deprecated", FutureWarning)

PAIR_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")


class IdSFTTrainer(SFTTrainer):
    """TRL's SFT trainer on ids, able to train single rows of the head under LoRA."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        policy: Any = self.model
        _show_bias(policy.get_output_embeddings())
        hold_adapter_in_float32(policy)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: the run's report tells what was trained."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Leave out TRL's count of tokens, which begins anew in a run that is continued, and does
        not know packed rows."""
        self._metrics["train"].pop("num_tokens", None)
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Any = train_dataset if train_dataset is not None else self.train_dataset
        return step_sampler(lengths_of(rows, "input_ids").tolist(), self.args)


def mapped(file: Path) -> Dataset:
    """Rows of an Arrow stream, read from the disk when they are asked for."""
    return Dataset.from_file(str(file))


def lengths_of(rows: Dataset, column: str) -> npt.NDArray[np.int64]:
    """Tokens of each row of a column of ids; the ids themselves are not read."""
    return np.asarray(compute.list_value_length(rows.data.column(column)), np.int64)


def step_sampler(lengths: Sequence[int], args: TrainingArguments) -> StepSampler:
    """Rows of like length share a micro-batch of their step."""
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    return StepSampler(lengths, rows, args.seed)


def _show_bias(head: Any) -> None:
    """TRL's fused head reads `weight` and `bias`; PEFT's wrapper of token rows shows only one."""
    if not hasattr(head, "bias"):
        object.__setattr__(head, "bias", head.token_adapter.base_layer.bias)


def sft_trainer(
    context: StageContext,
    config: ChatTrainingConfig,
    policy: Any,
    tokenizer: Any,
    rows: Sequence[ChatIds] | Dataset,
    new_tokens: Sequence[int] = (),
) -> SFTTrainer:
    """SFT on the tokens under the mask.

    The loss is the mean over the masked tokens of an optimiser step. Steps are random draws from
    the data, not sorted by length, so short answers get no more weight than their tokens have.

    Raises:
        StageError: rows are to be packed, and the model does not keep them apart.
    """
    args = training.arguments(
        context,
        config,
        "sft",
        policy,
        SFTConfig,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    if not isinstance(rows, Dataset):
        ids, targets = [list(row.ids) for row in rows], [labels(row) for row in rows]
        rows = Dataset.from_dict({"input_ids": ids, "labels": targets})
    collator = None
    if config.packing:
        flash = config.attn_implementation == "flash_attention_2"
        collator = PackedCollator(tokenizer.pad_token_id, whole=flash)
        check_packing(policy, collator, rows[0]["input_ids"])
    return IdSFTTrainer(
        model=policy,
        args=args,
        train_dataset=rows,
        data_collator=collator,
        processing_class=tokenizer,
        peft_config=training.adapter(config.lora, policy, new_tokens),
    )


def train_sft(
    context: StageContext,
    config: ChatTrainingConfig,
    policy: Any,
    tokenizer: Any,
    rows: Sequence[ChatIds] | Dataset,
    metrics: Mapping[str, Any],
    new_tokens: Sequence[int] = (),
) -> StageResult:
    """Train on rows that were validated and save the policy; `metrics` counted them."""
    trainer = sft_trainer(context, config, policy, tokenizer, rows, new_tokens)
    fitted = training.fit(trainer, context, tokenizer, metrics["assistant_tokens"])
    return training.finish(context, trainer.model, tokenizer, {**metrics, **fitted})


def labels(row: ChatIds) -> list[int]:
    """The ids, with `IGNORED` where the mask is 0."""
    return [token if flag else IGNORED for token, flag in zip(row.ids, row.mask, strict=True)]


def pair_rows(pairs: Sequence[tuple[Ids, Ids, Ids]], stored: Path | None = None) -> Dataset:
    """Pairs at hand, before those of an Arrow stream if there is one."""
    columns = {name: [list(pair[k]) for pair in pairs] for k, name in enumerate(PAIR_COLUMNS)}
    if stored is None:
        return Dataset.from_dict(columns)
    rows = mapped(stored)
    if not pairs:
        return rows
    return concatenate_datasets([Dataset.from_dict(columns, features=rows.features), rows])


class IdDPOTrainer(StepMean, DPOTrainer):
    """TRL's DPO trainer on rows of `prompt_ids`, `chosen_ids` and `rejected_ids`.

    Nothing is appended to the ids and nothing is cut. Reference log-probabilities are computed
    once from the weights at hand, and kept in memory instead of a cache on disk. The loss is the
    mean over the pairs of an optimiser step.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        hold_adapter_in_float32(self.model)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: the run's report tells what was trained."""

    def rows_of(self, batch: dict[str, Tensor]) -> int:
        """Pairs of a micro-batch: rows of their chosen sides, then of the rejected ones."""
        return len(batch["input_ids"]) // 2

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, with the micro-batch's share in the step."""
        found = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[no-untyped-call]
        return self.of_step(found, inputs) if isinstance(found, Tensor) else found

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Any = train_dataset if train_dataset is not None else self.train_dataset
        prompt, chosen, rejected = (lengths_of(rows, name) for name in PAIR_COLUMNS)
        return step_sampler((prompt + np.maximum(chosen, rejected)).tolist(), self.args)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        if {*REFERENCE_COLUMNS} <= {*dataset.column_names}:
            return dataset
        model: Any = self.ref_model or self.model
        model.eval()
        columns: dict[str, list[float]] = {name: [] for name in REFERENCE_COLUMNS}
        for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=self.data_collator):
            moved = {key: value.to(self.accelerator.device) for key, value in batch.items()}
            pair = self.compute_ref_log_probs(model, moved)  # type: ignore[no-untyped-call]
            for column, logps in zip(columns.values(), pair, strict=True):
                column.extend(logps.float().tolist())
        for key, values in columns.items():
            dataset = dataset.add_column(key, values)
        return dataset


def dpo_trainer(
    context: StageContext,
    config: TrainingConfig,
    beta: float,
    nll_weight: float,
    policy: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[Ids, Ids, Ids]] | Dataset,
    reference: Any = None,
) -> DPOTrainer:
    """DPO on (prompt, chosen, rejected) ids; pairs that do not carry the reference's
    log-probabilities get those of `reference`, or of `policy` as it is now."""
    training.switch_off_dropout(policy)
    args = training.arguments(
        context,
        config,
        "full_dpo",
        policy,
        DPOConfig,
        beta=beta,
        loss_type=["sigmoid", "sft"] if nll_weight else ["sigmoid"],
        loss_weights=[1.0, nll_weight] if nll_weight else None,
        max_length=None,
        precompute_ref_log_probs=True,
    )
    return IdDPOTrainer(
        model=policy,
        ref_model=reference,
        args=args,
        train_dataset=pairs if isinstance(pairs, Dataset) else pair_rows(pairs),
        processing_class=tokenizer,
        peft_config=training.adapter(config.lora, policy),
    )


def with_reference(
    context: StageContext,
    config: Any,
    policy: Any,
    tokenizer: Any,
    pairs: Dataset,
    reference: Any = None,
) -> Dataset:
    """Pairs with the log-probabilities of both sides under `reference`, or under `policy` as it is
    now; nothing is trained."""
    if in_4bit(policy):  # TRL takes no such model without an adapter; a fresh one changes nothing
        asked = policy if reference is None else reference
        trainer = dpo_trainer(context, config, config.beta, 0.0, asked, tokenizer, pairs)
        adapted: Any = trainer.model
        adapted.unload()
    else:
        whole = config.model_copy(update={"lora": None})
        trainer = dpo_trainer(context, whole, config.beta, 0.0, policy, tokenizer, pairs, reference)
    found: Dataset = trainer.train_dataset
    return found
