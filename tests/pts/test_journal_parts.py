"""Journals in several files, and what is read of them without parsing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pts.errors import DataError, JournalError
from pts.files import dumps, leading_text, prefix_digest
from pts.runtime.journal import Journal, JournalPart
from pts.runtime.results import ResultFile, record_line

from .test_store import OUTCOMES, RECORD, filled, named

HERE = prefix_digest(())
RUN = {"seed": 0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_a_worker_s_part_is_read_with_the_journal(path: Path) -> None:
    filled(path)
    with Journal(path, RUN) as journal, JournalPart(path, RUN, 1) as part:
        assert isinstance(part, JournalPart)
        part.give("a", journal.take("a"))
        replay = part.begin("a", "d1")
        assert replay.rollouts[HERE, "filter"] == dict(enumerate(OUTCOMES))
        part.record("a", HERE, "filter", 3, OUTCOMES)
        part.begin("new", "d3")
    for name in ("journal-x.jsonl", "journal-.jsonl", "other-0.jsonl"):
        (path.parent / name).write_text("no part of it")
    with Journal(path, RUN) as journal:
        replay = journal.begin("a", "d1")
        assert replay.rollouts[HERE, "filter"] == dict(enumerate(OUTCOMES * 2))
        with pytest.raises(JournalError, match="'new' has changed"):
            journal.begin("new", "d4")
    assert path.with_name("journal-1.jsonl").read_text().count("\n") == 3, "header, o, begin"


def test_a_part_of_another_run_is_refused(path: Path) -> None:
    Journal(path, RUN).close()
    JournalPart(path, {"seed": 1}, 0).close()
    with pytest.raises(JournalError, match=r"journal-0\.jsonl belongs to another run"):
        Journal(path, RUN)


def test_what_a_dead_worker_recorded_is_regained_at_any_byte(path: Path) -> None:
    """Only of its questions, only since it was told to search, its torn last line dropped."""
    own = path.with_name("journal-0.jsonl")
    with Journal(path, RUN) as journal:
        with JournalPart(path, RUN, 0) as part:
            part.record("a", HERE, "filter", 0, OUTCOMES)
            start = journal.part_size(0)
            part.record("a", HERE, "filter", 3, OUTCOMES)
            part.record("b", HERE, "filter", 0, OUTCOMES)
            part.record("a", HERE, "filter", 6, OUTCOMES)
        whole = own.read_bytes()
        for size in range(start, len(whole) + 1):
            own.write_bytes(whole[:size])
            found = journal.regain(0, start, {"a"})
            complete = whole[start:size].splitlines(keepends=True)
            ends = [line.endswith(b"\n") and b'"q":"a"' in line for line in complete]
            assert len(found.get("a", ())) == 2 * sum(ends)
            assert found.keys() <= {"a"}
            assert own.read_bytes() == whole[:size][: whole[:size].rfind(b"\n") + 1]
        assert journal.regain(1, 0, {"a"}) == {}, "a worker that never wrote"


def test_finished_questions_are_passed_over(path: Path) -> None:
    filled(path)
    with Journal(path, RUN, lambda: {"a"}) as journal:
        assert len(journal.take("a")) == 0
        assert len(journal.take("b")) == 2


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
