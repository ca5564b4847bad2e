"""Where steps end: rules of text, and what holds for any cut of any text into tokens."""

from __future__ import annotations

import random
import re

import pytest

from pts.engines.boundaries import completion_steps, step_ends
from pts.errors import EngineError
from pts.types import Ids

from .scripted import ScriptedEngine


def steps(text: str) -> list[str]:
    """The text cut into its steps; tokens are words with the space before them, and signs."""
    pieces = re.findall(r" ?\w+| ?[^\w\s]|\s", text)
    assert "".join(pieces) == text
    return cut(pieces, step_ends(pieces))


def cut(pieces: list[str], ends: list[int]) -> list[str]:
    return ["".join(pieces[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He has 4. She has 5.", ["He has 4.", " She has 5."]),
        ("How many? Add them! Done.", ["How many?", " Add them!", " Done."]),
        ("One line\nanother line", ["One line\n", "another line"]),
        ("First.\n\n\nSecond. \n Third.\n", ["First.\n\n\n", "Second. \n", " Third.\n"]),
        ('He said "no." Then (see it.) So **this.** End', None),
        ("no end at all " * 50, ["no end at all " * 50]),
        ("\n  x = 1\ny = 2", ["\n  x = 1\n", "y = 2"]),
        ("x = 3. y = 4.", ["x = 3.", " y = 4."]),
        ("你好。我们算！对", ["你好。", "我们算！", "对"]),
    ],
)
def test_lines_and_sentences(text: str, expected: list[str] | None) -> None:
    if expected is None:
        expected = ['He said "no."', " Then (see it.)", " So **this.**", " End"]
    assert steps(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "It costs 3.5 or .5 pounds, v2.0.1 of a.b",
        "Dr. Smith, Mrs. J. Jones and et al. came vs. Fig. 3 (cf. Eq. 2)",
        "e.g. this, i.e. that, at 5 p.m. in the U.S. today",
        "1. Add the numbers",
        "- 2. Add the numbers",
        "## a. Add the numbers",
        "iv. Add the numbers",
        "5! = 120 and n! ways",
        "really?no",
    ],
)
def test_signs_that_end_no_sentence(text: str) -> None:
    assert steps(text) == [text]


def test_a_line_ends_whatever_its_last_word() -> None:
    assert steps("see Fig.\nThen 2.\n3. Go") == ["see Fig.\n", "Then 2.\n", "3. Go"]


def test_the_number_of_a_list_is_known_by_its_place() -> None:
    assert steps("It is 2. Add 3") == ["It is 2.", " Add 3"]


def test_tokens_are_never_split() -> None:
    # The end lies inside the second token, which holds text of the next sentence too.
    assert cut(["A", "b. C", "d. ", "E"], step_ends(["A", "b. C", "d. ", "E"])) == [
        "Ab. C",
        "d. ",
        "E",
    ]
    assert step_ends(["a.", "\nb", "\n", "\n", "", "c"]) == [1, 5, 6]
    assert step_ends(["a. b. c. d"]) == [1]
    assert step_ends(["", "", ""]) == [3]
    assert step_ends([]) == []


def chunks(text: str, draw: random.Random, longest: int) -> list[str]:
    pieces = []
    while text:
        n = draw.randint(0, longest)
        pieces.append(text[:n])
        text = text[n:]
    return pieces


@pytest.mark.parametrize("seed", range(60))
def test_any_text_in_any_tokens(seed: int) -> None:
    draw = random.Random(seed)
    alphabet = ["a", "B", "3", ".", "!", "?", " ", "\n", ")", "e.g.", "。", "é", "Dr", "\t"]
    text = "".join(draw.choices(alphabet, k=draw.randint(1, 80)))
    for longest in (1, 2, 7):
        pieces = chunks(text, draw, longest)
        ends = step_ends(pieces)
        assert ends == sorted(set(ends))
        assert ends[0] > 0
        assert ends[-1] == len(pieces)
        whole = cut(pieces, ends)
        assert "".join(whole) == text
        if longest == 1:  # tokens of one character: the rules alone decide
            assert all(step.strip() for step in whole) or not text.strip()
            for step in whole[:-1]:
                assert "\n" in step or re.search(r"[.!?。]\)*\s*$", step)
            for step in whole:
                assert not re.search(r"\S\s*\n\s*\S", step)


def test_the_cut_into_tokens_moves_a_boundary_by_less_than_a_token() -> None:
    text = "He has 3.5 kg. She has 2 kg. Together?\nIt is 5.5 kg. Done.\n"
    fine = [sum(map(len, list(text)[:end])) for end in step_ends(list(text))]
    for seed in range(40):
        pieces = [p for p in chunks(text, random.Random(seed), 3) if p]
        coarse = [len("".join(pieces[:end])) for end in step_ends(pieces)]
        assert len(coarse) == len(fine)
        assert all(abs(a - b) < 3 for a, b in zip(coarse, fine, strict=True))


def test_a_stop_token_belongs_to_the_last_step() -> None:
    class Lines(ScriptedEngine):
        def token_texts(self, ids: Ids) -> list[str]:
            return [{0: "<stop>", 1: "a", 2: "\n", 3: "<stop>"}[i] for i in ids]

    assert completion_steps(Lines(), (1, 2, 1, 2, 0)) == [2, 5]
    assert completion_steps(Lines(), (1, 2, 1, 2, 3)) == [2, 4, 5], "3 is a token like any other"
    assert completion_steps(Lines(), (1, 2, 1)) == [2, 3]


def test_pieces_that_do_not_match_the_tokens_are_refused() -> None:
    class Short(ScriptedEngine):
        def token_texts(self, ids: Ids) -> list[str]:
            return ["a"]

    with pytest.raises(EngineError, match=r"Short\.token_texts gave 1 texts for 2 tokens"):
        completion_steps(Short(), (1, 2))
