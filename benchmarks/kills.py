"""Kills a chain or a search again and again: it must leave what an undisturbed one leaves.

    python benchmarks/kills.py chain 50        about half an hour on one core
    python benchmarks/kills.py search 50

Every process of the run dies by SIGKILL after a random while, and the same command goes on, until
it ends; then another folder begins, until there were as many kills. Prints a line a kill, writes
benchmarks/results/kills_KIND.json, and exits 1 where a result differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = Path(__file__).parent / "results"
SMALL = [
    "task.options.difficulty=hard",  # within reach of so few demonstrations
    "sft.num_examples=480",
    "rejection_sft.num_problems=60",
    "sft.save_steps=4",
    "token_dpo.save_steps=1",
    "full_dpo.save_steps=1",
    "pts.num_problems=12",
    "pts.search.p_min=0.05",
    "pts.search.p_max=0.95",
    "full_dpo.num_problems=32",
    "evaluate.problems=60",
    "evaluate.samples=2",
]
SEARCH = ["temperature=0.7", "max_new_tokens=120", "p_min=0.05", "p_max=0.95"]
LIFE = 16.0
"""Seconds at most that a run lives once it has begun its work; it may also die before that."""
COMPARED = {
    "chain": ("table.json", "**/model.safetensors", "**/pairs.jsonl", "eval/*/items.jsonl"),
    "search": ("results.jsonl", "rollouts.jsonl", "pairs.jsonl", "token_texts.json"),
}


def command(kind: str, folder: Path, work: Path) -> list[str]:
    """The command that is killed and given again."""
    if kind == "chain":
        begin = [sys.executable, "-m", "align.cli", "run", "phi-nano", "seed=0", *SMALL]
        return [*begin, "--quiet", "--output", str(folder)]
    return [
        *(sys.executable, "-m", "pts.cli.main", "search", "--chat", "--quiet", "--seed", "1"),
        *("--model", str(work / "policy")),
        *("--problems", str(work / "problems.jsonl")),
        *("--verifier", r"exact:The answer is (-?\d+)\."),
        *("--output", str(folder), *SEARCH),
    ]


def start(kind: str, folder: Path, work: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = (work / "log.txt").open("ab")
    return subprocess.Popen(
        command(kind, folder, work), cwd=ROOT, stdout=log, stderr=log,
        start_new_session=True, env=environment,
    )  # fmt: skip


def digests(kind: str, folder: Path) -> dict[str, str]:
    """SHA-256 of the files that must be equal."""
    files = sorted(path for pattern in COMPARED[kind] for path in folder.glob(pattern))
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def moment(kind: str, folder: Path) -> str:
    """What a kill has interrupted: the stage, or whether the search was under way."""
    if kind == "search":
        journal = folder / "journal.jsonl"
        return "searching" if journal.exists() and journal.stat().st_size > 2000 else "before"
    manifest, begun = folder / "manifest.json", folder / "sft" / "metrics.jsonl"
    done = json.loads(manifest.read_text())["stages"] if manifest.exists() else {}
    if "sft" not in done and not (begun.exists() and begun.stat().st_size):
        return "before"
    stages = ("sft", "rejection_sft", "pts", "token_dpo", "full_dpo")
    return next((stage for stage in stages if stage not in done), "evaluation")


def prepare(kind: str, work: Path) -> None:
    """For a search: a policy and problems; SFT in small makes the policy."""
    if kind == "chain":
        return
    run = [sys.executable, "-m", "align.cli", "run", "phi-nano", "seed=0", *SMALL]
    run += ["stages=[sft]", "evaluate.skip=[base, sft]", "--quiet"]
    subprocess.run([*run, "--output", str(work / "sft")], cwd=ROOT, check=True)
    (work / "sft" / "sft" / "model").rename(work / "policy")
    problems = [sys.executable, "-m", "align.cli", "problems", "phi-nano", "--count", "48"]
    subprocess.run([*problems, "--output", str(work / "problems.jsonl")], cwd=ROOT, check=True)


def main(kind: str, wanted: int) -> None:
    work = Path(tempfile.mkdtemp(prefix="kills-"))
    rng = random.Random(0)
    prepare(kind, work)
    whole = work / "whole"
    began, ready = time.monotonic(), 0.0
    process = start(kind, whole, work)
    while process.poll() is None:
        time.sleep(0.2)
        if not ready and moment(kind, whole) != "before":
            ready = time.monotonic() - began
    if process.returncode != 0:
        sys.exit((work / "log.txt").read_text())
    expected, undisturbed = digests(kind, whole), time.monotonic() - began
    moments: Counter[str] = Counter()
    runs, unequal = 0, 0
    while sum(moments.values()) < wanted:
        torn = work / f"torn{runs}"
        while True:
            process = start(kind, torn, work)
            try:
                status = process.wait(rng.uniform(0.8 * ready, ready + LIFE))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                moments[moment(kind, torn)] += 1
                print(sum(moments.values()), moment(kind, torn), flush=True)
                continue
            if status != 0:
                sys.exit((work / "log.txt").read_text()[-4000:])
            break
        runs += 1
        equal = digests(kind, torn) == expected
        unequal += not equal
        print(f"run {runs}: {'equal' if equal else 'DIFFERENT'}", flush=True)
        shutil.rmtree(torn)
    found = {
        "kills": sum(moments.values()),
        "interrupted": dict(moments),
        "runs": runs,
        "different": unequal,
        "files": len(expected),
        "seconds_undisturbed": round(undisturbed),
    }
    (OUT / f"kills_{kind}.json").write_text(json.dumps(found, indent=2) + "\n")
    print(found)
    shutil.rmtree(work)
    sys.exit(1 if unequal else 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
