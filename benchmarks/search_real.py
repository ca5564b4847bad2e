"""Searches on a real policy against brute force: what each report and each pair is expected gain.

    python benchmarks/search_real.py --recipe phi-nano --policy runs/phi-nano-seed0/sft/model
    python benchmarks/search_real.py --recipe smollm2-135m --questions 12 --reported-only

Every method searches the same completions of the same dev questions (the filter's rollouts have the
same seeds). The truth is the share of successes among --truth fresh rollouts after and before each
token that could be pivotal (1 - q >= p_gap), and after both tokens of each confirmed pair; no
search sees them. With --reported-only the tokens that no method reports are left out, and "to be
found" counts the pivotal ones among those that any method reports. A report is false if the true
change is below p_gap - indifference margin, a pivotal token is to be found if it is p_gap +
indifference margin or more; what lies between counts neither way. A token with 1 - q < p_gap cannot
be pivotal, so a report of it is false without rollouts.

Costs hold everything: filter, search, screening, confirmation. CPU seconds are those of this
process, one thread; they are missing (null) for a search that was interrupted. Runs lie under
runs/search_real; the same command continues. Writes NAME.json and NAME.md under results/.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import pts
from align.models.load import load_policy, prepare_base
from align.pipeline.recipe import load_recipe
from align.tasks.registry import build_task
from pts.algorithm.requests import SearchRoutine, request
from pts.runtime.journal import Journal
from pts.runtime.progress import ProgressReporter
from pts.runtime.scheduler import run
from pts.types import CompletionResult, Ids, Problem, RolloutQuery, TokenPair

ROOT = Path(__file__).parent.parent
METHODS = {
    "bisect, n = 10": {"method": "bisect", "bisect_rollouts": 10},
    "bisect, n = 128": {"method": "bisect", "bisect_rollouts": 128},
    "branch": {},
}
SEED, TRUTH_SEED = 0, 1


@dataclass(frozen=True)
class Searched:
    """What one method found and spent. By problem: the length of its prompt, its path."""

    prompts: dict[str, int]
    paths: dict[str, CompletionResult]
    pairs: list[TokenPair]
    rollouts: int
    tokens: int
    cpu: float | None


def main() -> None:
    """Search with every method, measure the truth, write the tables."""
    options = parse()
    torch.set_num_threads(1)
    recipe = load_recipe(options.recipe)
    task = build_task(recipe.task)
    policy = options.policy or prepare_base(recipe.model)
    engine = pts.TransformersEngine(*load_policy(policy, recipe.model), recipe.sampling)
    problems = task.problems("dev", options.questions, SEED)
    folder = options.output / f"{options.name}-{engine.policy_digest[:12]}"
    found = {name: search(name, problems, engine, task.verifier, folder) for name in METHODS}
    tested = positions(found.values(), options.reported_only)
    truth = measure(found.values(), tested, problems, engine, task.verifier, options.truth, folder)
    rows = {name: score(searched, tested, truth) for name, searched in found.items()}
    about = {
        "recipe": options.recipe, "policy_digest": engine.policy_digest,
        "questions": options.questions,
        "truth_rollouts": options.truth, "reported_only": options.reported_only,
        "sampling": recipe.sampling.model_dump(mode="json"),
        "paths": len(next(iter(found.values())).paths),
    }  # fmt: skip
    write(rows, about, options.name)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="phi-nano")
    parser.add_argument("--policy", type=Path, help="folder of a model; the recipe's if not given")
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--truth", type=int, default=1000, help="rollouts a side")
    parser.add_argument("--reported-only", action="store_true", help="no truth of other tokens")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "search_real")
    parser.add_argument("--name", default="search_real", help="name of the result files")
    return parser.parse_args()


def search(
    name: str,
    problems: Sequence[Problem],
    engine: pts.TransformersEngine,
    verifier: pts.Verifier,
    folder: Path,
) -> Searched:
    """One method on all problems; its CPU seconds are kept beside its results."""
    config = pts.SearchConfig(**METHODS[name])
    output = folder / name.replace(", n = ", "-")
    meter = output / "cpu.json"
    fresh = not output.exists()
    started = time.process_time()
    done = pts.search(problems, engine, verifier, config, output=output, seed=SEED)
    if not meter.exists():
        spent = round(time.process_time() - started, 2) if fresh else None
        meter.write_text(json.dumps(spent))
    tallies = done.summary.spent.values()
    return Searched(
        prompts={result.problem_id: len(result.prompt_ids) for result in done.results},
        paths={result.problem_id: path for result in done.results for path in result.paths},
        pairs=done.pairs,
        rollouts=sum(tally.rollouts for tally in tallies),
        tokens=sum(tally.tokens for tally in tallies),
        cpu=json.loads(meter.read_text()),
    )


Truth = dict[tuple[str, Ids], float]
"""p(success) after a prefix of a problem's completion."""


def positions(found: Iterable[Searched], reported_only: bool) -> dict[str, list[int]]:
    """By problem: where the truth about the path's token is measured."""
    tested: dict[str, set[int]] = {}
    for searched in found:
        for name, path in searched.paths.items():
            told = {token.position for token in path.tokens}
            able = candidates(path)
            tested.setdefault(name, set()).update(told & able if reported_only else able)
    return {name: sorted(places) for name, places in tested.items()}


def measure(
    found: Iterable[Searched],
    tested: dict[str, list[int]],
    problems: Sequence[Problem],
    engine: pts.TransformersEngine,
    verifier: pts.Verifier,
    n: int,
    folder: Path,
) -> Truth:
    """`n` fresh rollouts after every prefix that the scores ask for."""
    wanted: dict[str, dict[Ids, None]] = {problem.id: {} for problem in problems}
    for searched in found:
        for name, path in searched.paths.items():
            for at in tested[name]:
                wanted[name] |= {path.ids[:at]: None, path.ids[: at + 1]: None}
        for pair in searched.pairs:
            prefix = completion_prefix(searched, pair)
            sides = (pair.chosen, pair.rejected)
            wanted[pair.problem_id] |= {(*prefix, token): None for token in sides}
    fingerprint = {"policy_digest": engine.policy_digest, "n": n, "seed": TRUTH_SEED}
    asked = [problem for problem in problems if wanted[problem.id]]
    with (
        Journal(folder / "truth.jsonl", fingerprint) as journal,
        ProgressReporter(len(asked), True) as watch,
    ):
        finished = run(
            ((problem, rates(list(wanted[problem.id]), n)) for problem in asked),
            engine, verifier, seed=TRUTH_SEED, window=4, journal=journal, on_progress=watch,
        )  # fmt: skip
        return {
            (done.problem.id, at): rate for done in finished for at, rate in done.result.items()
        }


def rates(prefixes: Sequence[Ids], n: int) -> SearchRoutine[dict[Ids, float]]:
    """Share of successes after each prefix."""
    answers = yield from request([RolloutQuery(at, n, "confirm") for at in prefixes])
    return {
        at: sum(rollout.success for rollout in rollouts) / n
        for at, rollouts in zip(prefixes, answers, strict=True)
    }


def candidates(path: CompletionResult) -> set[int]:
    """Positions whose token can be pivotal."""
    gap = pts.SearchConfig().p_gap
    return {at for at, prob in enumerate(path.probs) if 1 - prob >= gap}


def completion_prefix(searched: Searched, pair: TokenPair) -> Ids:
    """The pair's prefix without the question's prompt."""
    return pair.prompt_ids[searched.prompts[pair.problem_id] :]


def score(searched: Searched, tested: dict[str, list[int]], truth: Truth) -> dict[str, Any]:
    """Precision, recall and costs of one method."""
    config = pts.SearchConfig()
    low, high = config.p_gap - config.indifference_margin, config.p_gap + config.indifference_margin
    reported = false = must = hit = 0
    for name, path in searched.paths.items():
        change = {
            at: abs(truth[name, path.ids[: at + 1]] - truth[name, path.ids[:at]])
            for at in tested[name]
        }
        told = {token.position for token in path.tokens}
        reported += len(told)
        false += sum(change.get(at, 0.0) < low for at in told)
        must += sum(moved >= high for moved in change.values())
        hit += sum(change.get(at, 0.0) >= high for at in told)
    gaps = [true_gap(searched, pair, truth) for pair in searched.pairs]
    good = sum(gap >= low for gap in gaps)
    return {
        "reported": reported, "false": false, "to be found": must, "found": hit,
        "precision": 1 - false / reported if reported else None,
        "recall": hit / must if must else None,
        "rollouts": searched.rollouts, "tokens": searched.tokens, "cpu_seconds": searched.cpu,
        "pairs": len(gaps), "pairs_true": good,
        "gap_bias": per(sum(pair.gap.mean for pair in searched.pairs) - sum(gaps), len(gaps)),
        "tokens_per_true_pivot": per(searched.tokens, reported - false),
        "cpu_per_true_pivot": per(searched.cpu, reported - false),
        "tokens_per_true_pair": per(searched.tokens, good),
        "cpu_per_true_pair": per(searched.cpu, good),
    }  # fmt: skip


def true_gap(searched: Searched, pair: TokenPair, truth: Truth) -> float:
    """p(chosen) - p(rejected) by brute force."""
    at = completion_prefix(searched, pair)
    chosen, rejected = (truth[pair.problem_id, (*at, t)] for t in (pair.chosen, pair.rejected))
    return chosen - rejected


def per(cost: float | None, found: int) -> float | None:
    """Cost of one of what was found."""
    return cost / found if cost is not None and found else None


def write(rows: dict[str, dict[str, Any]], about: dict[str, Any], name: str) -> None:
    """JSON with everything, Markdown with the table."""
    results = Path(__file__).parent / "results"
    (results / f"{name}.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    header = (
        "", "reported", "false", "found / to be found", "pairs", "true pairs", "rollouts", "tokens",
        "tokens a true pivot", "CPU s a true pivot", "tokens a true pair", "CPU s a true pair",
    )  # fmt: skip
    cells = [
        (
            method, row["reported"], row["false"], f"{row['found']} / {row['to be found']}",
            row["pairs"], row["pairs_true"], shown(row["rollouts"]), shown(row["tokens"]),
            shown(row["tokens_per_true_pivot"]), shown(row["cpu_per_true_pivot"]),
            shown(row["tokens_per_true_pair"]), shown(row["cpu_per_true_pair"]),
        )
        for method, row in rows.items()
    ]  # fmt: skip
    lines = [f"{about['paths']} completions, truth from {about['truth_rollouts']} rollouts a side."]
    if about["reported_only"]:
        lines += ["", "To be found: pivotal tokens among those that any method reports."]
    lines += [
        "",
        *(
            "| " + " | ".join(map(str, line)) + " |"
            for line in (header, ["---"] * len(header), *cells)
        ),
    ]
    (results / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def shown(value: float | None) -> str:
    """Whole numbers with separators; one digit below ten."""
    return "-" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


if __name__ == "__main__":
    main()
