"""Journal and results: round trips, torn and damaged files, other runs, locks, SIGKILL."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_from_disk

from pts.data.pairs import pairs_dataset, read_pairs, write_pairs
from pts.errors import DataError, JournalError
from pts.files import prefix_digest, replacing
from pts.runtime.journal import Journal, read_header
from pts.runtime.results import (
    Record,
    ResultFile,
    RolloutCost,
    read_records,
    read_results,
    record_line,
)
from pts.runtime.rollouts import rollout_seed
from pts.types import (
    CandidatePair,
    CompletionResult,
    Cost,
    Counts,
    Estimate,
    PivotalToken,
    QuestionResult,
    Rollout,
    TokenPair,
    Verdict,
)

ROOT = Path(__file__).parents[2]
E = Estimate(1 / 3, 0.1, 0.7, 12, "jeffreys")
PAIR = CandidatePair(
    2, 7, 8, 0.1, 0.30000000000000004, "fork", 0.4, Counts(9, 10), Counts(2, 10), 1e-9
)
RESULT = QuestionResult(
    problem_id="q/1 ‘é’",
    prompt_ids=(1, 2, 100_000),
    status="searched",
    solved=E,
    paths=(
        CompletionResult(
            ids=(5, 6, 8, 0),
            verdict=Verdict.PASS,
            probs=(0.9, 0.1, 2 / 3, 1.0),
            curve_at=(0, 2, 4),
            curve=(E, E, Estimate(1.0, 1.0, 1.0, 0, "exact")),
            tokens=(PivotalToken(2, 8, 2 / 3, E, E, E, True),),
            siblings={2: ((7, 0.1, 3, 4), (8, 0.3, 0, 4)), 11: ()},
            stopped="indifferent",
            pairs=(PAIR,),
            undecided=(PivotalToken(1, 6, 0.1, E, E, E, False),),
        ),
    ),
    cost={"filter": Cost(16, 160), "confirm": Cost(20, 99)},
    redrawn=1,
)
RECORD = Record(RESULT, {"filter": RolloutCost(17, 170, 8, 1, 1)})
TOKEN_PAIR = TokenPair("q1", (1, 2, 3), 7, 8, 0.1, 0.3, E, E, E, 0.01, 0.2, "path", "digest")
OUTCOMES = [
    Rollout((4, 0), Verdict.PASS, False, 2),
    Rollout((4, 5, 6), Verdict.FAIL, True, 3),
    Rollout((0,), Verdict.FAIL, False, 1),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def filled(path: Path) -> list[bytes]:
    """A journal of a header and 5 lines; returns its lines."""
    with Journal(path, {"seed": 0}) as journal:
        journal.begin("a", "d1")
        journal.record("a", prefix_digest(()), "filter", 0, OUTCOMES)
        journal.begin("b", "d2")
        journal.record("a", prefix_digest((4,)), "search", 0, OUTCOMES[:1], (2, 9))
        journal.record("a", prefix_digest((4,)), "search", 1, OUTCOMES[1:])
    return path.read_bytes().splitlines(keepends=True)


def test_a_journal_gives_back_what_was_recorded(path: Path) -> None:
    filled(path)
    with Journal(path, {"seed": 0}) as journal:
        replay = journal.begin("a", "d1")
    place = prefix_digest((4,))
    assert replay.rollouts[prefix_digest(()), "filter"] == dict(enumerate(OUTCOMES))
    assert replay.rollouts[place, "search"] == dict(enumerate(OUTCOMES))
    assert replay.redrawn == {(place, "search"): {0: (2, 9)}}
    assert read_header(path)[1] == {"seed": 0}


def test_beginning_again_writes_nothing(path: Path) -> None:
    before = filled(path)
    with Journal(path, {"seed": 0}) as journal:
        journal.begin("a", "d1")
    assert path.read_bytes() == b"".join(before)


def test_a_file_cut_at_any_byte_loses_its_last_line_at_most(path: Path) -> None:
    lines = filled(path)
    whole = b"".join(lines)
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with Journal(path, {"seed": 0}) as journal:
            journal.begin("c", "d3")
        kept = path.read_bytes().splitlines(keepends=True)
        complete = whole[:size].count(b"\n")
        assert kept[: max(1, complete)] == lines[: max(1, complete)]
        assert len(kept) == max(1, complete) + 1


def test_damage_in_the_middle_names_the_line(path: Path) -> None:
    lines = filled(path)
    for number in range(2, len(lines)):
        broken = [*lines[: number - 1], lines[number - 1][:-9] + b"\n", *lines[number:]]
        path.write_bytes(b"".join(broken))
        with pytest.raises(JournalError, match=f"journal.jsonl, line {number}: damaged"):
            Journal(path, {"seed": 0})
        assert path.read_bytes() == b"".join(broken), "a refused journal is left as it was"


def test_another_fingerprint_is_refused_field_by_field(path: Path) -> None:
    run = {"policy": "abc", "sampling": {"temperature": 1.0, "top_k": 0}, "seed": 0}
    Journal(path, run).close()
    other = {"policy": "abc", "sampling": {"temperature": 0.7, "top_k": 0}, "seed": 1}
    with pytest.raises(JournalError) as caught:
        Journal(path, other)
    message = str(caught.value)
    assert "sampling.temperature: the journal has 1.0, this run 0.7" in message
    assert "seed: the journal has 0, this run 1" in message
    assert "policy" not in message
    assert "top_k" not in message


def test_two_processes_cannot_hold_one_journal(path: Path) -> None:
    code = (
        "import sys; from pts.runtime.journal import Journal; from pathlib import Path\n"
        "try: Journal(Path(sys.argv[1]), {})\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    with Journal(path, {}):
        command = [sys.executable, "-c", code, str(path)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.startswith("JournalError")
    assert "another process" in out


def test_results_survive_the_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(record_line(RECORD) + "\n")
    assert list(read_records(path)) == [RECORD]
    assert list(read_results(path)) == [RESULT]
    assert len(read_results(path)) == 1


def test_results_of_older_versions_have_no_undecided_tokens(tmp_path: Path) -> None:
    """They listed them among the tokens, each marked as not decided."""
    line = json.loads(record_line(RECORD))
    del line["result"]["paths"][0]["undecided"]
    (tmp_path / "results.jsonl").write_text(json.dumps(line) + "\n")
    (old,) = read_results(tmp_path / "results.jsonl")
    assert old.paths[0] == dataclasses.replace(RESULT.paths[0], undecided=())


def test_a_result_that_is_being_written_is_none_yet(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    line = record_line(RECORD)
    path.write_text(f"{line}\n{line[:-9]}")
    assert list(read_records(path)) == [RECORD]
    assert len(read_records(path)) == 1


def test_a_journal_of_another_format_is_refused(path: Path) -> None:
    """Its searches would ask for other rollouts: half a question would come from each version."""
    path.write_text('{"format":1,"fingerprint":{"seed":0}}\n')
    with pytest.raises(
        JournalError, match=r"jsonl: format 1, .* writes 7; finish .* or use another output"
    ):
        Journal(path, {"seed": 0})
    assert read_header(path)[1] == {"seed": 0}  # reports of it can still be read


def test_not_a_number_is_refused_when_written() -> None:
    bad = QuestionResult("q", (), "too hard", Estimate(float("nan"), 0, 1, 0, "x"), (), {})
    with pytest.raises(ValueError, match="JSON compliant"):
        record_line(Record(bad, {}))


def test_a_bad_result_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    good = record_line(RECORD)
    path.write_text(good + "\n" + good.replace('"searched"', '"lost"') + "\n")
    with pytest.raises(DataError, match=r"results.jsonl, line 2: result.status"):
        list(read_results(path))


def named(name: str) -> Record:
    return Record(QuestionResult(name, (), "too hard", E, (), {}), {})


def test_a_result_file_drops_a_torn_line_and_sorts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for name in ("c", "x", "a"):
        file = ResultFile(path)
        file.append(named(name))
        file.close()
    with path.open("a") as torn:
        torn.write(record_line(named("b"))[:-5])
    file = ResultFile(path)
    assert file.finished == {"a", "c", "x"}
    file.append(named("b"))
    file.sort(["a", "b", "c", "d"])
    file.close()
    assert [result.problem_id for result in read_results(path)] == ["a", "b", "c", "x"]


def test_pairs_survive_the_round_trip(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.jsonl", [TOKEN_PAIR, TOKEN_PAIR])
    assert read_pairs(tmp_path / "pairs.jsonl") == [TOKEN_PAIR, TOKEN_PAIR]


def test_pairs_become_a_dataset_of_ids(tmp_path: Path) -> None:
    pairs_dataset([TOKEN_PAIR]).save_to_disk(str(tmp_path / "hf"))
    (row,) = load_from_disk(str(tmp_path / "hf"))
    assert row["prompt_ids"] == [1, 2, 3]
    assert (row["chosen_ids"], row["rejected_ids"]) == ([7], [8])
    assert row["expected_gain"] == 0.2
    assert len(pairs_dataset([])) == 0


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines(["half of the new", None])  # type: ignore[list-item]
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


# A real search, killed -------------------------------------------------------------------------


def run_search(folder: Path, *death: object) -> int:
    """Exit status of a search in a process of its own (see `slow_search`)."""
    command = [sys.executable, "-m", "tests.pts.slow_search", str(folder), *map(str, death)]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


def journalled_seeds(path: Path) -> list[int]:
    """The seed of every rollout on file, redraws apart; a torn last line is left out."""
    purposes = {"f": "filter", "s": "search", "c": "confirm"}
    seeds = []
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            continue
        entry = json.loads(line)
        for k in range(len(entry.get("o", []))):
            index, purpose = entry["i"] + k, purposes[entry["p"]]
            seeds.append(rollout_seed(0, entry["q"], entry["at"], purpose, index, 0))  # type: ignore[arg-type]
    return seeds


def test_a_search_killed_again_and_again_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert run_search(whole) == 0
    draw = random.Random(5)
    for kill in range(6):
        before = journalled_seeds(torn / "journal.jsonl") if kill else []
        asked = len((torn / "asked.txt").read_text().split()) if kill else 0
        status = run_search(torn, draw.randint(5, 40), draw.uniform(0.0, 0.005))
        assert status == -signal.SIGKILL
        later = (torn / "asked.txt").read_text().split()[asked:]
        assert not set(before) & set(map(int, later)), "a journalled rollout was drawn again"
    assert run_search(torn) == 0
    for name in ("results.jsonl", "rollouts.jsonl", "pairs.jsonl", "token_texts.json"):
        assert (torn / name).read_bytes() == (whole / name).read_bytes(), name
    summaries = [json.loads((f / "summary.json").read_text()) for f in (whole, torn)]
    assert {**summaries[0], "seconds": 0} == {**summaries[1], "seconds": 0}
    seeds = journalled_seeds(torn / "journal.jsonl")
    assert len(seeds) == len(set(seeds))
    assert sorted(seeds) == sorted(journalled_seeds(whole / "journal.jsonl"))
    assert len((torn / "pairs.jsonl").read_text().splitlines()) > 0
