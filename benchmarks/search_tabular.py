"""Compare searches on models whose p(success) is known exactly.

    python benchmarks/search_tabular.py --seed 1000 --instances 40      # tuning
    python benchmarks/search_tabular.py --seed 500000 --instances 200   # final figures

Each instance is one completion of one question (see `pts.testing.shapes`), kept if its
filter rollouts pass 0.2 to 0.8 of the time. Every search sees the same filter rollouts. A line an
instance goes to runs/NAME-SEED/SHAPE/SEARCH.jsonl as soon as it is there: the same command
continues, and refuses lines that other sources or settings made. Several processes may work on
different --shapes. NAME.json and NAME.md under --out are made of these lines (`search_tables.py`,
which says how they are scored). `search_references.py` has what the searches are compared with.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path as FilePath
from typing import Any, TypeAlias

import numpy as np
from numpy.random import Generator
from search_references import every_token, oracle
from search_tables import P_GAP, ZONE, report, tables

from pts.algorithm.bisect import search_bisect
from pts.algorithm.branch import search_branch
from pts.algorithm.pairs import confirm, rank_proposals, screen
from pts.algorithm.paths import ScoredCompletion
from pts.algorithm.requests import SearchRoutine, request, request_logprobs, with_cost
from pts.algorithm.siblings import PathAnalysis
from pts.config import SearchConfig
from pts.engines.tabular import TabularEngine, TabularVerifier
from pts.stats import Floats
from pts.testing import run_search
from pts.testing.shapes import SHAPES, Instance
from pts.types import (
    CandidatePair,
    Cost,
    Estimate,
    Ids,
    LogprobQuery,
    Problem,
    Rollout,
    RolloutQuery,
    Verdict,
)

ROOT = FilePath(__file__).parent.parent
BUDGETS = (100, 200, 400, 800)
"""Rollouts of a search that is cut short. The 25 % or 100 rollouts of `max_rollouts` that are kept
for siblings come on top."""
BUDGETED = {
    f"branch, {n} rollouts": SearchConfig(max_rollouts=min(round(n / 0.75), n + 100))
    for n in BUDGETS
}
SEARCHES = {
    **{
        f"bisect, n = {n}": SearchConfig(
            method="bisect", bisect_rollouts=n, z=1.96, max_rollouts=400
        )
        for n in (10, 128, 512)
    },
    "branch": SearchConfig(),
}
"""The baseline has nominal 95 % intervals and the 100 rollouts of screening that branch has."""
BRANCH_ONLY = {"round_rollouts", "round_blocks", "stop_below"}
TRIALS = {
    **BUDGETED,
    "branch, z = 1.96": SearchConfig(z=1.96),
    **{f"branch, stop below {c}": SearchConfig(stop_below=c) for c in (0.1, 0.2)},
}
KNOWN = {**SEARCHES, **TRIALS}

Reference: TypeAlias = Callable[
    [ScoredCompletion, Floats, Sequence[int], Generator], tuple[list[int], int]
]
"""(path, its known p, tokens to be found, generator): reported positions and rollouts spent."""


def _cliffs(
    gap: float, path: ScoredCompletion, curve: Floats, sought: Sequence[int], rng: Generator
) -> tuple[list[int], int]:
    return every_token(curve, gap, rng)


def _told(
    n: int, path: ScoredCompletion, curve: Floats, sought: Sequence[int], rng: Generator
) -> tuple[list[int], int]:
    return oracle(path, curve, sought, n, SearchConfig(), rng) if sought else [], n


REFERENCES: dict[str, Reference] = {
    **{f"every token, gap {gap}": partial(_cliffs, gap) for gap in (0.1, 0.2)},
    **{f"oracle, {n} rollouts": partial(_told, n) for n in BUDGETS},
}


def searched(
    path: ScoredCompletion,
    rollouts: Sequence[Rollout],
    config: SearchConfig,
    rng: Generator,
) -> SearchRoutine[PathAnalysis]:
    if config.method == "branch":
        return (yield from search_branch(path, rollouts, config, rng))
    (finding,) = yield from search_bisect([path], config)
    return finding


def parts(
    given: Ids | None, config: SearchConfig, rng: Generator
) -> SearchRoutine[tuple[PathAnalysis, list[CandidatePair], dict[str, Cost]] | None]:
    """One path of one question, its costs kept apart; None if the filter sets it aside."""
    meter: dict[str, dict[Any, Cost]] = {k: {} for k in ("filter", "search", "screen", "confirm")}
    whole = RolloutQuery((), config.filter_rollouts, "filter")
    (rollouts,) = yield from with_cost(request([whole]), meter["filter"])
    passed = sum(o.success for o in rollouts) / len(rollouts)
    if not config.p_min <= passed <= config.p_max:
        return None
    ids, verdict = rollouts[0].ids, rollouts[0].verdict
    if given is not None:
        ((judged,),) = yield from request([RolloutQuery(given, 1, "search")])
        ids, verdict = given, judged.verdict
    (rows,) = yield from request_logprobs([LogprobQuery(ids)])
    path = ScoredCompletion(ids, verdict, tuple(rows))
    finding = yield from with_cost(searched(path, rollouts, config, rng), meter["search"])
    proposals = yield from with_cost(screen(finding, config), meter["screen"])
    best = rank_proposals(proposals, config.max_pairs)
    pairs = yield from with_cost(confirm(best, config), meter["confirm"])
    return finding, pairs, {name: sum(spent.values(), Cost()) for name, spent in meter.items()}


def kept() -> SearchRoutine[bool]:
    (rollouts,) = yield from request([RolloutQuery((), 16, "filter")])
    return 0.2 <= sum(o.success for o in rollouts) / 16 <= 0.8


def cases(shape: str, seed: int, start: int) -> Iterator[tuple[int, Instance, TabularEngine]]:
    """Instances from offset `start` on that their filter rollouts keep."""
    offset = start
    while True:
        instance = SHAPES[shape](np.random.default_rng([seed, offset]))
        engine = TabularEngine([instance.machine], instance.sampling)
        if run_search(kept(), engine, problem(shape, seed, offset), TabularVerifier(), seed):
            yield offset, instance, engine
        offset += 1


def problem(shape: str, seed: int, offset: int) -> Problem:
    return Problem(f"{shape}-{seed}-{offset}", "0", "right")


def run_one(
    shape: str, offset: int, case: tuple[Instance, TabularEngine], name: str, seed: int
) -> dict[str, Any]:
    """All that is scored of one search of one instance."""
    instance, engine = case
    if name in REFERENCES:
        return run_reference(engine, instance.path, name, [seed, offset])
    started = time.process_time()
    search = parts(instance.path, KNOWN[name], np.random.default_rng([seed, offset]))
    answer = run_search(search, engine, problem(shape, seed, offset), TabularVerifier(), seed)
    assert answer is not None, "the same filter rollouts kept this instance before"
    seconds = time.process_time() - started
    finding, pairs, spent = answer
    result = finding.result
    change = np.diff(engine.curve(result.ids))
    reported = {t.position for t in result.tokens}
    candidates = np.flatnonzero(1 - np.array(result.probs) >= P_GAP).tolist()
    covered = {
        at: covers(finding.deltas[at], float(change[at]))
        for at in candidates
        if at in finding.deltas
    }
    must = np.flatnonzero(np.abs(change) >= P_GAP + ZONE).tolist()
    return {
        **told(change, reported),
        "undecided": len(result.undecided),
        "candidates": len(candidates),
        "cover_all": tally(list(covered.values())),
        "cover_reported": tally([hit for at, hit in covered.items() if at in reported]),
        "cover_near": tally(
            [hit for at, hit in covered.items() if abs(abs(change[at]) - P_GAP) <= 0.02]
        ),
        "pairs": [scored(engine, result.ids, pair, must) for pair in pairs],
        "rollouts": {name: cost.rollouts for name, cost in spent.items()},
        "tokens": {name: cost.tokens for name, cost in spent.items()},
        "stopped": result.stopped,
        "cpu": round(seconds, 4),
    }


def told(change: Floats, reported: Collection[int]) -> dict[str, Any]:
    """The reported positions against the known changes of p(success)."""
    must = set(np.flatnonzero(np.abs(change) >= P_GAP + ZONE).tolist())
    return {
        "reported": len(reported),
        "false": sum(bool(abs(change[at]) < P_GAP - ZONE) for at in reported),
        "must": len(must),
        "found": len(must.intersection(reported)),
        "pivot": bool(np.abs(change).max() >= P_GAP),
    }


def run_reference(
    engine: TabularEngine, ids: Ids | None, name: str, seed: Sequence[int]
) -> dict[str, Any]:
    """A line of something that asks for no rollout; its tokens are not counted."""
    if ids is None:
        raise SystemExit(f"{name}: only shapes with a planted completion have this line")
    curve = np.array(engine.curve(ids))
    verdict = Verdict.PASS if curve[-1] else Verdict.FAIL
    path = ScoredCompletion(ids, verdict, tuple(engine.score((0,), ids)))
    change = np.diff(curve)
    sought = np.flatnonzero(np.abs(change) >= P_GAP + ZONE).tolist()
    reported, spent = REFERENCES[name](path, curve, sought, np.random.default_rng(seed))
    none = {"search": 0}
    return {
        **told(change, reported),
        "undecided": 0,
        "candidates": 0,
        "cover_all": (0, 0),
        "cover_reported": (0, 0),
        "cover_near": (0, 0),
        "pairs": [],
        "rollouts": {"search": spent},
        "tokens": none,
        "stopped": "decided",
        "cpu": 0.0,
    }


def covers(interval: Estimate, value: float) -> bool:
    return interval.low - 1e-9 <= value <= interval.high + 1e-9


def tally(hits: Sequence[bool]) -> tuple[int, int]:
    return sum(hits), len(hits)


def scored(
    engine: TabularEngine, ids: Ids, pair: CandidatePair, must: Sequence[int]
) -> dict[str, Any]:
    at = ids[: pair.position]
    truth = engine.success((*at, pair.chosen)) - engine.success((*at, pair.rejected))
    return {
        "criterion": pair.criterion,
        "pvalue": pair.pvalue,
        "gap": pair.gap,
        "truth": truth,
        "at": pair.position,
        "must": pair.position in must,
    }


def sources(name: str) -> str:
    """Digest of the code that decides the figures of a search; comments and docstrings are free."""
    files = [ROOT / "pts" / "stats.py", ROOT / "pts" / "types.py", FilePath(__file__)]
    files += [ROOT / "pts" / "engines" / "tabular.py", ROOT / "pts" / "testing" / "shapes.py"]
    if name in REFERENCES:
        files.append(FilePath(__file__).with_name("search_references.py"))
    files += sorted((ROOT / "pts" / "algorithm").glob("*.py"))
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        digest.update(bare(ast.parse(file.read_text())).encode())
    return digest.hexdigest()


def bare(tree: ast.Module) -> str:
    """The syntax tree as text, without docstrings."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            texts = [
                n for n in body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
            ]
            node.body = [n for n in body if n not in texts]  # type: ignore[attr-defined]
    return ast.dump(tree)


class Lines:
    """The lines of one search of one shape, on file."""

    def __init__(self, folder: FilePath, name: str, seed: int) -> None:
        self.name, config = name, KNOWN.get(name, SearchConfig())
        self.header = {
            "seed": seed,
            "sources": sources(name),
            "settings": config.model_dump(
                mode="json", exclude=BRANCH_ONLY if config.method == "bisect" else None
            ),
        }
        self.path = folder / f"{name.replace(' ', '').replace(',', '-')}.jsonl"
        self.rows: list[dict[str, Any]] = self._read()

    def _read(self) -> list[dict[str, Any]]:
        """Earlier lines of the same search; a torn last line is cut off."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.header) + "\n")
        text = self.path.read_text()
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        if "".join(whole) != text:
            self.path.write_text("".join(whole))
        first, *rest = map(json.loads, whole)
        if first != self.header:
            raise SystemExit(f"{self.path} was made by other sources or settings; move it away")
        return rest

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def measure(shape: str, searches: Sequence[Lines], instances: int, seed: int) -> None:
    """Bring every search of a shape to so many instances."""
    done = min((lines.rows for lines in searches), key=len)
    first = list(SHAPES).index(shape) * 10_000
    stream = cases(shape, seed, done[-1]["offset"] + 1 if done else first)
    for k in range(len(done), instances):
        offset, instance, engine = next(stream)
        for lines in searches:
            if len(lines.rows) == k:
                row = run_one(shape, offset, (instance, engine), lines.name, seed)
                lines.add({"offset": offset, **row})
            if lines.rows[k]["offset"] != offset:
                raise SystemExit(f"{lines.path}: line {k + 2} is of another instance; move it away")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1000, help="1000 for tuning, 500000 for final")
    parser.add_argument("--instances", type=int, default=40)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--searches", nargs="+", choices=[*KNOWN, *REFERENCES])
    parser.add_argument("--out", type=FilePath, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--name", default="search_tabular")
    return parser.parse_args()


def searches_of(shape: str) -> list[str]:
    """What a shape is searched by: `reasoning` by everything that there is."""
    return [*KNOWN, *REFERENCES] if shape == "reasoning" else list(SEARCHES)


def main() -> None:
    args = arguments()
    folder = ROOT / "runs" / f"{args.name}-{args.seed}"
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    headers: dict[str, Any] = {}
    for shape in args.shapes:
        names = args.searches or searches_of(shape)
        searches = [Lines(folder / shape, name, args.seed) for name in names]
        measure(shape, searches, args.instances, args.seed)
        found[shape] = {lines.name: lines.rows[: args.instances] for lines in searches}
        headers |= {lines.name: lines.header for lines in searches}
        print(f"{shape}: done", flush=True)
    command = f"python benchmarks/search_tabular.py --seed {args.seed} --instances {args.instances}"
    about = {"command": command, "date": time.strftime("%Y-%m-%d"), "searches": headers}
    figures = report(found)
    args.out.mkdir(parents=True, exist_ok=True)
    whole = json.dumps({"about": about, "shapes": figures}, indent=1) + "\n"
    (args.out / f"{args.name}.json").write_text(whole)
    (args.out / f"{args.name}.md").write_text(tables(figures, about))


if __name__ == "__main__":
    main()
