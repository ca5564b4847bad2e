"""What a step of token DPO costs beside TRL's DPOTrainer on the same ids, and what our wrapping of
TRL's own trainers costs.

    python benchmarks/token_dpo.py runs/phi-nano-seed0
    python benchmarks/token_dpo.py runs/phi-nano-seed0 --models smollm2-shape --batch 8 --repeats 1

Prompts are those of a search's pairs: one pair a path (a question), or four places on the longest
prompt of a question. `phi-nano` is the run's SFT model, `smollm2-shape` a Llama of the shape of
SmolLM2-135M with random weights (speed does not depend on their values). TRL is measured with its
reference computed in each step, and beforehand; ours has it beforehand always. `sft` and `full_dpo`
train on the search's right answers, with our trainers and with bare TRL.

Everything is one process a cell, forked after all imports, on one thread. Cells take turns,
`--repeats` times; CPU-seconds are those between the ends of the first and of the last step, medians
over the repeats; memory is the growth of the peak over what was resident before the trainer.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from align.context import StageContext, StageEntry
from align.data.chat import ChatIds
from align.data.rollouts import right_answers_of
from align.pipeline.recipe import load_recipe
from align.tasks.registry import build_task
from align.training import trl as own_trl
from align.training.token_dpo import TokenDPOTrainer, TokenRow, all_margins
from pts.data.pairs import read_pairs
from pts.types import Ids

RESULTS = Path(__file__).parent / "results"
TOKEN_METHODS = ("ours", "TRL, reference online", "TRL, reference beforehand")
WRAPPED = ("sft", "full_dpo")
PER_PATH = 4


def main() -> None:
    """Measure the cells in turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run of phi-nano, with sft/ and pts/")
    parser.add_argument(
        "--models", nargs="*", default=["phi-nano", "smollm2-shape", *WRAPPED],
        choices=["phi-nano", "smollm2-shape", *WRAPPED],
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=4, help="the first one warms up")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / "token_dpo.json"
    stored: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    cells = [cell for model in options.models for cell in _cells(model)]
    taken: dict[str, list[tuple[float, float]]] = {cell: [] for cell in cells}
    for _ in range(options.repeats):
        for cell in cells:
            taken[cell].append(_forked(cell, options))
            print(cell, *(f"{value:.3f}" for value in taken[cell][-1]), flush=True)
            seconds, mib = (statistics.median(column) for column in zip(*taken[cell], strict=True))
            stored[cell] = {
                "cpu_seconds": seconds, "peak_mib": mib, "rows": options.batch,
                "repeats": len(taken[cell]), "steps": options.steps - 1,
            }  # fmt: skip
            file.write_text(json.dumps(stored, indent=1) + "\n")
            (RESULTS / "token_dpo.md").write_text(page(stored), encoding="utf-8")


def _cells(model: str) -> list[str]:
    if model in WRAPPED:
        return [f"{model}|ours", f"{model}|bare TRL"]
    return [f"{model}|{n}|{method}" for n in (1, PER_PATH) for method in TOKEN_METHODS]


def _forked(cell: str, options: argparse.Namespace) -> tuple[float, float]:
    """CPU-seconds a step and peak MiB of a cell, from a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_measure, (cell, options))


class Clock(TrainerCallback):
    """CPU time at the end of each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Note it."""
        self.ends.append(time.process_time())


def _measure(cell: str, options: argparse.Namespace) -> tuple[float, float]:
    torch.manual_seed(0)
    model, *rest = cell.split("|")
    policy, tokenizer = _model(options.run, model)
    count = options.batch * options.steps
    with tempfile.TemporaryDirectory() as folder:
        build: Callable[[], Any]
        if model in WRAPPED:
            answers = (right_answers_of(options.run / "pts", ["filter"]) * count)[:count]
            build = _wrapped(model, rest[0], policy, tokenizer, answers, Path(folder), options)
        else:
            rows = token_rows(options.run, int(rest[0]), options.batch, count)
            build = _token(rest[1], policy, tokenizer, rows, Path(folder), options)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        trainer, clock = build(), Clock()
        trainer.add_callback(clock)
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1), peak / 1024


def _model(run: Path, name: str) -> tuple[Any, Any]:
    from align.models.load import load_policy

    policy, tokenizer = load_policy(run / "sft" / "model", load_recipe("phi-nano").model)
    if name != "smollm2-shape":
        return policy, tokenizer
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer


def token_rows(run: Path, per_path: int, batch: int, count: int) -> list[TokenRow]:
    """Rows in the order of the steps; each step has `batch` / `per_path` paths of its own."""
    of_question: dict[str, list[Any]] = {}
    for pair in read_pairs(run / "pts" / "pairs.jsonl"):
        of_question.setdefault(pair.problem_id, []).append(pair)
    groups = list(of_question.values())
    rows: list[TokenRow] = []
    for k in range(count // per_path):
        group = groups[k % len(groups)]
        pair = (
            max(group, key=lambda p: len(p.prompt_ids)) if per_path > 1 else group[k % len(group)]
        )
        last = len(pair.prompt_ids)
        rows += [
            TokenRow(pair.prompt_ids[: last - 4 * back], pair.chosen, pair.rejected)
            for back in range(per_path)
        ]
    return rows


def _common(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "per_device_train_batch_size": options.batch,
        "max_steps": options.steps, "use_cpu": True, "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", "learning_rate": 1e-5,
    }  # fmt: skip


class InOrder:
    """Trainers that take rows as they come, so that all see the same steps."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = train_dataset if train_dataset is not None else self.train_dataset  # type: ignore[attr-defined]
        return torch.utils.data.SequentialSampler(rows)


class OwnTrainer(InOrder, TokenDPOTrainer):
    """Ours."""


class TRLTrainer(InOrder, DPOTrainer):
    """TRL's on ids."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class BareSFT(SFTTrainer):
    """TRL's on ids."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def _token(
    method: str, policy: Any, tokenizer: Any, rows: Sequence[TokenRow], folder: Path,
    options: argparse.Namespace,
) -> Callable[[], Any]:  # fmt: skip
    def ours() -> Any:
        known = all_margins(policy, rows, options.batch)
        asked = [
            TokenRow(row.prompt, row.chosen, row.rejected, 1.0, margin)
            for row, margin in zip(rows, known, strict=True)
        ]
        args = TrainingArguments(**_common(folder, options), logging_steps=1)
        return OwnTrainer(policy, args, asked, 1.0)

    def trl() -> Any:
        args = DPOConfig(
            **_common(folder, options), beta=1.0, max_length=None, bf16=False,
            gradient_checkpointing=False, precompute_ref_log_probs="beforehand" in method,
        )  # fmt: skip
        data = _preferences([(row.prompt, (row.chosen,), (row.rejected,)) for row in rows])
        return TRLTrainer(
            policy, copy.deepcopy(policy), args, train_dataset=data, processing_class=tokenizer
        )

    return ours if method == "ours" else trl


def _preferences(rows: Sequence[tuple[Ids, Ids, Ids]]) -> Dataset:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return Dataset.from_dict({n: [list(row[k]) for row in rows] for k, n in enumerate(names)})


def _wrapped(
    kind: str, method: str, policy: Any, tokenizer: Any, answers: Sequence[ChatIds], folder: Path,
    options: argparse.Namespace,
) -> Callable[[], Any]:  # fmt: skip
    recipe = load_recipe("phi-nano")
    changes = {
        "batch_size": options.batch, "gradient_accumulation": 1, "max_steps": options.steps,
        "learning_rate": 1e-5, "save_steps": 10**6,
    }  # fmt: skip
    config = recipe.settings(kind).model_copy(update=changes)
    context = StageContext(
        recipe, build_task(recipe.task), StageEntry(kind, kind, config), folder, folder
    )
    bare = _common(folder, options) | {
        "max_length": None, "bf16": False, "gradient_checkpointing": False, "logging_steps": 10,
    }  # fmt: skip
    start = [row.mask.index(1) for row in answers]
    prompts = [row.ids[:cut] for row, cut in zip(answers, start, strict=True)]
    told = [row.ids[cut:] for row, cut in zip(answers, start, strict=True)]
    pairs = list(zip(prompts, told, [*told[1:], told[0]], strict=True))

    def sft() -> Any:
        if method == "ours":
            return own_trl.sft_trainer(context, config, policy, tokenizer, answers)
        data = {
            "input_ids": [list(row.ids) for row in answers],
            "labels": [own_trl.labels(row) for row in answers],
        }
        return BareSFT(
            policy, SFTConfig(**bare), train_dataset=Dataset.from_dict(data),
            processing_class=tokenizer,
        )  # fmt: skip

    def full_dpo() -> Any:
        if method == "ours":
            return own_trl.dpo_trainer(context, config, 1.0, 0.0, policy, tokenizer, pairs)
        args = DPOConfig(**bare, beta=1.0, precompute_ref_log_probs=True)
        return TRLTrainer(
            policy, copy.deepcopy(policy), args, train_dataset=_preferences(pairs),
            processing_class=tokenizer,
        )  # fmt: skip

    return sft if kind == "sft" else full_dpo


def page(stored: dict[str, Any]) -> str:
    """The table in Markdown; ratios are against ours."""
    lines = [
        "# What a training step costs",
        "",
        "`python benchmarks/token_dpo.py`: one CPU thread, the same ids in the same steps;",
        "CPU-seconds a step and growth of the peak memory, as multiples of ours in brackets.",
        "",
        "| model | pairs a path | trainer | rows | CPU-s a step | peak MiB | repeats x steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell, found in stored.items():
        model, *more, method = cell.split("|")
        own = stored["|".join([model, *more, "ours"])]
        seconds, mib = (
            f"{found[key]:.{digits}f} ({found[key] / own[key]:.2f})"
            for key, digits in (("cpu_seconds", 3), ("peak_mib", 0))
        )
        lines.append(
            f"| {model} | {more[0] if more else ''} | {method} | {found['rows']} | {seconds} | "
            f"{mib} | {found['repeats']} x {found['steps']} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
