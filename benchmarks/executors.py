"""One worker, two processes, two Ray actors: wall time and the CPU seconds of all processes, warm.

    python benchmarks/executors.py --seconds 180
    python benchmarks/executors.py --seconds 180 --policy runs/phi-nano-seed0/sft/model

Every worker has one thread (`OMP_NUM_THREADS=1`) on a machine with two quiet cores. Without
--policy the engine is tabular, so that the work is that of the search itself; with it, transformers
on dev questions of --recipe (phi-nano). All arms search the same questions into a run folder of
their own, so many that two workers are busy for --seconds, in turn, --rounds times, the order
moving on. What is timed starts when all workers have loaded their engines and searched some
questions, and ends when the last record is on file. CPU seconds are those of the driver, of the
workers, and of all other processes below the driver: Ray's own. Writes results/executors.json and
.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pts.algorithm.question import search_question
from pts.config import SamplingConfig, SearchConfig
from pts.engines.base import Engine
from pts.engines.tabular import TabularEngine, TabularVerifier
from pts.files import write_json
from pts.runtime.executors import EXECUTORS
from pts.runtime.leasing import LeasingExecutor
from pts.runtime.searcher import QuestionSearcher, SearchSpec
from pts.runtime.session import RunSession
from pts.testing.shapes import wandering
from pts.types import Problem
from pts.verifiers.base import Verifier

RESULTS = Path(__file__).parent / "results"
ARMS = {"one": ("", 1), "pool": ("pool", 2), "ray": ("ray", 2)}
"""The executor, none being this process itself, and the number of workers."""
WINDOW, WARM, MACHINES = 16, 8, 16
"""Questions that a worker has under way, and those that it gets to warm up; machines of the
tabular engine, which questions take in turn."""


def tabular() -> TabularEngine:
    """Machines of 60 tokens whose every completion has pivotal ones."""
    machines = [wandering(np.random.default_rng(seed)).machine for seed in range(MACHINES)]
    return TabularEngine(machines, SamplingConfig(max_new_tokens=70))


def transformers(policy: Path, recipe: str) -> Engine:
    from align.models.load import load_policy
    from align.pipeline.recipe import load_recipe
    from pts.engines.transformers.engine import TransformersEngine

    settings = load_recipe(recipe)
    return TransformersEngine(*load_policy(policy, settings.model), settings.sampling)


def asked(
    given: argparse.Namespace, count: int
) -> tuple[Callable[[], Engine], Verifier, list[Problem]]:
    """What makes an engine, the verifier, and so many questions."""
    if given.policy is None:
        problems = [Problem(f"q{k}", str(k % MACHINES), "right") for k in range(count)]
        return tabular, TabularVerifier(), problems
    from align.pipeline.recipe import load_recipe
    from align.tasks.registry import build_task

    task = build_task(load_recipe(given.recipe).task)
    engine = partial(transformers, given.policy, given.recipe)
    return engine, task.verifier, list(task.problems("dev", count, 0))


def measured(given: argparse.Namespace, arm: str, questions: int) -> dict[str, Any]:
    """One arm, in this process: questions, wall and CPU seconds, once all is warm."""
    name, workers = ARMS[arm]
    warm = WARM * workers
    engine, verifier, problems = asked(given, warm + questions)
    spec = SearchSpec(search_question, verifier, SearchConfig(), 0, WINDOW)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        executor: Any = (
            stack.enter_context(LeasingExecutor(EXECUTORS[name], engine, spec, workers))
            if name
            else QuestionSearcher(engine(), spec)
        )
        RunSession(executor, spec).drive(problems[questions:], progress=False)
        session = RunSession(executor, spec)
        session.open(Path(folder), stack)
        start, before = time.monotonic(), spent()
        session.drive(problems[:questions], progress=False)
        seconds, after = time.monotonic() - start, spent()
    cpu = defaultdict[str, float](float)
    for process, (kind, used) in after.items():
        cpu[kind] += used - before.get(process, (kind, 0.0))[1]
    return {
        "arm": arm, "questions": questions, "seconds": round(seconds, 2),
        "cpu_seconds": {kind: round(used, 2) for kind, used in sorted(cpu.items())},
    }  # fmt: skip


def spent() -> dict[tuple[int, float], tuple[str, float]]:
    """CPU seconds of this process and all below it, those that have ended there included."""
    here, found = psutil.Process(), {}
    for process in (here, *here.children(recursive=True)):
        try:
            times, words = process.cpu_times(), " ".join(process.cmdline())
            key = (process.pid, process.create_time())
        except psutil.NoSuchProcess:
            continue
        worker = "--multiprocessing-fork" in words or words.startswith("ray::ActorWorker")
        kind = "driver" if process == here else "workers" if worker else "others"
        found[key] = (kind, sum(times[:4]))
    return found


def child(given: argparse.Namespace, arm: str, questions: int) -> dict[str, Any]:
    """`measured` in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--arm", arm, "--questions", str(questions)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found), flush=True)
    return found


def page(rows: Sequence[dict[str, Any]], given: argparse.Namespace) -> str:
    """The table in Markdown: medians, and the ratios that are asked for."""
    of = {arm: [row for row in rows if row["arm"] == arm] for arm in ARMS}
    wall = {arm: statistics.median(row["seconds"] for row in found) for arm, found in of.items()}
    engine = f"transformers ({given.recipe})" if given.policy else "tabular"
    lines = [
        "# Executors",
        "",
        f"`python benchmarks/executors.py --seconds {given.seconds:g}`: {rows[0]['questions']}",
        f"questions, {engine} engine, one thread a worker, {os.cpu_count()} cores, medians of",
        f"{len(of['one'])} rounds; load of the machine before: {given.load:.1f}.",
        "",
        "| | wall | faster than one | CPU: driver | workers | others |",
        "|---|---|---|---|---|---|",
    ]
    for arm, found in of.items():
        cpu = [
            statistics.median(row["cpu_seconds"].get(kind, 0.0) for row in found)
            for kind in ("driver", "workers", "others")
        ]
        cells = [f"{wall[arm]:.1f} s", f"{wall['one'] / wall[arm]:.2f}"]
        cells += [f"{used:.1f} s" for used in cpu]
        lines.append(f"| {arm}, {ARMS[arm][1]} | {' | '.join(cells)} |")
    ratio = wall["pool"] / wall["ray"]
    return "\n".join([*lines, "", f"Speed of Ray's two by the pool's two: {ratio:.3f}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--recipe", default="phi-nano")
    parser.add_argument("--out", type=Path, default=RESULTS / "executors")
    parser.add_argument("--arm", choices=list(ARMS), help="only this arm, in this process")
    parser.add_argument("--questions", type=int, help="instead of --seconds")
    given = parser.parse_args()
    if given.arm is not None:
        print(json.dumps(measured(given, given.arm, given.questions)))
        return
    given.load = os.getloadavg()[0]
    questions = given.questions
    if questions is None:
        probe = child(given, "one", 4 * WARM)
        questions = round(4 * WARM / probe["seconds"] * 2 * given.seconds)
    arms = list(ARMS)
    rows = [
        child(given, arm, questions)
        for turn in range(given.rounds)
        for arm in (*arms[turn % 3 :], *arms[: turn % 3])
    ]
    write_json(given.out.with_suffix(".json"), {"load": given.load, "rows": rows})
    told = page(rows, given)
    given.out.with_suffix(".md").write_text(told, encoding="utf-8")
    print(told)


if __name__ == "__main__":
    main()
