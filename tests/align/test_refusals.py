"""Data on refusals: which rows the answers of a model ask for, and how they are cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from align.benchmarks.scores import simpleqa_score
from align.data.chat import IdPair
from align.errors import RecipeError, StageError
from align.mixture.losses import settle
from align.refusals.rows import Knowledge, refusal_rows
from align.refusals.run import make_refusals, summary_text
from align.refusals.settings import REFUSALS, RefusalConfig


def known(right: int, wrong: int, refused: int = 0, **more: Any) -> Knowledge:
    replies = ("Ada.",) * right, ("Bob.",) * wrong
    return Knowledge("q", "Who?", *replies, right + wrong + refused, **more)


@pytest.mark.parametrize(
    ("right", "wrong", "refused", "chat", "pairs"),
    [
        (8, 0, 0, "known", ["right_over_refusal"]),
        (5, 3, 0, "known", ["right_over_refusal", "refusal_over_wrong"]),
        (4, 4, 0, None, ["right_over_refusal", "refusal_over_wrong"]),
        (1, 7, 0, "unknown", ["right_over_refusal", "refusal_over_wrong"]),
        (0, 8, 0, "unknown", ["refusal_over_wrong"]),
        (0, 4, 4, None, ["refusal_over_wrong"]),
        (0, 0, 8, None, []),
    ],
)
def test_rows_are_those_of_the_reports_table(
    right: int, wrong: int, refused: int, chat: str | None, pairs: list[str]
) -> None:
    config = RefusalConfig(refusals=("No idea.",))
    chats, found, _ = refusal_rows([known(right, wrong, refused)], config)
    assert [row["kind"] for row in chats] == ([chat] if chat else [])
    replies = {"known": "Ada.", "unknown": "No idea."}
    assert [row["messages"][-1]["content"] for row in chats] == ([replies[chat]] if chat else [])
    assert [row["kind"] for row in found] == pairs
    sides = {"right_over_refusal": ("Ada.", "No idea."), "refusal_over_wrong": ("No idea.", "Bob.")}
    assert [(row["chosen"], row["rejected"]) for row in found] == [sides[kind] for kind in pairs]
    assert all((row["right"], row["wrong"]) == (right / 8, wrong / 8) for row in [*chats, *found])


def test_a_guess_is_no_knowledge_above_sometimes() -> None:
    config = RefusalConfig(sometimes=0.25)
    _, pairs, _ = refusal_rows([known(2, 6)], config)  # 0.25 is not more than 0.25
    assert [row["kind"] for row in pairs] == ["refusal_over_wrong"]


def test_bogus_questions_are_refused_whatever_is_known() -> None:
    chats, _, counts = refusal_rows([known(8, 0, bogus="Who is nobody?")], RefusalConfig())
    said = [[turn["content"] for turn in row["messages"]] for row in chats]
    assert said[0] == ["Who?", "Ada."]
    assert said[1][0] == "Who is nobody?"
    assert said[1][1] in REFUSALS
    assert counts.bogus == 1


def test_replies_that_were_written_come_first_and_equal_sides_make_no_pair() -> None:
    config = RefusalConfig()
    chats, pairs, counts = refusal_rows(
        [known(8, 0, correct="It was Ada.", refusal="I cannot say.")], config
    )
    assert chats[0]["messages"][-1]["content"] == pairs[0]["chosen"] == "It was Ada."
    assert pairs[0]["rejected"] == "I cannot say."
    _, pairs, counts = refusal_rows([known(0, 8, refusal="Bob.")], config)
    assert (pairs, counts.identical) == ([], 1)


def test_the_commonest_answer_is_taken() -> None:
    one = Knowledge("q", "Who?", ("Ada", "Ada Byron.", "Ada Byron."), ("Eve", "Bob", "Bob"), 6)
    _, pairs, _ = refusal_rows([one], RefusalConfig())
    assert pairs[0]["chosen"] == "Ada Byron."
    assert pairs[1]["rejected"] == "Bob"


def test_refusals_that_ship_are_scored_as_such() -> None:
    for text in REFUSALS:
        assert simpleqa_score(["Ada"], text, {})["not_attempted"] == 1


# Files


def answers(folder: Path, rows: list[tuple[dict[str, str], list[float], list[float]]]) -> Path:
    """Results as `align benchmark` writes them."""
    folder.mkdir(parents=True)
    lines = []
    for number, (doc, right, wrong) in enumerate(rows):
        said = ["Ada." if r else "Bob." if w else "?" for r, w in zip(right, wrong, strict=True)]
        none = [1.0 - r - w for r, w in zip(right, wrong, strict=True)]
        lines.append(
            {"doc_id": f"t-{number}", "doc": doc, "filtered_resps": said, "correct": right,
             "incorrect": wrong, "not_attempted": none}
        )  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "samples_t.jsonl").write_text(text)
    (folder / "task.json").write_text('{"policy_digest": "abc"}')
    return folder


def test_files_are_written_with_their_provenance(tmp_path: Path) -> None:
    rows = [
        ({"question": "A?", "other": "A!"}, [1.0, 1.0], [0.0, 0.0]),
        ({"question": "B?", "other": ""}, [0.0, 0.0], [1.0, 1.0]),
    ]
    results = answers(tmp_path / "know", rows)
    config = RefusalConfig(bogus="{{ other }}", reply="It is {{ answer }}")
    result = make_refusals(results, tmp_path / "out", config)
    chats, pairs = (
        [json.loads(line) for line in (tmp_path / "out" / name).read_text().splitlines()]
        for name in ("sft.jsonl", "pairs.jsonl")
    )
    assert [(row["question_id"], row["kind"]) for row in chats] == [
        ("t-0", "known"), ("t-0", "bogus"), ("t-1", "unknown"),
    ]  # fmt: skip
    assert [row["kind"] for row in pairs] == ["right_over_refusal", "refusal_over_wrong"]
    assert chats[0]["messages"][-1]["content"] == "It is Ada."
    assert pairs[1]["rejected"] == "It is Bob."
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["policy_digest"] == "abc"
    assert (summary["usually_right"], summary["usually_wrong"], summary["pairs"]) == (1, 1, 2)
    assert "2 questions, 2 answers each: usually right 1, usually wrong 1" in summary_text(result)
    again = make_refusals(results / "samples_t.jsonl", tmp_path / "out", config)
    assert again == result


def test_bad_input_is_told_with_its_place(tmp_path: Path) -> None:
    rows = [({"question": "A?"}, [1.0, 1.0], [0.0, 0.0])] * 2
    results = answers(tmp_path / "know", rows)
    with pytest.raises(StageError, match=r"nowhere: does not exist; name the folder that align"):
        make_refusals(tmp_path / "nowhere", tmp_path / "out", RefusalConfig())
    with pytest.raises(RecipeError, match=r"line 1: bogus: 'lie' is undefined[\s\S]*line 2: bogus"):
        make_refusals(results, tmp_path / "out", RefusalConfig(bogus="{{ lie }}"))
    with pytest.raises(RecipeError, match=r"question: unexpected '}'"):
        make_refusals(results, tmp_path / "out", RefusalConfig(question="{{ q }"))
    single = answers(tmp_path / "one", [({"question": "A?"}, [1.0], [0.0])])
    with pytest.raises(StageError, match=r"1 answer to a question tells little.*samples=8"):
        make_refusals(single, tmp_path / "out", RefusalConfig())
    (tmp_path / "one" / "samples_t.jsonl").write_text('{"doc_id": 1}\n')
    with pytest.raises(StageError, match="line 1: no answers of a benchmark with score: simpleqa"):
        make_refusals(single, tmp_path / "out", RefusalConfig())


# The first tokens of a pair


def test_first_tokens_are_taken_on_purpose_and_uncounted() -> None:
    pair = IdPair((1, 2), (5, 6, 7, 9), (5, 8, 9))
    settled = settle(pair, 100, False, 9, first_tokens=2)
    assert settled.row == IdPair((1, 2), (5, 6), (5, 8))
    assert settled.losses == ()
    assert settle(pair, 100, False, 9, first_tokens=1).losses == ("identical_sides",)
    assert settle(pair, 100, False, 9).row == pair
    assert settle(pair, 4, False, 9, first_tokens=2).losses == ()  # prompt and two tokens fit
