"""What a journal knows of a question, and what is read of a file without parsing it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pts.errors import DataError, JournalError
from pts.files import dumps, leading_text, prefix_digest
from pts.runtime.journal import Journal, RecordedRollouts
from pts.runtime.results import ResultFile, record_line

from .test_store import OUTCOMES, RECORD, filled, named

HERE = prefix_digest(())
RUN = {"seed": 0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_lines_of_a_question_are_found_until_it_is_forgotten(path: Path) -> None:
    """Those that are appended while a worker has it too, so that another can take it over."""
    filled(path)
    with Journal(path, RUN) as journal:
        assert journal.on_file("a").rollouts[HERE, "filter"] == dict(enumerate(OUTCOMES))
        journal.record("a", HERE, "filter", 3, OUTCOMES)
        assert journal.on_file("new") == RecordedRollouts()
        journal.append("new", b'{"q":"new","d":"d3"}\n')
        assert journal.on_file("new").digest == "d3"
        replay = journal.on_file("a")
        assert replay.rollouts[HERE, "filter"] == dict(enumerate(OUTCOMES * 2))
        assert replay.digest == "d1"
        journal.forget("a")
        assert journal.on_file("a") == RecordedRollouts()
    with Journal(path, RUN) as journal:
        assert journal.begin("a", "d1") == replay
        assert journal.on_file("a") == RecordedRollouts(), "what begins here is let go of"
        with pytest.raises(JournalError, match="'new' has changed"):
            journal.begin("new", "d4")


def test_a_journal_of_the_time_of_parts_is_refused(path: Path) -> None:
    """It may lack what workers wrote beside it."""
    header = b'{"format":3,"fingerprint":{"seed":0}}\n'
    path.write_bytes(header)
    with pytest.raises(JournalError) as caught:
        Journal(path, RUN)
    assert str(caught.value) == (
        f"{path}: format 3, this version reads and writes 7; finish this run with the version "
        "that began it, or use another output folder"
    )
    assert path.read_bytes() == header


def test_what_was_recorded_of_a_question_is_found_at_any_byte(path: Path) -> None:
    """Of a file that is cut anywhere, whole lines are found and a torn last line is dropped."""
    whole = b"".join(filled(path))
    start = whole.index(b"\n") + 1
    for size in range(start, len(whole) + 1):
        path.write_bytes(whole[:size])
        complete = whole[start:size][: whole[start:size].rfind(b"\n") + 1].splitlines()
        with Journal(path, RUN) as journal:
            found = journal.on_file("a")
            journal.append("a", b'{"q":"a","d":"last"}\n')
            assert journal.on_file("a").digest == "last", "offsets are those after the cut"
        drawn = [len(e["o"]) for e in map(json.loads, complete) if e["q"] == "a" and "o" in e]
        assert sum(map(len, found.rollouts.values())) == sum(drawn)


def test_finished_questions_are_passed_over(path: Path) -> None:
    filled(path)
    with Journal(path, RUN, lambda: {"a"}) as journal:
        assert journal.on_file("a") == RecordedRollouts()
        assert journal.on_file("b").digest == "d2"


def test_what_is_finished_is_asked_only_of_a_journal_of_this_run(path: Path) -> None:
    filled(path)

    def finished() -> set[str]:
        pytest.fail("asked before the journal was known")

    with pytest.raises(JournalError, match="belongs to another run"):
        Journal(path, {"seed": 1}, finished)


def test_damage_within_a_line_is_found_when_its_question_begins(path: Path) -> None:
    lines = filled(path)
    lines[2] = lines[2].replace(b'"o":[[', b'"o":[{')
    path.write_bytes(b"".join(lines))
    with Journal(path, RUN) as journal:
        journal.begin("b", "d2")
        with pytest.raises(JournalError, match=r"journal\.jsonl, line 3: damaged"):
            journal.begin("a", "d1")


@pytest.mark.parametrize("name", ["a", "", 'with "quotes" and \\', "é 漢 \n\t\x00", "\U0001f600"])
def test_the_question_of_a_line_is_read_without_parsing_it(name: str) -> None:
    line = (dumps({"q": name, "at": "x", "o": [[1, 2]]}) + "\n").encode()
    assert leading_text(line, b'{"q":') == name
    assert leading_text(line[:-1], b'{"q":') is None
    assert leading_text(line[:-2] + b"\n", b'{"q":') is None
    assert leading_text(json.dumps({"q": name}).encode() + b"\n", b'{"q":') is None, "blanks"
    assert leading_text(b'{"q":"\xff"}\n', b'{"q":') is None


def test_a_result_file_knows_its_questions_and_moves_lines_only_if_it_must(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(record_line(RECORD) + "\n")
    file = ResultFile(path)
    assert list(file.finished) == [RECORD.result.problem_id]
    file.append(named("b"))
    before = path.stat().st_ino
    assert not file.sort([RECORD.result.problem_id, "b", "c"])
    assert not file.sort([RECORD.result.problem_id]), "others keep to the end"
    assert path.stat().st_ino == before
    assert file.sort(["b"])
    file.close()
    assert list(ResultFile(path).finished) == ["b", RECORD.result.problem_id]
    path.write_text('{"result":{"problem":1}}\n' * 2)
    with pytest.raises(DataError, match=r"results\.jsonl, line 1: not the result of a question"):
        ResultFile(path)
