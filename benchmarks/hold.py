"""Does the KL term of token DPO hold what the pairs do not ask for? Arms on phi-nano, over seeds.

    align run phi-nano seed=0 'stages=[sft,pts,token_dpo]' task.options.difficulty=hard \\
        sft.num_examples=4800 pts.num_problems=128 --output=runs/hold/seed0    (and 1, ...)
    python benchmarks/hold.py runs/hold/seed0 runs/hold/seed1

Every arm trains the same SFT model on the same pairs; 400 problems of the development split are
answered four times at the recipe's temperature. Answers are told apart by strategy: the base model
cannot solve a problem at once, by an early jump or in a chain (`FATAL`), and can in the others. So
accuracy is the share of workable strategies times the success within them. Pairs are about the
first factor; what training does to the second is collateral. An arm that is measured already is
not run again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from align.context import StageContext, StageEntry
from align.pipeline.recipe import Recipe
from align.pipeline.run import run_recipe
from align.tasks.registry import build_task
from align.tasks.word_problems.solutions import strategy_of
from pts.data.rollouts import ROLLOUTS
from pts.files import write_json
from pts.runtime.sample import sample

RESULTS = Path(__file__).parent / "results" / "hold.md"
FATAL = ("at once", "early jump", "chained")
MILD: dict[str, Any] = {"learning_rate": 3e-5, "max_steps": 32, "kl_weight": 0.0}
HOT: dict[str, Any] = {"learning_rate": 1e-4, "max_steps": 64, "kl_weight": 0.0}
ARMS: dict[str, Mapping[str, Any] | None] = {
    "SFT, the start": None,
    "mild: 3e-5, 32 steps": MILD,
    "hot: 1e-4, 64 steps": HOT,
    "hot, nll_weight 1": HOT | {"nll_weight": 1.0},
    "hot, kl_weight 10": HOT | {"kl_weight": 10.0},
}
"""Overrides of the recipe's token_dpo; None trains nothing."""
PROBLEMS, SAMPLES = 400, 4


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders with sft/ and pts/")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in options.arms}
    for arm in options.arms:
        for run in options.runs:
            found[arm].append(measured(run, arm))
            print(arm, run.name, json.dumps(found[arm][-1]), flush=True)
    RESULTS.write_text(page(found), encoding="utf-8")


def measured(run: Path, arm: str) -> dict[str, Any]:
    """The figures of an arm on one run's start and pairs."""
    folder = run / "arms" / arm
    file = folder / "figures.json"
    if not file.is_file():
        recipe = run_recipe(run)
        write_json(file, _figures(recipe, _trained(recipe, run, arm), folder))
    figures: dict[str, Any] = json.loads(file.read_text())
    return figures


def _trained(recipe: Recipe, run: Path, arm: str) -> Path:
    from align.stages import token_dpo

    start, settings = run / "sft" / "model", ARMS[arm]
    if settings is None:
        return start
    config = recipe.settings("token_dpo").model_copy(update=dict(settings))
    context = StageContext(
        recipe, build_task(recipe.task), StageEntry("token_dpo", "token_dpo", config), start,
        run / "arms" / arm, pairs=run / "pts" / "pairs.jsonl", rollouts=run / "pts" / ROLLOUTS,
        progress=False,
    )  # fmt: skip
    model = token_dpo.run(context).model
    assert model is not None
    return model


def _figures(recipe: Recipe, policy: Path, folder: Path) -> dict[str, Any]:
    from align.models.load import load_policy
    from pts.engines.transformers.engine import TransformersEngine

    engine = TransformersEngine(*load_policy(policy, recipe.model), recipe.sampling)
    task = build_task(recipe.task)
    problems = task.problems("dev", PROBLEMS, 0)
    answers = sample(
        problems, engine, task.verifier, n=SAMPLES, output=folder / "answers", progress=False
    )
    counts: dict[str, list[int]] = {}
    for problem, found in zip(problems, answers, strict=True):
        for rollout in found.rollouts:
            named = strategy_of(engine.decode(rollout.ids), problem.metadata["steps"])
            total = counts.setdefault(named, [0, 0])
            total[0] += rollout.success
            total[1] += 1
    return {"strategies": counts, **_summary(counts)}


def _summary(counts: Mapping[str, list[int]]) -> dict[str, float]:
    answers = sum(n for _, n in counts.values())
    workable = [counts[name] for name in counts if name not in FATAL]
    right, tried = (sum(column) for column in zip(*workable, strict=True))
    return {
        "accuracy": sum(right for right, _ in counts.values()) / answers,
        "fatal": 1 - tried / answers,
        "success_within": right / tried,
    }


def page(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """The table in Markdown: seeds joined by slashes, then their mean."""
    names = ("accuracy", "fatal", "success_within")
    lines = [
        "# Token DPO with and without a hold",
        "",
        f"`python benchmarks/hold.py`: phi-nano, {PROBLEMS} problems of the development split x",
        f"{SAMPLES} answers at T = 0.7; SFT seeds and their mean, in %. Fatal: answers at once, by",
        "an early jump or in a chain. The standard error of a seed's success within the others is",
        f"about {100 * math.sqrt(0.8 * 0.2 / (PROBLEMS * SAMPLES * 0.8)):.1f} points.",
        "An arm with one figure was measured on the first seed alone.",
        "",
        "| arm | accuracy | mass on fatal strategies | success within the others |",
        "|---|---|---|---|",
    ]
    for arm, figures in found.items():
        cells = (_cell(f[name] for f in figures) for name in names)
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(values: Iterable[float]) -> str:
    percent = [100 * value for value in values]
    mean = sum(percent) / len(percent)
    return f"{' / '.join(f'{value:.1f}' for value in percent)}: {mean:.1f}"


if __name__ == "__main__":
    main()
