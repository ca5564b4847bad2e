"""The table of the README: three seeds of the whole post-train, and four control arms.

    python benchmarks/three_stage.py                       test split, all arms
    python benchmarks/three_stage.py --arms --seeds 3 4 5 6 7 8 --name three_stage_more_seeds
    python benchmarks/three_stage.py --split dev --seeds 100 --set full_dpo.learning_rate=2e-4

Every seed reruns everything from SFT on. The test problems are drawn with a seed taken from the
commit that is measured, so nobody can have tuned on them (`--commit` continues a run after a later
commit). The main chain is measured on two more families: `relay`, which no model has seen, and
`swap`, which only the base model has. Each policy is measured greedily, at the recipe's
temperature, and at the temperature that is best for it on the dev split, so that a stage cannot
win by sharpening alone.

Control arms start from the same SFT model as the main chain of their seed. They are matched on
generated tokens (filter, search and confirmation included) and on optimiser steps, and compared
with the row of the main chain that cost the same:

    random pairs     against + token DPO: random uncertain positions, direction by measured p
    coin pairs       against + token DPO: the same, direction by a coin (costs hardly any rollouts,
                     so it is capped at one pair for every pair that the optimiser can see)
    full DPO only    against + full DPO
    rejection SFT    against + full DPO

Runs are continued when the command is given again. `benchmarks/three_stage.yaml` holds what was
tuned on the dev split, arm by arm.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MAIN = ["base", "sft", "token_dpo", "full_dpo"]
HELD_OUT = ["relay", "swap"]
TEMPERATURES = "[0.0, 0.2, 0.4, 0.55, 0.7, 0.85, 1.0]"
ARMS = {
    "random": ("token_dpo", ["pts", "token_dpo"]),
    "coin": ("token_dpo", ["pts", "token_dpo"]),
    "full_only": ("full_dpo", ["full_dpo"]),
    "rejection": ("full_dpo", ["rejection_sft"]),
}
"""Arm: the main row that it is matched with, and its stages."""


def main() -> None:
    """Run what is missing, then compare and write the results."""
    options = parse()
    tuned = yaml.safe_load((ROOT / "benchmarks" / "three_stage.yaml").read_text())
    common = [
        f"evaluate.seed={options.problem_seed}",
        f"evaluate.split={options.split}",
        f"evaluate.temperatures={TEMPERATURES}",
        *tuned["common"],
        *options.set,
    ]
    chains = [Chain(seed, options.output, common, tuned, options.arms) for seed in options.seeds]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda chain: chain.run(options.split == "test"), chains))
    write_results(chains, options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=["dev", "test"], default="test")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--set", nargs="*", default=[], help="overrides for all runs")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time, one thread each")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "three_stage")
    parser.add_argument("--name", default="three_stage", help="name of the result files")
    parser.add_argument("--commit", default="HEAD", help="commit that is measured")
    options = parser.parse_args()
    options.commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--verify", f"{options.commit}^{{commit}}"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    options.problem_seed = int(options.commit[:7], 16) if options.split == "test" else 0
    return options


class Chain:
    """The main run of one seed, and its arms."""

    def __init__(
        self, seed: int, output: Path, common: list[str], tuned: dict[str, Any], arms: list[str]
    ) -> None:
        self.seed = seed
        self.main = output / f"main-seed{seed}"
        self.arms = {arm: output / f"{arm}-seed{seed}" for arm in arms}
        self._common = [*common, f"seed={seed}"]
        self._tuned = tuned

    def run(self, held_out: bool) -> None:
        """Everything of this seed, in order; each command continues where it stopped."""
        align("run", "phi-nano", *self._common, f"--output={self.main}")
        for arm, folder in self.arms.items():
            _, stages = ARMS[arm]
            align(
                "run", "phi-nano", *self._common, *self._start(), f"stages={json.dumps(stages)}",
                *self._tuned[arm], *getattr(self, f"_{arm}")(), f"--output={folder}",
            )  # fmt: skip
        if held_out:
            for family in HELD_OUT:
                align(
                    "eval", str(self.main), f"task.options.families=[{family}]",
                    "evaluate.temperatures=[]", "evaluate.problems=500", "evaluate.samples=4",
                    f"--output={self.main}/{family}",
                )  # fmt: skip

    def _start(self) -> list[str]:
        return [f"model.path={self.main / 'sft' / 'model'}", 'evaluate.skip=["base"]']

    def _random(self) -> list[str]:
        return [
            "pts.pairs_from=random", f"pts.token_budget={self._tokens('pts')}",
            "pts.num_problems=20000",
        ]  # fmt: skip

    def _coin(self) -> list[str]:
        stages = self.manifest(self.main)["recipe"]["stages"]
        settings = next(stage for stage in stages if stage["name"] == "token_dpo")
        seen = self._steps("token_dpo") * settings["batch_size"]
        return [
            "pts.pairs_from=coin", f"pts.token_budget={self._tokens('pts')}",
            f"pts.num_problems={seen}",
        ]  # fmt: skip

    def _full_only(self) -> list[str]:
        steps = self._steps("token_dpo") + self._steps("full_dpo")
        return [f"full_dpo.num_problems={self._questions()}", f"full_dpo.max_steps={steps}"]

    def _rejection(self) -> list[str]:
        steps = self._steps("token_dpo") + self._steps("full_dpo")
        return [
            f"rejection_sft.num_problems={self._questions()}", f"rejection_sft.max_steps={steps}"
        ]  # fmt: skip

    def _questions(self) -> int:
        """Questions whose answers cost what the search and the full-length pairs cost."""
        spent = self._tokens("pts") + self._tokens("full_dpo")
        metrics = self.manifest(self.main)["stages"]["full_dpo"]["metrics"]
        return round(spent / (metrics["tokens_sampled"] / metrics["questions"]))

    def _tokens(self, stage: str) -> int:
        tokens: int = self.manifest(self.main)["stages"][stage]["metrics"]["tokens_sampled"]
        return tokens

    def _steps(self, stage: str) -> int:
        steps: int = self.manifest(self.main)["stages"][stage]["metrics"]["steps"]
        return steps

    @staticmethod
    def manifest(folder: Path) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        return data


def align(*words: str) -> None:
    """Run one `align` command on one thread; its output goes to a log beside the run."""
    folder = Path(words[-1].removeprefix("--output="))
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "align.cli", *words, "--quiet"]
    print(" ".join(command[2:]), flush=True)
    with (folder / "log.txt").open("a") as log:
        done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"failed with status {done.returncode}; see {folder}/log.txt")


def write_results(chains: list[Chain], options: argparse.Namespace) -> None:
    """Tables over the seeds, of the main chain and of the arms, as JSON and Markdown."""
    from align.evaluation.seeds import build_seed_table

    found: dict[str, Any] = {
        "commit": options.commit, "seeds": options.seeds, "split": options.split,
        "problem_seed": options.problem_seed, "tables": {}, "arms": {}, "cost": cost(chains),
    }  # fmt: skip
    texts = []
    for inner in ("", *HELD_OUT):
        if not all((c.main / inner / "eval" / "sft").is_dir() for c in chains):
            continue
        title = f"held-out family {inner}" if inner else "test problems"
        labels = chains[0].manifest(chains[0].main)["labels"]
        table = build_seed_table([c.main / inner for c in chains], MAIN, labels)
        found["tables"][title] = table.to_json()
        texts += [f"## {title}\n", table.to_markdown()]
        if not inner:
            found["arms"] = compare_arms(chains, options.arms)
            texts += [arms_text(found["arms"])] if options.arms else []
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / f"{options.name}.md").write_text("\n".join(texts))
    print("\n".join(texts))


def compare_arms(chains: Iterable[Chain], arms: Iterable[str]) -> dict[str, Any]:
    """Every arm against the row of the main chain that cost the same (main minus arm)."""
    from dataclasses import asdict

    from align.evaluation.seeds import compare_evaluations

    found = {}
    for arm in arms:
        row, stages = ARMS[arm]
        theirs = [chain.arms[arm] / "eval" / stages[-1] for chain in chains]
        ours = [chain.main / "eval" / row for chain in chains]
        compared = compare_evaluations(theirs, ours)
        found[arm] = {
            "against": row,
            "arm": means(theirs),
            "main": means(ours),
            "main_minus_arm": {name: asdict(value) for name, value in compared.items()},
        }
    return found


def means(folders: list[Path]) -> dict[str, list[float]]:
    """Accuracy of every seed: greedy, sampled, at the best temperature where it was sought."""
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    pick: dict[str, Callable[[dict[str, Any]], float]] = {
        "greedy": lambda s: s["greedy"]["mean"],
        "sampled": lambda s: s["sampled"]["mean"],
    }
    if all(s.get("best") for s in summaries):
        pick["best"] = lambda s: s["best"]["accuracy"]["mean"]
    return {name: [value(s) for s in summaries] for name, value in pick.items()}


def arms_text(arms: dict[str, Any]) -> str:
    """Markdown: each arm, the main row of equal cost, and their difference."""
    lines = [
        "| arm | against | measure | arm % | main % | main − arm, points (95 %) | p by item "
        "| p new seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, arm in arms.items():
        for measure, compared in arm["main_minus_arm"].items():
            by_item, both = compared["by_item"], compared["by_item_and_seed"]
            gap = by_item["difference"]
            lines.append(
                f"| {name} | {arm['against']} | {measure} | {percent(arm['arm'][measure])} "
                f"| {percent(arm['main'][measure])} | {100 * gap['mean']:+.1f} "
                f"({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f}) | {by_item['pvalue']:.2g} "
                f"| {both['pvalue'] if both else float('nan'):.2g} |"
            )
    return "\n".join(lines) + "\n"


def percent(values: list[float]) -> str:
    """Mean over the seeds."""
    return f"{100 * sum(values) / len(values):.1f}"


def cost(chains: Iterable[Chain]) -> dict[str, Any]:
    """Generated tokens, optimiser steps and seconds of every stage of every run."""
    found: dict[str, Any] = {}
    for chain, (name, folder) in itertools.chain.from_iterable(
        ((chain, pair) for pair in (("main", chain.main), *chain.arms.items())) for chain in chains
    ):
        stages = chain.manifest(folder)["stages"]
        found[f"{name}-seed{chain.seed}"] = {
            stage: {
                "seconds": record["seconds"],
                **{k: record["metrics"][k] for k in ("tokens_sampled", "steps", "pairs", "rows")
                   if k in record["metrics"]},
            }
            for stage, record in stages.items()
        }  # fmt: skip
    return found


if __name__ == "__main__":
    main()
