from __future__ import annotations

import random
from pathlib import Path

import pytest

from align.data.preferences import (
    Answer,
    PreferencePair,
    Sampled,
    build_pairs,
    count_outcomes,
    detail_score,
    read_preferences,
    style_score,
    write_preferences,
)
from pts.errors import DataError


def question(name: str, *answers: tuple[str, bool, bool]) -> Sampled:
    """Answers as (text, right, cut); their ids are the text's bytes."""
    return Sampled(name, (1, 2), tuple(Answer(tuple(t.encode()), r, c, t) for t, r, c in answers))


def build(sampled: list[Sampled], **more: float) -> list[PreferencePair]:
    settings = {"per_question": 1, "limit": 0, "style_weight": 0.0, "seed": 0, **more}
    return build_pairs(sampled, "digest", **settings)  # type: ignore[arg-type]


def random_question(seed: int) -> Sampled:
    rng = random.Random(seed)
    answers = [(rng.choice("abcdef"), rng.random() < 0.5) for _ in range(6)]
    return question(f"q{seed}", *((text, right, False) for text, right in answers))


@pytest.mark.parametrize("seed", range(20))
def test_pairs_join_a_right_and_a_wrong_answer_each_used_once(seed: int) -> None:
    asked = random_question(seed)
    right = {a.ids for a in asked.answers if a.right}
    wrong = {a.ids for a in asked.answers if not a.right}
    pairs = build([asked], per_question=9)
    assert len(pairs) == min(len(right), len(wrong))
    assert all(p.chosen_ids in right and p.rejected_ids in wrong for p in pairs)
    assert len({p.chosen_ids for p in pairs}) == len({p.rejected_ids for p in pairs}) == len(pairs)


def test_the_same_seed_gives_the_same_pairs_and_another_one_others() -> None:
    asked = [random_question(seed) for seed in range(30)]
    assert build(asked) == build(asked)
    assert build(asked) != build(asked, seed=1)
    assert build(asked)[:5] == build(asked[:10])[: len(build(asked)[:5])]


def test_questions_with_one_outcome_give_nothing_and_are_counted() -> None:
    asked = [
        question("mixed", ("a", True, False), ("b", False, False)),
        question("right", ("a", True, False)),
        question("wrong", ("b", False, True), ("c", False, False)),
        question("broken"),
    ]
    assert [pair.problem_id for pair in build(asked)] == ["mixed"]
    assert count_outcomes(asked) == {
        "questions": 4,
        "questions_mixed": 1,
        "questions_all_right": 1,
        "questions_all_wrong": 1,
        "questions_unscored": 1,
    }


def test_cut_answers_are_rejected_only_after_the_others() -> None:
    answers = [("good", True, False), *((f"cut{i}", False, True) for i in range(9))]
    whole = question("q", *answers, ("whole", False, False))
    only_cut = question("q", *answers)
    for seed in range(10):
        assert not build([whole], seed=seed)[0].rejected_truncated
        assert build([only_cut], seed=seed)[0].rejected_truncated


def test_limit_keeps_a_random_share_in_order() -> None:
    asked = [question(f"{i}", ("a", True, False), ("b", False, False)) for i in range(40)]
    kept = [int(pair.problem_id) for pair in build(asked, limit=10)]
    assert kept == sorted(kept)
    assert len(kept) == 10
    assert kept != list(range(10))


def test_style_weight_tilts_the_choice_of_the_right_answer() -> None:
    asked = [
        question(
            f"{i}", ("1 + 1 = 2.\nSo 2.", True, False), ("2  ", True, False), ("3", False, False)
        )
        for i in range(200)
    ]

    def share(weight: float) -> float:
        return sum(len(p.chosen_ids) > 3 for p in build(asked, style_weight=weight)) / 200

    # Scores (5, 2) against (4, 1): a mean of 3.5 against 2.5, so exp(weight) to 1.
    assert share(0.0) == pytest.approx(0.5, abs=0.11)
    assert share(1.0) == pytest.approx(0.731, abs=0.1)
    assert share(50.0) == 1.0


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("The sum is 2.", 5),
        ("x = 2", 5),
        ("", 4),
        (" blank first", 4),
        ("two  blanks", 4),
        ("no end,", 4),
        ("broken \ufffd.", 4),
        ("again.\nagain.\nagain.", 4),
        (" \ufffd  a\n\ufffd  a\n,", 1),
    ],
)
def test_style(text: str, style: int) -> None:
    assert style_score(text) == style


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("", 1),
        ("2", 1),
        ("1 + 1 = 2. So 2.", 2),
        ("a\nb\n\nc", 3),
        ("a\n" * 9, 5),
        ("3.5 apples", 1),
    ],
)
def test_detail(text: str, detail: int) -> None:
    assert detail_score(text) == detail


def test_files_round_trip_and_name_a_broken_line(tmp_path: Path) -> None:
    pairs = build([random_question(seed) for seed in range(5)])
    write_preferences(tmp_path / "pairs.jsonl", pairs)
    assert read_preferences(tmp_path / "pairs.jsonl") == pairs
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(DataError, match=f"line {len(pairs) + 1}"):
        read_preferences(tmp_path / "pairs.jsonl")
