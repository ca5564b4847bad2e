"""Compare searches on models whose p(success) is known exactly.

    python benchmarks/search_tabular.py --seed 1000 --instances 40      # tuning
    python benchmarks/search_tabular.py --seed 500000 --instances 200   # final figures

Each instance is one completion of one question (see `pts.engines.tabular_shapes`), kept if its
filter rollouts pass 0.2 to 0.8 of the time. Writes NAME.json and NAME.md under --out.

Scoring, with zone = 0.05 around p_gap = 0.2: a report is false below 0.15, a pivotal token must
be found from 0.25 upwards, what lies between counts neither way. Tokens are scored before
confirmation; pairs before (all proposed) and after (those that a run over the shape selects).
Coverage is that of nominal 95 % intervals; all of it is averaged by path, ± one standard error.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path as FilePath

import numpy as np

from pts.branches import Path
from pts.config import SearchConfig
from pts.engines.tabular import TabularEngine, TabularVerifier
from pts.engines.tabular_shapes import SHAPES, Instance
from pts.estimate import jeffreys
from pts.methods.bisect import search_bisect
from pts.methods.branch import search_branch
from pts.methods.confirm import confirm, screen
from pts.methods.steps import Steps, ask, ask_rows, metered
from pts.pairs import Finding, rank_proposals, select_pairs
from pts.testing import run_search
from pts.types import Cost, Ids, Outcome, PathResult, QuestionResult, Sample, Score

SEARCHES = {
    "bisect, n = 10": SearchConfig(method="bisect", bisect_rollouts=10),
    "bisect, n = 128": SearchConfig(method="bisect", bisect_rollouts=128),
    "bisect, n = 512": SearchConfig(method="bisect", bisect_rollouts=512),
    "branch, 400": SearchConfig(max_rollouts=400),
    "branch, 1200": SearchConfig(max_rollouts=1200),
}


@dataclass
class Spent:
    """Costs by what they were for."""

    filter: Cost = field(default_factory=Cost)
    search: Cost = field(default_factory=Cost)
    screen: Cost = field(default_factory=Cost)
    confirm: Cost = field(default_factory=Cost)


@dataclass
class Scored:
    """One searched path against the truth."""

    reported: int
    false: int
    half: int
    true: int
    found: int
    decided: int
    decided_false: int
    curve_cover: float
    delta_cover: list[bool]
    stopped: str
    spent: Spent
    result: PathResult
    solved: float


def parts(
    given: Ids | None, config: SearchConfig, rng: np.random.Generator
) -> Steps[tuple[PathResult, Spent, list[Outcome]] | None]:
    """One path of one question, its costs kept apart; None if the filter sets it aside."""
    spent = Spent()
    meter: dict[str, dict[str, Cost]] = {name: {} for name in asdict(spent)}
    wish = Sample((), config.filter_rollouts, "filter")
    (rollouts,) = yield from metered(ask([wish]), meter["filter"])
    passed = sum(o.success for o in rollouts) / len(rollouts)
    if not config.p_min <= passed <= config.p_max:
        return None
    ids, verdict = rollouts[0].ids, rollouts[0].verdict
    if given is not None:
        ((judged,),) = yield from ask([Sample(given, 1, "search")])
        ids, verdict = given, judged.verdict
    (rows,) = yield from ask_rows([Score(ids)])
    path = Path(ids, verdict, tuple(rows))
    finding = yield from metered(searched(path, rollouts, config, rng), meter["search"])
    proposals = yield from metered(screen(finding, config), meter["screen"])
    best = rank_proposals(proposals, config.max_pairs)
    pairs = yield from metered(confirm(best, config), meter["confirm"])
    for name, costs in meter.items():
        setattr(spent, name, sum(costs.values(), Cost()))
    return replace(finding.result, pairs=tuple(pairs)), spent, rollouts


def searched(
    path: Path, rollouts: Sequence[Outcome], config: SearchConfig, rng: np.random.Generator
) -> Steps[Finding]:
    if config.method == "branch":
        return (yield from search_branch(path, rollouts, config, rng))
    (finding,) = yield from search_bisect([path], config)
    return finding


def score_path(engine: TabularEngine, result: PathResult, spent: Spent, solved: float) -> Scored:
    p = np.array(engine.curve(result.ids))
    change = np.abs(np.diff(p))
    tokens = {t.position: t for t in result.tokens}
    must = set(np.flatnonzero(change >= 0.25).tolist())
    inside = [
        point.low - 1e-9 <= p[at] <= point.high + 1e-9
        for at, point in zip(result.curve_at, result.curve, strict=True)
        if point.method != "exact"
    ]
    decided = [at for at, t in tokens.items() if t.decided]
    return Scored(
        reported=len(tokens),
        false=sum(change[at] < 0.15 for at in tokens),
        half=sum(change[at] < 0.1 for at in tokens),
        true=len(must),
        found=len(must & set(tokens)),
        decided=len(decided),
        decided_false=sum(change[at] < 0.15 for at in decided),
        curve_cover=float(np.mean(inside)),
        delta_cover=[
            bool(t.delta.low - 1e-9 <= p[at + 1] - p[at] <= t.delta.high + 1e-9)
            for at, t in tokens.items()
        ],
        stopped=result.stopped,
        spent=spent,
        result=result,
        solved=solved,
    )


def instances(shape: str, n: int, seed: int) -> list[tuple[Instance, TabularEngine]]:
    """The first n instances of a shape whose filter rollouts keep them."""
    found: list[tuple[Instance, TabularEngine]] = []
    offset = list(SHAPES).index(shape) * 10_000
    while len(found) < n:
        instance = SHAPES[shape](np.random.default_rng([seed, offset]))
        engine = TabularEngine([instance.machine], instance.sampling)
        problem = replace(engine.problems()[0], id=f"{shape}-{seed}-{offset}")
        engine.problems = lambda problem=problem: [problem]  # type: ignore[method-assign]
        if run_search(kept(), engine, problem, TabularVerifier(), seed):
            found.append((instance, engine))
        offset += 1
    return found


def kept() -> Steps[bool]:
    (rollouts,) = yield from ask([Sample((), 16, "filter")])
    return 0.2 <= sum(o.success for o in rollouts) / 16 <= 0.8


def run_one(
    cases: Sequence[tuple[Instance, TabularEngine]], config: SearchConfig, seed: int
) -> dict[str, object]:
    started, scored, questions = time.process_time(), [], []
    truths: dict[tuple[Ids, int, int], float] = {}
    for k, (instance, engine) in enumerate(cases):
        problem = engine.problems()[0]
        search = parts(instance.path, config, np.random.default_rng([seed, k]))
        answer = run_search(search, engine, problem, TabularVerifier(), seed)
        assert answer is not None, "the same filter rollouts kept this instance before"
        result, spent, rollouts = answer
        solved = jeffreys(sum(o.success for o in rollouts), len(rollouts))
        scored.append(score_path(engine, result, spent, solved.mean))
        questions.append(QuestionResult(problem.id, (k,), "searched", solved, (result,), {}))
        for pair in result.pairs:
            at = result.ids[: pair.position]
            gap = engine.success((*at, pair.chosen)) - engine.success((*at, pair.rejected))
            truths[(k, *at), pair.chosen, pair.rejected] = gap
    return summary(scored, questions, truths, config) | {
        "cpu_seconds": round(time.process_time() - started, 1)
    }


def ratio(part: Sequence[float], whole: Sequence[float]) -> tuple[float | None, float | None]:
    """Σ part / Σ whole and its standard error over paths (delta method)."""
    a, b = np.asarray(part, float), np.asarray(whole, float)
    if b.sum() == 0:
        return None, None
    value = a.sum() / b.sum()
    return float(value), float(np.sqrt(((a - value * b) ** 2).sum()) / b.sum())


def summary(
    scored: Sequence[Scored],
    questions: Sequence[QuestionResult],
    truths: dict[tuple[Ids, int, int], float],
    config: SearchConfig,
) -> dict[str, object]:
    n = len(scored)
    selected = select_pairs(questions, config, "")
    confirmed = [truths[p.prompt_ids, p.chosen, p.rejected] for p in selected]
    proposed = list(truths.values())
    reported = [s.reported for s in scored]
    good = [s.reported - s.false for s in scored]
    covers = [s.curve_cover for s in scored]
    cost = {
        f"{name}_{unit}": round(sum(getattr(getattr(s.spent, name), unit) for s in scored) / n, 1)
        for name in ("filter", "search", "screen", "confirm")
        for unit in ("rollouts", "tokens")
    }
    return {
        "paths": n,
        "reported": sum(reported),
        "precision": ratio(good, reported),
        "under_half_gap": ratio([s.half for s in scored], reported),
        "true": sum(s.true for s in scored),
        "recall": ratio([s.found for s in scored], [s.true for s in scored]),
        "decided": sum(s.decided for s in scored),
        "decided_precision": ratio(
            [s.decided - s.decided_false for s in scored], [s.decided for s in scored]
        ),
        "curve_coverage": (float(np.mean(covers)), float(np.std(covers) / np.sqrt(n))),
        "delta_coverage": ratio(
            [sum(s.delta_cover) for s in scored], [len(s.delta_cover) for s in scored]
        ),
        "stopped": {k: sum(s.stopped == k for s in scored) for k in {s.stopped for s in scored}},
        "pairs_proposed": len(proposed),
        "pairs_proposed_true": sum(gap >= 0.15 for gap in proposed),
        "pairs_confirmed": len(confirmed),
        "pairs_confirmed_true": sum(gap >= 0.15 for gap in confirmed),
        "pairs_bias": float(np.mean([p.gap.mean for p in selected]) - np.mean(confirmed))
        if confirmed
        else None,
        **cost,
    }


def shown(value: object) -> str:
    if isinstance(value, tuple):
        return "–" if value[0] is None else f"{value[0]:.2f} ± {value[1]:.2f}"
    return "–" if value is None else f"{value:,.0f}" if isinstance(value, float) else str(value)


COLUMNS = {
    "reported": "reported",
    "precision": "precision",
    "decided_precision": "precision of decided",
    "recall": "recall",
    "curve_coverage": "curve cover",
    "delta_coverage": "Δ cover (reported)",
    "search_rollouts": "search rollouts",
    "search_tokens": "search tokens",
    "screen_rollouts": "screen",
    "confirm_rollouts": "confirm",
}


def markdown(report: dict[str, dict[str, dict[str, object]]], command: str) -> str:
    lines = ["# Searches against known p(success)", "", f"`{command}`; costs are per path.", ""]
    for shape, rows in report.items():
        first = next(iter(rows.values()))
        lines += [f"## {shape}: {first['paths']} paths, {first['true']} tokens to be found", ""]
        lines += ["| search | " + " | ".join(COLUMNS.values()) + " | pairs true / confirmed |"]
        lines += ["|---" * (len(COLUMNS) + 2) + "|"]
        for name, row in rows.items():
            cells = [shown(row[key]) for key in COLUMNS]
            pairs = f"{row['pairs_confirmed_true']} / {row['pairs_confirmed']}"
            before = f"{row['pairs_proposed_true']} / {row['pairs_proposed']}"
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {pairs} (proposed {before}) |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1000, help="1000 for tuning, 500000 for final")
    parser.add_argument("--instances", type=int, default=40)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--searches", nargs="+", choices=list(SEARCHES), default=list(SEARCHES))
    parser.add_argument("--out", type=FilePath, default=FilePath("benchmarks/results"))
    parser.add_argument("--name", default="search_tabular")
    args = parser.parse_args()
    report: dict[str, dict[str, dict[str, object]]] = {}
    command = f"search_tabular.py --seed {args.seed} --instances {args.instances}"
    args.out.mkdir(parents=True, exist_ok=True)
    for shape in args.shapes:
        cases = instances(shape, args.instances, args.seed)
        report[shape] = {s: run_one(cases, SEARCHES[s], args.seed) for s in args.searches}
        (args.out / f"{args.name}.json").write_text(json.dumps(report, indent=1) + "\n")
        (args.out / f"{args.name}.md").write_text(markdown(report, command) + "\n")
        print(f"{shape}: done", flush=True)


if __name__ == "__main__":
    main()
