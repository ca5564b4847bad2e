"""Time and memory of a shard, and of a merge, by the number of questions of the whole run.

    python benchmarks/shards.py --questions 20000 100000 1000000 --merges 20000 100000

Each measured process is one of its own, one after the other. A shard has some 5,000 questions
of its own; the engine is tabular and the settings small: what is measured is the bookkeeping of a
question, not a model. The shards that are merged, four, hold the lines of the first one again and
again, under the ids of their own questions. A line a process goes to the file --out.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

from pts.config import SamplingConfig, SearchConfig
from pts.engines.tabular import Arc, Machine, TabularEngine, TabularVerifier
from pts.runtime.merge import merge_shards
from pts.runtime.search import search
from pts.runtime.shards import QuestionList, Shard
from pts.types import Problem

OUT = Path(__file__).parent / "results" / "shards.jsonl"
OWN, SHARDS, MACHINES = 5000, 4, 500


def problems(count: int) -> Iterator[Problem]:
    """Questions to equal machines, MACHINES different prompts."""
    return (Problem(f"question-{k}", str(k % MACHINES), "right") for k in range(count))


def search_shard(folder: Path, questions: int) -> None:
    """Search the first of as many shards as leave it OWN questions, of machines with one pivot."""

    def answer(p: float) -> list[Arc]:
        return [Arc(1, p, -1), Arc(2, 1 - p, -1)]

    machine = Machine([[Arc(3, 0.5, 1), Arc(4, 0.5, 2)], answer(0.9), answer(0.2)])
    engine = TabularEngine([machine] * MACHINES, SamplingConfig(max_new_tokens=8))
    config = SearchConfig(
        filter_rollouts=4, max_rollouts=8, confirm_rollouts=4, fork_rollouts=2, fdr=0.9
    )
    search(
        problems(questions), engine, TabularVerifier(), config, output=folder,
        shard=Shard(1, questions // OWN), progress=False,
    )  # fmt: skip


def multiply(searched: Path, folder: Path, questions: int) -> list[Path]:
    """The folders of SHARDS finished shards of so many questions, from one that was searched."""
    texts = {name: (searched / name).read_bytes() for name in ("results.jsonl", "rollouts.jsonl")}
    header = json.loads((searched / "journal.jsonl").open().readline())
    parts = []
    for index in range(1, SHARDS + 1):
        shard, part = Shard(index, SHARDS), folder / str(index)
        parts.append(part)
        part.mkdir()
        for name in ("token_texts.json", "summary.json"):
            shutil.copy(searched / name, part)
        header["fingerprint"]["shard"] = str(shard)
        (part / "journal.jsonl").write_text(json.dumps(header) + "\n")
        listed = QuestionList(shard)
        names = [problem.id for problem in listed.own(problems(questions))]
        listed.write(part)
        for file, text in texts.items():
            with (part / file).open("wb") as out:
                for name, line in zip(names, cycle(text.splitlines(keepends=True)), strict=False):
                    before, rest = line.split(b'"problem_id":"', 1)
                    rest = rest[rest.index(b'"') :]
                    out.write(before + b'"problem_id":"' + name.encode() + rest)
    return parts


def child(words: Sequence[str]) -> None:
    """One process: its work, then what it took, as a line of JSON."""
    what, questions, written, *parts = words[0], int(words[1]), *map(Path, words[2:])
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    if what == "merge":
        merge_shards(written, parts)
    else:
        search_shard(written, questions)
    used = resource.getrusage(resource.RUSAGE_SELF)
    own = sum(json.loads((written / "summary.json").read_bytes())["questions"].values())
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    row = {
        "process": what,
        "questions": questions,
        "own": own,
        "seconds": round(time.monotonic() - start, 1),
        "cpu_seconds": round(cpu, 1),
        "cpu_ms_a_question": round(1000 * cpu / own, 3),
        "peak_mib": round(used.ru_maxrss / 1024, 1),
        "written_mib": round(sum(f.stat().st_size for f in written.iterdir()) / 2**20, 1),
        "pairs": sum(1 for _ in (written / "pairs.jsonl").open("rb")),
    }
    print(json.dumps(row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, nargs="+", default=[20_000, 100_000, 1_000_000])
    parser.add_argument("--merges", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    rows = list[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def measure(what: str, questions: int, *folders: Path) -> None:
            command = [sys.executable, __file__, "child", what, str(questions), *map(str, folders)]
            made = subprocess.run(command, capture_output=True, text=True, check=True)
            print(made.stdout.strip(), flush=True)
            rows.append(made.stdout.strip())
            given.out.write_text("\n".join(rows) + "\n")

        for questions in given.questions:
            measure("shard", questions, folder / f"shard-{questions}")
        for questions in given.merges:
            parts = folder / f"parts-{questions}"
            parts.mkdir()
            copies = multiply(folder / f"shard-{given.questions[0]}", parts, questions)
            measure("merge", questions, parts / "merged", *copies)
            shutil.rmtree(parts)


if __name__ == "__main__":
    child(sys.argv[2:]) if sys.argv[1:2] == ["child"] else main()
