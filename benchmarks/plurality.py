"""Does the plurality filter choose better rows for SFT than chance does?

    python benchmarks/plurality.py --seeds 0-2 --output runs/plurality

phi-nano learns to chat on a few demonstrations; the policy answers questions of word problems, and
`align synthesize` keeps those that are neither too easy nor ambiguous, with the commonest answer as
label (no reference is looked at). Two policies go on from the first: SFT on the kept questions,
each with the policy's first answer that agrees with the label; and SFT on as many rows drawn evenly
from all finished answers to all questions. Both are measured on the same problems. The same command
goes on after a kill.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from align.data.conversations import read_conversations
from align.evaluation.records import Evaluation, read_evaluation
from align.evaluation.statistics import combine_seeds, mean_interval
from align.evaluation.tables import paired_values
from align.judging.backends import open_source
from align.judging.chat_answers import chat_answers
from align.judging.journal import CallJournal
from align.pipeline.recipe import Recipe, parse_recipe
from align.pipeline.run import run
from align.sweep.settings import parse_seeds
from align.synthesis.run import CALLS, synthesize
from align.synthesis.settings import SynthesisConfig
from align.tasks.registry import build_task
from pts.types import Problem, Verdict

RESULTS = Path(__file__).parent / "results" / "plurality.json"
QUESTIONS, SAMPLES = 300, 6
ANSWER = r"exact:The answer is (-?\d+)\."
ARMS = ("kept", "unfiltered")


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--output", type=Path, default=Path("runs/plurality"))
    options = parser.parse_args()
    seeds = parse_seeds(options.seeds)
    folders = {seed: options.output / f"seed{seed}" for seed in seeds}
    found = {seed: of_seed(seed, folder) for seed, folder in folders.items()}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found, folders))


def asked_of(problem: Problem) -> str:
    """What a problem's last message says."""
    prompt = problem.prompt
    return prompt if isinstance(prompt, str) else prompt[-1].content


def of_seed(seed: int, folder: Path) -> Mapping[str, Any]:
    """Fates of the questions, shares of right labels and rows, accuracies by policy."""
    folder.mkdir(parents=True, exist_ok=True)
    start = recipe_of(seed, "start")
    run(start, folder / "start", Console(quiet=True), progress=False, parallel=False)
    task = build_task(start.task)
    problems = task.problems("train", QUESTIONS, 10_000 + seed)
    source = folder / "questions.jsonl"
    asked = [{"prompt": [{"role": "user", "content": asked_of(p)}]} for p in problems]
    write(source, asked)
    model = folder / "start" / "sft" / "model"
    config = SynthesisConfig(
        step="plurality", engine=f"transformers:{model}", samples=SAMPLES,
        temperature=0.7, max_tokens=140, answer=ANSWER,
    )  # fmt: skip
    made = synthesize([str(source)], folder / "made", config)
    kept = [json.loads(line) for line in (folder / "made" / "sft.jsonl").open(encoding="utf-8")]
    by_text = {asked_of(problem): problem for problem in problems}
    everything = finished(source, config, folder / "made" / CALLS)
    rows = {
        "kept": kept,
        "unfiltered": random.Random(f"plurality {seed}").sample(everything, len(kept)),
    }
    result: dict[str, Any] = {"fates": made.fates, "rows": len(kept), "took": made.took}
    for arm, its in rows.items():
        write(folder / f"{arm}.jsonl", its)
        right = [
            task.verifier(by_text[r["messages"][0]["content"]], r["messages"][-1]["content"])
            for r in its
        ]
        result[f"{arm}: right"] = sum(one.verdict is Verdict.PASS for one in right) / len(its)
        recipe = recipe_of(seed, arm, str(model), str(folder / f"{arm}.jsonl"))
        run(recipe, folder / arm, Console(quiet=True), progress=False, parallel=False)
    for arm in ("start", *ARMS):
        result[f"{arm}: accuracy"] = evaluation(folder, arm).summary.sampled.mean
    return result


def evaluation(folder: Path, arm: str) -> Evaluation:
    """Of a policy, by its name."""
    return read_evaluation(folder / arm / "eval" / "sft")


def finished(source: Path, config: SynthesisConfig, calls: Path) -> list[dict[str, Any]]:
    """All answers of the journal that ended by themselves, as rows."""
    asked = read_conversations(str(source), config.column)
    backend = open_source(config, config.sampling)
    with closing(backend), CallJournal(calls) as journal:
        problems = [Problem(row.digest, row.messages, "") for row in asked]
        found = chat_answers(backend, journal, problems, config.samples)
    return [
        {"messages": [{"role": "user", "content": row.text},
                      {"role": "assistant", "content": one.text}]}
        for row, said in zip(asked, found, strict=True)
        for one in said
        if one.end == "stop" and one.text.strip()
    ]  # fmt: skip


def recipe_of(seed: int, arm: str, model: str = "builtin:phi-nano", source: str = "") -> Recipe:
    """SFT on demonstrations, or on the rows of an arm."""
    first = {"num_examples": 1200, "learning_rate": 1e-3}
    again = {"sources": [{"path": source}], "learning_rate": 3e-4, "epochs": 2}
    return parse_recipe(
        {
            "name": f"plurality-{arm}",
            "seed": seed,
            "model": {"path": model, "chat_template": "keep" if source else "chatml"},
            "task": {"kind": "word_problems", "options": {"difficulty": "hard"}},
            "sampling": {"temperature": 0.7, "max_new_tokens": 140},
            "stages": ["sft"],
            "sft": {"batch_size": 4, "gradient_accumulation": 4, **(again if source else first)},
            "evaluate": {"problems": 300, "samples": 2, "split": "dev", "skip": ["base"]},
        },
        "plurality",
    )


def table(found: Mapping[int, Mapping[str, Any]], folders: Mapping[int, Path]) -> str:
    """Means over the seeds with Student's intervals; the difference, paired by problem."""
    results = list(found.values())
    lines = [f"rows: {', '.join(str(one['rows']) for one in results)} of {QUESTIONS} questions",
             "| policy | right rows | accuracy |", "|---|---|---|"]  # fmt: skip
    for arm in ("start", *ARMS):
        right = "" if arm == "start" else interval([one[f"{arm}: right"] for one in results])
        lines.append(
            f"| {arm} | {right} | {interval([one[f'{arm}: accuracy'] for one in results])} |"
        )
    evaluations = [evaluation(f, arm) for f in folders.values() for arm in reversed(ARMS)]
    values = paired_values(evaluations, "sampled")
    said = combine_seeds(values[::2], values[1::2])
    chosen = said.by_item_and_seed or said.by_item
    told = chosen.difference
    lines.append(
        f"\nkept - unfiltered: {100 * told.mean:+.1f} points [{100 * told.low:+.1f}, "
        f"{100 * told.high:+.1f}], p = {chosen.pvalue:.3f}; by seed "
        f"{', '.join(f'{100 * one:+.1f}' for one in said.per_seed)}"
    )
    return "\n".join(lines)


def interval(values: Sequence[float]) -> str:
    """Mean and interval in %."""
    if len(values) < 2:
        return f"{100 * values[0]:.1f}"
    one = mean_interval(values)
    return f"{100 * one.mean:.1f} [{100 * one.low:.1f}, {100 * one.high:.1f}]"


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """As JSONL."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
