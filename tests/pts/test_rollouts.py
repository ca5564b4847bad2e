"""Rollouts that a search keeps: the file, what is given away of it, kills in between."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from pts.data.rollouts import (
    PURPOSES,
    ContinuationPair,
    Drawn,
    KeptRollout,
    NextTokenValue,
    QuestionRollouts,
    read_rollouts,
    rollouts_line,
)
from pts.engines.base import SampleRequest
from pts.errors import DataError, JournalError
from pts.packing import pack_numbers, unpack_numbers
from pts.runtime.search import search
from pts.types import Ids, Problem, Rollout, Verdict, kept_length

from .scripted import STOP, ScriptedEngine, judge_odd, problems
from .slow_search import CONFIG

P, F = Verdict.PASS, Verdict.FAIL


def rollout(verdict: Verdict, *ids: int, cut: bool = False) -> Rollout:
    return Rollout(ids, verdict, cut, len(ids))


DRAWN: Drawn = {
    ((), "filter"): [
        rollout(P, 1, 2, 0),
        rollout(F, 1, 3, 0),
        rollout(P, 1, 2, 0),
        rollout(F, 4, 4, 4, cut=True),
    ],
    ((1, 2), "search"): [rollout(P, 0), rollout(F, 5, 0)],
    ((1, 3), "search"): [rollout(F, 0), rollout(F, 9, 0)],
    ((1, 3), "confirm"): [rollout(F, 100_000, 0), rollout(P, 7, 0)],
    ((1, 2, 5), "confirm"): [rollout(F, 0)],
}


def question(keep: Literal["right", "all"] = "all", drawn: Drawn = DRAWN) -> QuestionRollouts:
    line = rollouts_line("q", (8, 8), "digest", keep, drawn)
    return read_line(line)


def read_line(line: str) -> QuestionRollouts:
    from pts.data.rollouts import _read

    return _read(line.encode())


# Numbers


@pytest.mark.parametrize(
    "numbers", [[], [0], [255], [256, 1], [65_535], [65_536], [2**32], [2**63 - 1], [*range(999)]]
)
def test_packed_numbers_come_back(numbers: list[int]) -> None:
    assert unpack_numbers(pack_numbers(numbers)) == numbers


@pytest.mark.parametrize("text", ["", "?", "AAAA", pack_numbers([1, 2])[:-8], "é"])
def test_damaged_numbers_are_value_errors(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        unpack_numbers(text)


# A line


def test_a_line_gives_back_what_was_drawn_in_order_of_prefix_purpose_and_index() -> None:
    found = question()
    expected = [
        KeptRollout(prefix, purpose, each)
        for prefix in sorted({prefix for prefix, _ in DRAWN})
        for purpose in PURPOSES
        for each in DRAWN.get((prefix, purpose), ())
    ]
    assert list(found.rollouts) == expected
    assert (found.problem_id, found.prompt_ids, found.policy_digest) == ("q", (8, 8), "digest")


def test_a_line_does_not_depend_on_the_order_in_which_places_were_measured() -> None:
    backwards = dict(reversed(DRAWN.items()))
    assert rollouts_line("q", (), "", "all", backwards) == rollouts_line("q", (), "", "all", DRAWN)


def test_right_ones_are_kept_whole_and_of_the_others_the_first_token() -> None:
    for whole, kept in zip(question().rollouts, question("right").rollouts, strict=True):
        told = whole.rollout
        ids = told.ids if told.success else told.ids[:1]
        assert kept == dataclasses.replace(whole, rollout=dataclasses.replace(told, ids=ids))


def test_a_prefix_costs_the_tokens_that_it_does_not_share() -> None:
    """Each prefix of a path of 400 tokens once more: two tokens and four numbers, not 200."""
    path = tuple(range(1000, 1400))
    drawn = {(path[:n], "search"): [rollout(P, 0)] for n in range(1, 400)}
    entry = json.loads(rollouts_line("q", (), "", "all", drawn))
    assert len(unpack_numbers(entry["ids"])) == 2 * 399


# What is given away


def test_right_answers_are_distinct_and_those_of_the_filter_come_first() -> None:
    assert question().answers() == [(1, 2, 0), (1, 3, 7, 0)]
    assert question().answers(purposes=["filter"]) == [(1, 2, 0)]
    assert question("right").answers() == question().answers()
    wrong = [(1, 3, 0), (4, 4, 4), (1, 2, 5, 0), (1, 3, 9, 0), (1, 3, 100_000, 0)]
    assert question().answers(right=False) == wrong


def test_continuations_follow_a_prefix_wherever_they_were_drawn() -> None:
    assert question().continuations((1,)) == [(2, 0), (3, 7, 0)]
    assert question().continuations((1, 2), right=False) == [(5, 0)]
    assert question().continuations((1, 2, 0)) == [], "nothing follows a whole answer"


def test_values_count_those_that_were_forced_to_a_token_and_those_that_took_it() -> None:
    assert question().values() == [
        NextTokenValue((), 1, 2, 3),
        NextTokenValue((), 4, 0, 1),
        NextTokenValue((1,), 2, 1, 2),
        NextTokenValue((1,), 3, 1, 4),
        NextTokenValue((1, 2), 0, 1, 1),
        NextTokenValue((1, 2), 5, 0, 2),
        NextTokenValue((1, 2, 5), 0, 0, 1),
        NextTokenValue((1, 3), 0, 0, 1),
        NextTokenValue((1, 3), 7, 1, 1),
        NextTokenValue((1, 3), 9, 0, 1),
        NextTokenValue((1, 3), 100_000, 0, 1),
    ]
    assert question().values(["confirm"])[:1] == [NextTokenValue((1,), 3, 1, 2)]
    assert question("right").values() == question().values()


def test_pairs_are_right_against_wrong_after_one_prefix() -> None:
    assert question().pairs() == [
        ContinuationPair((), (1, 2, 0), (4, 4, 4), True),
        # Token 2 passed 1 of 2, token 3 1 of 4.
        ContinuationPair((1,), (2, 0), (3, 0), False),
        ContinuationPair((1, 2), (0,), (5, 0), False),
        ContinuationPair((1, 3), (7, 0), (0,), False),
    ]


def test_wrong_answers_of_a_run_that_kept_right_ones_are_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match=r"'q': wrong answers were not kept .* keep: all"):
        question("right").answers(right=False)
    with pytest.raises(DataError, match="keep: all"):
        question("right").pairs()


# A search


class Noting(ScriptedEngine):
    """Notes all that it draws, by prompt, prefix and ids."""

    def __init__(self, width: int = 1) -> None:
        super().__init__(max_new_tokens=8, width=width)
        self.drawn: Counter[tuple[Ids, Ids, Ids]] = Counter()

    def sample(
        self, requests: Iterator[SampleRequest | None]
    ) -> Iterator[tuple[SampleRequest, list[Ids]]]:
        for request, completions in super().sample(requests):
            self.drawn.update((request.prompt, request.prefix, ids) for ids in completions)
            yield request, completions


def searched(
    folder: Path, n: int = 6, keep: str = "all", width: int = 1, **more: Any
) -> tuple[Noting, Any]:
    engine = Noting(width)
    config = CONFIG.model_copy(update={"keep": keep, **more})
    run = search(problems(n), engine, judge_odd, config, output=folder, window=3, progress=False)
    return engine, run


@pytest.mark.parametrize("method", ["branch", "bisect"])
def test_every_rollout_of_a_search_is_kept_with_all_its_ids(tmp_path: Path, method: str) -> None:
    engine, run = searched(tmp_path, method=method)
    kept = Counter(
        (question.prompt_ids, each.prefix, each.rollout.ids)
        for question in read_rollouts(tmp_path)
        for each in question.rollouts
    )
    assert kept == engine.drawn
    purposes = Counter(e.purpose for q in read_rollouts(tmp_path) for e in q.rollouts)
    assert purposes == {purpose: t.rollouts for purpose, t in run.summary.spent.items()}
    assert purposes["confirm"] > 0
    assert [q.problem_id for q in read_rollouts(tmp_path)] == [p.id for p in problems(6)]
    size = (tmp_path / "rollouts.jsonl").stat().st_size
    assert run.summary.rollouts_bytes == size
    assert run.summary.bytes_per_rollout == round(size / engine.drawn.total(), 1)


def test_verdicts_are_those_of_the_verifier(tmp_path: Path) -> None:
    engine, _ = searched(tmp_path)
    for found in read_rollouts(tmp_path):
        for each in found.rollouts:
            stopped = each.completion[-1] == STOP
            odd = engine.decode(each.completion).count("a") % 2 == 1
            assert each.rollout.success == (stopped and odd)
            assert each.rollout.truncated == (not stopped)


def test_the_paths_of_a_search_and_given_completions_are_prefixes_all_the_same(
    tmp_path: Path,
) -> None:
    """A given completion was not drawn, so no rollout of the filter tells its prefixes."""
    given = (1, 3, 3, 3, 3, 3, STOP)
    asked = [dataclasses.replace(problems(1)[0], completions=(given,))]
    engine = Noting()
    config = CONFIG.model_copy(update={"paths": 0, "method": "bisect", "p_gap": 0.06})
    search(asked, engine, judge_odd, config, output=tmp_path, progress=False)
    (found,) = read_rollouts(tmp_path)
    assert Counter((found.prompt_ids, e.prefix, e.rollout.ids) for e in found.rollouts) == (
        engine.drawn
    )
    assert any(e.prefix and e.prefix == given[: len(e.prefix)] for e in found.rollouts)


def test_what_is_kept_changes_no_result(tmp_path: Path) -> None:
    for keep in ("none", "right", "all"):
        searched(tmp_path / keep, keep=keep)
    for name in ("results.jsonl", "pairs.jsonl", "token_texts.json"):
        assert len({(tmp_path / k / name).read_bytes() for k in ("none", "right", "all")}) == 1
    assert not (tmp_path / "none" / "rollouts.jsonl").exists()
    right, whole = (list(read_rollouts(tmp_path / keep)) for keep in ("right", "all"))
    for a, b in zip(right, whole, strict=True):
        assert a.answers() == b.answers()
        assert a.values() == b.values()
        for x, y in zip(a.rollouts, b.rollouts, strict=True):
            n = kept_length("right", y.rollout.success, y.rollout.length)
            assert x.rollout.ids == y.rollout.ids[:n]


def test_the_file_does_not_depend_on_order_window_or_batches(tmp_path: Path) -> None:
    searched(tmp_path / "a")
    searched(tmp_path / "b", width=7)
    engine, config = Noting(3), CONFIG
    backwards = problems(6)[::-1]
    search(backwards, engine, judge_odd, config, output=tmp_path / "c", window=6, progress=False)
    one, two = ((tmp_path / f / "rollouts.jsonl").read_bytes() for f in "ab")
    assert one == two
    lines = (tmp_path / "c" / "rollouts.jsonl").read_bytes().splitlines()
    assert lines[::-1] == one.splitlines()


@pytest.mark.parametrize("lost", [1, 3])
def test_a_kill_between_rollouts_and_result_is_no_loss(tmp_path: Path, lost: int) -> None:
    """The last results are gone, the last rollouts torn: both are made again, nothing is drawn."""
    searched(tmp_path)
    names = ("results.jsonl", "rollouts.jsonl")
    whole = {name: (tmp_path / name).read_bytes() for name in names}
    lines = whole["results.jsonl"].splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_bytes(b"".join(lines[:-lost]))
    (tmp_path / "rollouts.jsonl").write_bytes(whole["rollouts.jsonl"][:-20])
    engine, _ = searched(tmp_path)
    assert engine.drawn == {}
    assert {name: (tmp_path / name).read_bytes() for name in names} == whole


def test_questions_may_be_added_and_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    searched(tmp_path / "whole", 6)
    searched(tmp_path / "grown", 3)
    searched(tmp_path / "grown", 6)
    files = [tmp_path / f / "rollouts.jsonl" for f in ("whole", "grown")]
    assert files[0].read_bytes() == files[1].read_bytes()
    before = files[0].stat().st_mtime_ns
    searched(tmp_path / "whole", 6)
    assert files[0].stat().st_mtime_ns == before


def test_a_finished_run_needs_no_more_than_the_first_line_of_its_journal(tmp_path: Path) -> None:
    searched(tmp_path / "whole", 6)
    searched(tmp_path / "cut", 3)
    journal = tmp_path / "cut" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    engine, run = searched(tmp_path / "cut", 3)
    assert engine.drawn == {}
    assert len(list(run.results)) == 3
    searched(tmp_path / "cut", 6)
    for name in ("results.jsonl", "rollouts.jsonl", "pairs.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_keep_is_refused_by_name(tmp_path: Path) -> None:
    searched(tmp_path, keep="none")
    with pytest.raises(JournalError, match=r"config\.keep: the journal has 'none', this run 'all'"):
        searched(tmp_path)


def test_a_file_without_a_finished_question_is_refused_with_a_remedy(tmp_path: Path) -> None:
    searched(tmp_path)
    whole = (tmp_path / "rollouts.jsonl").read_bytes()
    (tmp_path / "rollouts.jsonl").write_bytes(b"")
    with pytest.raises(JournalError, match=r"lacks question 'q0' \(6 in all\).*delete both"):
        searched(tmp_path)
    for name in ("rollouts.jsonl", "results.jsonl"):
        (tmp_path / name).unlink()
    engine, _ = searched(tmp_path)
    assert engine.drawn == {}
    assert (tmp_path / "rollouts.jsonl").read_bytes() == whole


def test_damage_in_the_journal_s_ids_names_the_line(tmp_path: Path) -> None:
    searched(tmp_path)
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b'"t":"' in line)
    entry = json.loads(lines[at])
    numbers = unpack_numbers(entry["t"])
    entry["t"] = pack_numbers([*numbers[:3], numbers[3] + 1, *numbers[4:]])
    lines[at] = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines))
    for name in ("rollouts.jsonl", "results.jsonl"):
        (tmp_path / name).unlink()
    with pytest.raises(JournalError, match=rf"journal\.jsonl, line {at + 1}: damaged"):
        searched(tmp_path)


# Reading


def entry(**changes: Any) -> str:
    return json.dumps({**json.loads(rollouts_line("q", (), "d", "all", DRAWN)), **changes})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Invalid JSON"),
        ("[]", "object"),
        (entry(format=2), "format 2, keep all; this version reads format 1"),
        (entry(keep="none"), "format 1, keep none"),
        (entry(keep="some"), "keep: "),
        (entry(ids="AAAA"), "packed numbers are damaged"),
        (entry(ids=pack_numbers([1])), "numbers are missing"),
        (entry(ids=pack_numbers([1] * 99)), "more ids than its rollouts have"),
        (entry(places=pack_numbers([0, 0, 1])), "numbers are missing"),
        (entry(places=pack_numbers([3, 0, 0, 0, 0, 0]), ids=pack_numbers([])), "shares more"),
        (entry(prompt=base64.b64encode(b"no zlib").decode()), "packed numbers are damaged"),
    ],
)
def test_a_damaged_line_is_one_error_that_names_it(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.write_text(entry() + "\n" + line + "\n")
    found = iter(read_rollouts(path))
    next(found)
    with pytest.raises(DataError, match=rf"(?s)rollouts\.jsonl, line 2: .*{message}"):
        next(found)


def test_a_run_that_kept_none_says_so(tmp_path: Path) -> None:
    searched(tmp_path, n=1, keep="none")
    with pytest.raises(DataError, match=r"rollouts\.jsonl: .*\(keep: none\)"):
        read_rollouts(tmp_path)


def test_problems_set_aside_keep_what_was_judged(tmp_path: Path) -> None:
    """A verifier that breaks after the filter: its rollouts are judged and kept."""
    asked = 0

    def verifier(problem: Problem, text: str) -> Any:
        nonlocal asked
        asked += 1
        if asked > 4:
            raise OSError("no worker")
        return judge_odd(problem, text)

    run = search(problems(1), Noting(), verifier, CONFIG, output=tmp_path, window=1, progress=False)
    assert run.summary.questions == {"unscored": 1}
    (found,) = read_rollouts(tmp_path)
    assert found.problem_id == "q0"
