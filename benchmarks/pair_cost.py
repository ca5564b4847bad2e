"""What a confirmed pair costs, before and after: the same policy, the same questions, two versions.

    git worktree add ../before 30f5e2b
    python benchmarks/pair_cost.py NAME POLICY --before ../before --questions 300

Both versions search in processes of their own, by the settings of the demo (p_gap, indifference
margin, criteria, max_pairs and max_rollouts the same). Only the confirmation differs, as the
versions do: 24 rollouts a side before, up to 128 in looks after; a third row lets the search give
up tokens that are unlikely to be pivotal. Every pair is then measured by brute force, with --truth
fresh rollouts on either side. It is true if the measured gap reaches p_gap less the indifference
margin. Recall is the share, of all true pairs that either version has
confirmed, one a prefix, by their true gap. Writes results/pair_cost.json and .md; an interrupted
run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from search_real import rates

import pts
from align.pipeline.recipe import load_recipe
from align.tasks.registry import build_task
from pts.runtime.journal import Journal
from pts.runtime.progress import ProgressReporter
from pts.runtime.scheduler import run
from pts.stats import wilson
from pts.types import Ids, Problem

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
SETTINGS = ("max_rollouts=400", "z=1.96", "max_pairs=3", "criteria=[path,fork]")
COMMAND = """
try:
    from pts.cli.main import main
except ImportError:
    from pts.cli import main
main()
"""
"""The command `pts` of either version."""
VERSIONS = {
    "before": ["confirm_rollouts=24"],
    "after": [],
    "after, stop_below=0.3": ["stop_below=0.3"],
}
"""With the settings that only they have."""
PURPOSES = ("filter", "search", "confirm")
CLASSES = ((0.2, 0.4), (0.4, 0.6), (0.6, 1.01))
Side = tuple[str, Ids]
"""A question and what follows its prompt, the deciding token last."""


@dataclass(frozen=True)
class Found:
    """What a version confirmed and spent: pairs as (question, prefix, chosen, rejected)."""

    pairs: list[tuple[str, Ids, int, int]]
    tokens: dict[str, int]


def main() -> None:
    """Search twice, measure the pairs, write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name")
    parser.add_argument("policy", type=Path)
    parser.add_argument("--before", type=Path, required=True, help="checkout of the old version")
    parser.add_argument("--recipe", default="phi-nano")
    parser.add_argument("--difficulty", default="", help="of word problems; the recipe's if empty")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--truth", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    changes = [f"task.options.difficulty={options.difficulty}"] if options.difficulty else []
    recipe = load_recipe(options.recipe, changes)
    task = build_task(recipe.task)
    problems = task.problems("dev", options.questions, seed=0)
    engine = pts.TransformersEngine.load(options.policy, recipe.sampling)
    folder = Path("runs/pair_cost") / options.name
    folder.mkdir(parents=True, exist_ok=True)
    prompts = {problem.id: len(engine.encode(problem)) for problem in problems}
    write_problems(problems, folder / "problems.jsonl")
    sampling = recipe.sampling
    shared = [f"temperature={sampling.temperature}", f"max_new_tokens={sampling.max_new_tokens}"]
    found = {}
    for version, own in VERSIONS.items():
        tree = options.before if version == "before" else ROOT
        search(tree, options.policy, folder, version, [*SETTINGS, *shared, *own])
        found[version] = read(folder / version.replace(", ", "-"), prompts)
    truth = measure(found, problems, engine, task.verifier, options.truth, folder)
    stored = RESULTS / "pair_cost.json"
    rows = json.loads(stored.read_text()) if stored.is_file() else {}
    rows[options.name] = {
        "questions": options.questions,
        "truth": options.truth,
        **{version: score(version, found, truth) for version in found},
    }
    stored.write_text(json.dumps(rows, indent=1) + "\n")
    (RESULTS / "pair_cost.md").write_text(table(rows))
    print(table(rows))


def write_problems(problems: list[Problem], path: Path) -> None:
    """Problems in the form that both versions read."""
    with path.open("w") as file:
        for problem in problems:
            assert not isinstance(problem.prompt, str)
            row = {"id": problem.id, "prompt": problem.prompt[-1].content}
            file.write(json.dumps(row | {"reference": problem.reference}) + "\n")


def search(tree: Path, policy: Path, folder: Path, version: str, settings: list[str]) -> None:
    """Run a version's own command; the same command continues."""
    command = [
        sys.executable, "-c", COMMAND, "search", "--model", str(policy.resolve()), "--chat",
        "--problems", str((folder / "problems.jsonl").resolve()), "--id", "id",
        "--verifier", r"exact:The answer is (-?\d+)\.",
        "--output", str((folder / version.replace(", ", "-")).resolve()), "--quiet", *settings,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, cwd=tree, stdout=subprocess.DEVNULL)


def read(output: Path, prompts: dict[str, int]) -> Found:
    """Pairs and costs of a run folder of either version."""
    pairs = []
    for line in (output / "pairs.jsonl").read_text().splitlines():
        row = json.loads(line)
        prefix = tuple(row["prompt_ids"][prompts[row["problem_id"]] :])
        pairs.append((row["problem_id"], prefix, row["chosen"], row["rejected"]))
    spent = json.loads((output / "summary.json").read_text())["spent"]
    return Found(pairs, {purpose: cost["tokens"] for purpose, cost in spent.items()})


def measure(
    found: dict[str, Found],
    problems: list[Problem],
    engine: pts.TransformersEngine,
    verifier: pts.Verifier,
    n: int,
    folder: Path,
) -> dict[Side, float]:
    """p(success) after both tokens of every pair, by fresh rollouts."""
    wanted: dict[str, dict[Ids, None]] = {problem.id: {} for problem in problems}
    for version in found.values():
        for name, prefix, chosen, rejected in version.pairs:
            wanted[name] |= {(*prefix, chosen): None, (*prefix, rejected): None}
    asked = [problem for problem in problems if wanted[problem.id]]
    fingerprint = {"policy_digest": engine.policy_digest, "n": n, "seed": 1}
    with (
        Journal(folder / "truth.jsonl", fingerprint) as journal,
        ProgressReporter(len(asked), True) as watch,
    ):
        finished = run(
            ((problem, rates(list(wanted[problem.id]), n)) for problem in asked),
            engine, verifier, seed=1, journal=journal, on_progress=watch,
        )  # fmt: skip
        return {
            (done.problem.id, at): rate for done in finished for at, rate in done.result.items()
        }


def score(version: str, found: dict[str, Found], truth: dict[Side, float]) -> dict[str, Any]:
    """Cost of a true pair, false discoveries, and recall by the true gap."""
    least = pts.SearchConfig().p_gap - pts.SearchConfig().indifference_margin
    gaps = [
        truth[name, (*at, chosen)] - truth[name, (*at, rejected)]
        for name, at, chosen, rejected in found[version].pairs
    ]
    true = sum(gap >= least for gap in gaps)
    tokens = found[version].tokens
    false = wilson(len(gaps) - true, len(gaps))
    return {
        "tokens": tokens, "pairs": len(gaps), "true": true,
        "false_discoveries": [false.mean, false.high],
        "tokens_a_true_pair": sum(tokens.values()) / true,
        "recall": {f"{low}-{high:.1f}": recall(version, found, truth, low, high)
                   for low, high in CLASSES},
    }  # fmt: skip


def recall(
    version: str, found: dict[str, Found], truth: dict[Side, float], low: float, high: float
) -> tuple[int, int]:
    """Prefixes with a pair of such a true gap: confirmed by this version, and by either."""

    def places(of: Found) -> set[Side]:
        return {
            (name, at)
            for name, at, chosen, rejected in of.pairs
            if low <= truth[name, (*at, chosen)] - truth[name, (*at, rejected)] < high
        }

    return len(places(found[version])), len(set[Side]().union(*map(places, found.values())))


def table(rows: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "# What a confirmed pair costs, before and after", "",
        "`python benchmarks/pair_cost.py`: the version of commit 30f5e2b (24 rollouts a side, no",
        "early stops) and this one, on the same policy and questions. True: the gap by brute force",
        "is .15 or more. Recall: of the prefixes with a true pair of that gap that either version",
        "has confirmed.",
        "",
        "| policy | version | tokens: filter, search, confirm | pairs | false [upper limit] "
        "| tokens a true pair | ratio | recall .2-.4 | .4-.6 | above |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in rows.items():
        for version in VERSIONS:
            is_ = row[version]
            tokens = ", ".join(f"{is_['tokens'][purpose] / 1e3:,.0f}k" for purpose in PURPOSES)
            ratio = is_["tokens_a_true_pair"] / row["before"]["tokens_a_true_pair"]
            false, high = is_["false_discoveries"]
            recalls = " | ".join(f"{hit} of {all_}" for hit, all_ in is_["recall"].values())
            lines.append(
                f"| {name} | {version} | {tokens} | {is_['pairs']} | {false:.1%} [{high:.1%}] | "
                f"{is_['tokens_a_true_pair']:,.0f} | {ratio:.2f} | {recalls} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
