"""Memory and time of the rows of sources, by their number: read, encoded, written, trained on.

    python benchmarks/data_memory.py --output benchmarks/results/data_memory.md

Each number of rows is measured in a process of its own, which reports its largest resident memory
before the rows (libraries and tokenizer) and behind each part, and how much of its memory is
anonymous at the end: the rest are pages of files, which the system may drop. Rows are chats of one
exchange, 46 to 125 tokens, or ids (`--ids`), which take less time. The trainer takes a few steps of
phi-nano, in the order in which it would take them all.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES = (10_000, 100_000, 1_000_000)
NAMES = ("Ann", "Ben", "Cara", "Dan", "Ella", "Finn", "Grace")
STEPS = 4
PARTS = ("read", "encoded and written", f"{STEPS} steps trained")


def main() -> None:
    """Measure all sizes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--ids", action="store_true", help="rows of ids instead of chats")
    told = parser.parse_args()
    lines = [
        f"| rows | before | {' | '.join(PARTS)} | anonymous | seconds | tokens a row | file |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    spawned = multiprocessing.get_context("spawn")
    for size in told.sizes:
        with spawned.Pool(1) as pool:
            row = pool.apply(measured, (size, told.ids))
        lines.append(row)
        print(row, flush=True)
    text = f"{__doc__.splitlines()[0]}\n\n" + "\n".join(lines) + "\n"
    if told.output is not None:
        told.output.write_text(text, encoding="utf-8")
    print(text)


def measured(size: int, ids: bool) -> str:
    """One line of the table."""
    from align.mixture.encode import Encoder
    from align.mixture.sources import open_mixture
    from align.mixture.store import stored_rows
    from align.models.load import base_path, load_policy
    from align.pipeline.recipe import parse_recipe
    from align.pipeline.source_rows import chat_tokenizer
    from align.training.trl import mapped

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "rows.jsonl", size, ids)
        recipe = parse_recipe(
            {
                "name": "memory",
                "model": {"path": "builtin:phi-nano", "device": "cpu"},
                "task": {"kind": "word_problems"},
                "stages": [
                    {
                        "kind": "sft",
                        "sources": [{"path": str(folder / "rows.jsonl"), "name": "rows"}],
                        "max_length": 512,
                        "losses": {"lost_stop": 1.0},
                        "max_steps": STEPS,
                        "batch_size": 4,
                    }
                ],
            },
            "benchmark",
        )
        [entry] = recipe.stages
        config: Any = entry.settings
        policy = Path(base_path(recipe.model))
        tokenizer = chat_tokenizer(recipe, config, policy)
        memory, seconds = [peak()], [time.monotonic()]
        mixture = open_mixture(config, entry.name, "chats", 0)
        memory.append(peak())
        seconds.append(time.monotonic())
        encoder = Encoder(mixture, tokenizer, config.max_length)
        rows = stored_rows(folder, "key", entry.name, lambda: encoder)
        memory.append(peak())
        seconds.append(time.monotonic())
        trained(recipe, entry, policy, folder, mapped(rows.file), load_policy(policy, recipe.model))
        memory.append(peak())
        own, tokens = anonymous(), rows.total("tokens") / size
        spent = [round(b - a) for a, b in itertools.pairwise(seconds)]
        file = rows.file.stat().st_size / 2**20
        shown = " | ".join(f"{size_mb:,.0f} MiB" for size_mb in memory)
        assert rows.total("kept") == size
        form = "ids" if ids else "chats"
        return (
            f"| {size:,} {form} | {shown} | {own:,.0f} MiB | {' + '.join(map(str, spent))} "
            f"| {tokens:.0f} | {file:,.0f} MiB |"
        )


def trained(
    recipe: Any, entry: Any, policy: Path, folder: Path, rows: Any, loaded: tuple[Any, Any]
) -> None:
    """A few steps of the stage's trainer."""
    from align.context import StageContext
    from align.tasks.registry import build_task
    from align.training.chat_rows import prepare
    from align.training.trl import sft_trainer

    prepare(*loaded)
    context = StageContext(recipe, build_task(recipe.task), entry, policy, folder, progress=False)
    sft_trainer(context, entry.settings, *loaded, rows).train()


def write(path: Path, size: int, ids: bool) -> None:
    """Chats of one exchange, or 40 ids of which the last 15 are trained on."""
    with path.open("w", encoding="utf-8") as file:
        for k in range(size):
            who, n = NAMES[k % len(NAMES)], k % 89 + 2
            more = [n + j for j in range(1, 2 + k % 4)]
            says = " ".join(f"{who} buys {x} more, which makes {n + x}." for x in more)
            turns = [
                {"role": "user", "content": f"{who} has {n} apples. How many in the end?"},
                {"role": "assistant", "content": f"{says} The answer is {n + more[-1]}."},
            ]
            row = [(k + j) % 400 for j in range(40)]
            labels = [-100] * 25 + row[25:]
            told = {"input_ids": row, "labels": labels} if ids else {"messages": turns}
            file.write(json.dumps(told) + "\n")


def anonymous() -> float:
    """Memory of this process now that no file stands behind, in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024


def peak() -> float:
    """The largest resident memory of this process so far, in MiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
