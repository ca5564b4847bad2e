"""CPU-seconds of phi-nano's SFT with padded and with packed rows.

    python benchmarks/packing.py

The same rows in the same steps, on one core; the two ways take turns, and the ratio is that of the
medians. Writes results/packing.json and .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback

from align.context import StageContext, StageEntry
from align.models.load import load_policy, prepare_base
from align.pipeline.recipe import load_recipe
from align.tasks.registry import build_task
from align.training.chat_rows import prepare, validate
from align.training.trl import sft_trainer

RESULTS = Path(__file__).parent / "results"
BATCHES = ((4, 4), (8, 2), (16, 1))
"""batch_size and gradient_accumulation; the first is the recipe's."""


def main() -> None:
    """Train by turns and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for batch_size, accumulation in BATCHES:
        runs: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for _ in range(options.turns):
            for packing in (False, True):
                runs[packing].append(trained(options.examples, batch_size, accumulation, packing))
        padded, packed = (runs[packing][0] for packing in (False, True))
        seconds = {p: statistics.median(run["seconds"] for run in runs[p]) for p in runs}
        rows.append(
            {
                "batch_size": batch_size,
                "gradient_accumulation": accumulation,
                "examples": options.examples,
                "tokens": padded["tokens"],
                "passed_padded": padded["passed"],
                "passed_packed": packed["passed"],
                "seconds_padded": [round(run["seconds"], 2) for run in runs[False]],
                "seconds_packed": [round(run["seconds"], 2) for run in runs[True]],
                "ratio": round(seconds[True] / seconds[False], 3),
                "largest_difference_of_a_loss": max(
                    abs(a - b) for a, b in zip(padded["losses"], packed["losses"], strict=True)
                ),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    (RESULTS / "packing.json").write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "packing.md").write_text(table(rows))


def trained(examples: int, batch_size: int, accumulation: int, packing: bool) -> dict[str, Any]:
    """CPU-seconds of an epoch, the tokens that went through the model, and the losses."""
    recipe = load_recipe(
        "phi-nano",
        [
            "model.device=cpu", f"sft.num_examples={examples}", f"sft.batch_size={batch_size}",
            f"sft.gradient_accumulation={accumulation}", f"sft.packing={packing}",
        ],
    )  # fmt: skip
    config = recipe.settings("sft")
    task, base = build_task(recipe.task), prepare_base(recipe.model)
    policy, tokenizer = load_policy(base, recipe.model)
    new_tokens = prepare(policy, tokenizer)
    chats = task.demonstrations(examples, 0)
    rows = validate(tokenizer, chats, config.max_length).rows
    with tempfile.TemporaryDirectory() as folder:
        entry = StageEntry("sft", "sft", config)
        context = StageContext(recipe, task, entry, base, Path(folder), progress=False)
        trainer = sft_trainer(context, config, policy, tokenizer, rows, new_tokens)
        trainer.remove_callback(PrinterCallback)
        collate, passed = trainer.data_collator, []

        def counting(batch: Any) -> Any:
            made = collate(batch)
            passed.append(made["input_ids"].numel())
            return made

        trainer.data_collator = counting
        began = time.process_time()
        trainer.train()
        seconds = time.process_time() - began
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = sum(len(row.ids) for row in rows)
    return {"seconds": seconds, "passed": sum(passed), "tokens": tokens, "losses": losses}


def table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "# Packed rows against padded ones: phi-nano's SFT on one core",
        "",
        f"`python benchmarks/packing.py`: {rows[0]['examples']} demonstrations with "
        f"{rows[0]['tokens']:,} tokens, one epoch; steps of 16 rows.",
        "",
        "| batch_size x accumulation | tokens passed, padded | packed | CPU-seconds, padded "
        "| packed | ratio of medians | largest difference of a step's loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = (", ".join(map(str, row[f"seconds_{how}"])) for how in ("padded", "packed"))
        lines.append(
            f"| {row['batch_size']} x {row['gradient_accumulation']} | {row['passed_padded']:,} | "
            f"{row['passed_packed']:,} | {' | '.join(times)} | {row['ratio']:.2f} | "
            f"{row['largest_difference_of_a_loss']:.1g} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
