"""Shards: which questions they hold, how they go on, and that merged they are the undivided run."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pts.config import SamplingConfig, SearchConfig
from pts.data.pairs import read_pairs
from pts.data.rollouts import read_rollouts
from pts.engines.base import RequestQueue
from pts.engines.tabular import Machine, TabularEngine, TabularVerifier
from pts.errors import ConfigError, DataError, JournalError
from pts.report.page import write_report
from pts.report.text import overview
from pts.runtime.merge import merge_shards
from pts.runtime.run_folder import RunFolder
from pts.runtime.search import search
from pts.runtime.shards import Shard
from pts.runtime.summary import SearchRun
from pts.testing.shapes import sparse
from pts.types import Problem

from .test_store import ROOT
from .test_workers import state

CONFIG = SearchConfig(filter_rollouts=8, max_rollouts=60, confirm_rollouts=16, fdr=0.5)
FILES = ("results.jsonl", "pairs.jsonl", "rollouts.jsonl", "token_texts.json")
QUESTIONS = 24
SHARDS = 4


def engine() -> TabularEngine:
    """Five machines of sparse pivots; picklable by its name."""
    machines: list[Machine] = [
        sparse(np.random.default_rng(3 + k), length=24).machine for k in range(5)
    ]
    return TabularEngine(machines, SamplingConfig(max_new_tokens=40))


def problems(count: int = QUESTIONS) -> list[Problem]:
    """Ids in no order of their own: the file's order counts."""
    return [Problem(f"q{7 * k % 1000}", str(k % 5), "right") for k in range(count)]


def run(folder: Path, shard: Shard | None = None, **more: Any) -> SearchRun:
    settings = {"config": CONFIG, "asked": problems(), "engine": engine(), **more}
    asked, config, made = (settings.pop(name) for name in ("asked", "config", "engine"))
    return search(
        asked,
        made,
        TabularVerifier(),
        config,
        output=folder,
        shard=shard,
        progress=False,
        **settings,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder).pairs
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The finished shards, the last one first. To be copied before they are changed."""
    folder = tmp_path_factory.mktemp("parts")
    for index in range(1, SHARDS + 1):
        run(folder / str(index), Shard(index, SHARDS))
    return [folder / str(index) for index in range(SHARDS, 0, -1)]


def copies(parts: Iterable[Path], folder: Path) -> list[Path]:
    return [shutil.copytree(part, folder / f"copy-{part.name}") for part in parts]


def assert_equal(merged: Path, whole: Path) -> None:
    for name in FILES:
        assert (merged / name).read_bytes() == (whole / name).read_bytes(), name
    summaries = [json.loads((f / "summary.json").read_bytes()) for f in (merged, whole)]
    assert summaries[0] | {"seconds": 0} == summaries[1] | {"seconds": 0}
    assert RunFolder(merged).fingerprint == RunFolder(whole).fingerprint


# Which questions


def test_a_shard_is_the_hash_of_the_id() -> None:
    for name in ("q1", "Frage ‘7’", ""):
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
        index = int.from_bytes(digest, "big") % 5 + 1
        assert [i for i in range(1, 6) if Shard(i, 5).holds(name)] == [index]
    assert Shard.parse("2/4") == Shard(2, 4)
    assert str(Shard(2, 4)) == "2/4"


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/b", "1/0", "-1/4", "1/4/2", "½/4"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="shard: got"):
        Shard.parse(text)


def test_shards_divide_the_questions(parts: list[Path]) -> None:
    names = [record.result.problem_id for part in parts for record in RunFolder(part).records]
    assert sorted(names) == sorted(problem.id for problem in problems())
    for part in parts:
        own = [record.result.problem_id for record in RunFolder(part).records]
        assert own == [p.id for p in problems() if Shard(int(part.name), SHARDS).holds(p.id)]
        assert RunFolder(part).fingerprint["shard"] == f"{part.name}/{SHARDS}"


def test_a_folder_begun_as_one_shard_goes_on_as_no_other(
    parts: list[Path], whole: Path, tmp_path: Path
) -> None:
    [part] = copies(parts[-1:], tmp_path)
    for other, said in ((Shard(2, 4), "'2/4'"), (Shard(1, 5), "'1/5'"), (None, "None")):
        with pytest.raises(JournalError, match=f"shard: the journal has '1/4', this run {said}"):
            run(part, other)
    with pytest.raises(JournalError, match="shard: the journal has None, this run '1/4'"):
        run(whole, Shard(1, 4))


def test_a_finished_shard_is_left_as_it_is(parts: list[Path], tmp_path: Path) -> None:
    [part] = copies(parts[:1], tmp_path)
    before = state(part)
    before.pop("shard.json")
    run(part, Shard(4, SHARDS))
    after = state(part)
    after.pop("shard.json")
    assert after == before


def test_a_stream_and_a_list_leave_the_same_shard(parts: list[Path], tmp_path: Path) -> None:
    run(tmp_path, Shard(1, SHARDS), asked=iter(problems()))
    for name in (*FILES, "shard.json"):
        assert (tmp_path / name).read_bytes() == (parts[-1] / name).read_bytes(), name


def test_without_a_folder_a_shard_is_searched_too() -> None:
    shard = Shard(2, SHARDS)
    found = search(problems(), engine(), TabularVerifier(), CONFIG, shard=shard, progress=False)
    names = [result.problem_id for result in found.results]
    assert names == [problem.id for problem in problems() if shard.holds(problem.id)]


def test_a_shard_of_no_questions_ends_and_merges(tmp_path: Path) -> None:
    asked = problems(2)
    run(tmp_path / "whole", asked=asked)
    folders = []
    for index in range(1, 6):
        workers = {"workers": 2, "engine": engine} if index == 3 else {}
        folders.append(tmp_path / str(index))
        run(folders[-1], Shard(index, 5), asked=asked, **workers)
        write_report(folders[-1])
    assert sum(not (folder / "results.jsonl").read_bytes() for folder in folders) >= 3
    merge_shards(tmp_path / "merged", folders)
    assert_equal(tmp_path / "merged", tmp_path / "whole")


# The merge


def test_merged_shards_are_the_run_that_was_not_divided(
    parts: list[Path], whole: Path, tmp_path: Path
) -> None:
    before = [state(part) for part in parts]
    found = merge_shards(tmp_path / "merged", parts)
    assert_equal(tmp_path / "merged", whole)
    assert [state(part) for part in parts] == before
    assert found.pairs == read_pairs(whole / "pairs.jsonl")
    assert sum(len(read_pairs(part / "pairs.jsonl")) for part in parts) > 0
    assert list(read_rollouts(tmp_path / "merged")) == list(read_rollouts(whole))
    assert list(overview(RunFolder(tmp_path / "merged"))) == list(overview(RunFolder(whole)))
    write_report(tmp_path / "merged")
    again = state(tmp_path / "merged")
    merge_shards(tmp_path / "merged", reversed(parts))
    assert {name: data for name, (data, _) in state(tmp_path / "merged").items()} == {
        name: data for name, (data, _) in again.items()
    } | {"merge.json": (tmp_path / "merged" / "merge.json").read_bytes()}


def test_the_error_rate_is_that_of_all_proposals(parts: list[Path], tmp_path: Path) -> None:
    """Benjamini-Hochberg within each shard confirms other pairs than over all of them."""
    merged = merge_shards(tmp_path, parts)
    alone = [pair for part in parts for pair in read_pairs(part / "pairs.jsonl")]
    key = lambda pair: (pair.problem_id, pair.prompt_ids, pair.chosen, pair.rejected)  # noqa: E731
    assert {key(pair): pair.gap for pair in merged.pairs} != {key(pair): pair.gap for pair in alone}


def test_a_search_goes_on_from_a_merged_run(parts: list[Path], whole: Path, tmp_path: Path) -> None:
    merged, longer = tmp_path / "merged", tmp_path / "longer"
    merge_shards(merged, parts)
    assert run(merged).sampled == 0
    assert_equal(merged, whole)
    run(merged, asked=problems(26))
    run(longer, asked=problems(26))
    assert_equal(merged, longer)
    with pytest.raises(DataError, match="has been searched since it was merged"):
        merge_shards(merged, parts)


class Stopping(TabularEngine):
    """Ends after so many answers."""

    left = 60

    def sample(self, requests: RequestQueue) -> Any:
        for answer in super().sample(requests):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
            yield answer


def test_shards_that_were_interrupted_or_had_two_workers_merge_to_the_same(
    parts: list[Path], whole: Path, tmp_path: Path
) -> None:
    stopped = engine()
    stopped.__class__ = Stopping
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", Shard(1, SHARDS), engine=stopped, window=3)
    with pytest.raises(DataError, match="shard 1/4 is not finished; run its command again"):
        merge_shards(tmp_path / "merged", [tmp_path / "stopped", *parts[:-1]])
    run(tmp_path / "stopped", Shard(1, SHARDS))
    run(tmp_path / "two", Shard(2, SHARDS), engine=engine, workers=2)
    merge_shards(tmp_path / "merged", [tmp_path / "two", *parts[:2], tmp_path / "stopped"])
    assert_equal(tmp_path / "merged", whole)


KILLED = """
import os, signal, sys
from pathlib import Path
from pts.runtime.shards import Shard
from tests.pts.test_shards import Stopping, engine, run
made = engine()
made.__class__ = type("Dying", (Stopping,), {})
try:
    run(Path(sys.argv[1]), Shard(3, 4), engine=made, window=3)
except KeyboardInterrupt:
    pass
with (Path(sys.argv[1]) / "journal.jsonl").open("ab") as file:
    file.write(b'{"q":"q7","at"')  # a line is torn
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_shard_that_was_killed_merges_to_the_same(
    parts: list[Path], whole: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed")]
    assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "summary.json").exists()
    run(tmp_path / "killed", Shard(3, SHARDS))
    merge_shards(tmp_path / "merged", [parts[0], *parts[2:], tmp_path / "killed"])
    assert_equal(tmp_path / "merged", whole)


def test_questions_added_to_all_shards_are_merged(parts: list[Path], tmp_path: Path) -> None:
    folders = copies(parts, tmp_path)
    asked = [*problems(3), *problems(30)[24:], *problems()[3:]]
    for folder in folders[:-1]:
        run(folder, Shard(int(folder.name[-1]), SHARDS), asked=asked)
    with pytest.raises(DataError, match=r"another list of questions \(24\) than .* \(30\)"):
        merge_shards(tmp_path / "merged", folders)
    run(folders[-1], Shard(1, SHARDS), asked=asked)
    run(tmp_path / "whole", asked=asked)
    merge_shards(tmp_path / "merged", folders)
    assert_equal(tmp_path / "merged", tmp_path / "whole")


def test_a_partial_merge_says_what_is_missing(parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing: shard 1/4, 3/4; search with --shard, or give"):
        merge_shards(tmp_path / "merged", [parts[0], parts[2]])
    found = merge_shards(tmp_path / "merged", [parts[0], parts[2]], partial=True)
    assert found.summary.missing_shards == ["1/4", "3/4"]
    held = [p.id for p in problems() if any(Shard(i, 4).holds(p.id) for i in (2, 4))]
    assert [result.problem_id for result in found.results] == held
    assert list(overview(RunFolder(tmp_path / "merged")))[-1] == "missing shards: 1/4, 3/4"
    merge_shards(tmp_path / "merged", parts)
    summary = RunFolder(tmp_path / "merged").summary
    assert summary is not None
    assert summary["missing_shards"] == []


def test_all_that_is_wrong_with_shards_is_told_at_once(
    parts: list[Path], whole: Path, tmp_path: Path
) -> None:
    run(tmp_path / "gap", Shard(2, SHARDS), config=CONFIG.model_copy(update={"p_gap": 0.4}))
    run(tmp_path / "five", Shard(3, 5))
    changed = [replace(problems()[0], metadata={"level": 2}), *problems()[1:]]
    run(tmp_path / "asked", Shard(4, SHARDS), asked=changed)
    [twice] = copies(parts[-1:], tmp_path)
    (tmp_path / "none").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.jsonl").write_text("mine\n")
    given = [parts[-1], *(tmp_path / name for name in ("gap", "five", "asked", "none")), twice]
    with pytest.raises(DataError) as caught:
        merge_shards(tmp_path / "out", [*given, whole])
    lines = str(caught.value).splitlines()
    for said in (
        "none: no journal.jsonl; give the folder",
        "holds no shard; search with --shard",
        "gap: config.p_gap is 0.4, but 0.2 in",
        "five: shard 3/5, but",
        "asked: searched another list of questions (24)",
        "copy-1: shard 1/4, as",
        "it holds results.jsonl but no merge.json",
    ):
        assert sum(said in line for line in lines) == 1, (said, lines)
    assert len(lines) == 7, lines
    assert (tmp_path / "out" / "results.jsonl").read_text() == "mine\n"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("shard.json", "{}", "shard.json: damaged; delete it"),
        ("summary.json", "{", "shard 1/4 is not finished"),
        ("results.jsonl", '{"result":{"problem_id":"q1"}}\n', "its questions are not those"),
        ("results.jsonl", "{\n", "results.jsonl, line 1: damaged"),
        ("results.jsonl", '{"result":{"problem_id":"q\udcff"}}\n', "line 1: damaged"),
        ("journal.jsonl", '{"format":5,"fingerprint":{}}\n', "the header tells no policy_digest"),
    ],
)
def test_damaged_shards_are_refused(
    parts: list[Path], tmp_path: Path, name: str, text: str, said: str
) -> None:
    [part] = copies(parts[-1:], tmp_path)
    (part / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=said):
        merge_shards(tmp_path / "merged", [part, *parts[:-1]])
    assert not (tmp_path / "merged" / "summary.json").exists()


def test_shards_without_rollouts_merge(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"keep": "none"})
    folders = [tmp_path / str(index) for index in (1, 2)]
    for index, folder in enumerate(folders, 1):
        run(folder, Shard(index, 2), config=config, asked=problems(6))
    merge_shards(tmp_path / "merged", folders)
    assert not (tmp_path / "merged" / "rollouts.jsonl").exists()
    for folder in folders:
        journal = folder / "journal.jsonl"
        journal.write_text(journal.read_text().replace('"keep":"none"', '"keep":"all"'))
    with pytest.raises(DataError, match=r"no rollouts\.jsonl; restore it"):
        merge_shards(tmp_path / "merged", folders)
