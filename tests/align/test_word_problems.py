"""Stories, splits, solutions, demonstrations: what the shipped task promises."""

from __future__ import annotations

import dataclasses
import random
import re
from itertools import islice

import pytest

from align.errors import RecipeError
from align.pipeline.check import check_recipe
from align.pipeline.recipe import load_recipe
from align.tasks.word_problems.facts import facts
from align.tasks.word_problems.solutions import (
    DemonstrationMix,
    Manner,
    StrategyMix,
    draw_demonstration,
    draw_solution,
    strategy_of,
    write,
    written_lines,
)
from align.tasks.word_problems.stories import (
    FAMILIES,
    HE,
    HELD_OUT,
    LEVELS,
    SHE,
    Step,
    Story,
    draw,
)
from align.tasks.word_problems.task import WordProblems
from align.tasks.word_problems.textbook import TextbookConfig, as_question, documents, train_story
from pts.errors import ConfigError
from pts.types import Problem, Verdict

TASK = WordProblems()
MIX = StrategyMix()
TOM = Story("shop", ("Tom",), "apples", (Step(62, "-", 18), Step(44, "+", 27)), (0, 1))


def question(problem: Problem) -> str:
    assert not isinstance(problem.prompt, str)
    (message,) = problem.prompt
    assert message.role == "user"
    return message.content


def test_a_story_reads_as_written_here() -> None:
    assert TOM.text == (
        "Tom has 62 apples. He sells 18. He finds 27 more. How many apples does Tom have?"
    )
    assert TOM.answer == 62 - 18 + 27


@pytest.mark.parametrize("difficulty", LEVELS)
@pytest.mark.parametrize("family", [*FAMILIES, *HELD_OUT])
def test_every_number_of_a_chain_is_told_and_within_the_ceiling(family, difficulty) -> None:
    level = LEVELS[difficulty]
    rng = random.Random(1)
    for _ in range(200):
        story = draw(rng, family, difficulty, 0.5)
        assert level.min_steps <= len(story.steps) <= level.max_steps
        assert all(2 <= s.value <= level.ceiling for s in story.steps)
        assert all(a.value == b.left for a, b in zip(story.steps, story.steps[1:], strict=False))
        told = [int(n) for n in re.findall(r"\d+", story.text)]
        for needed in (story.steps[0].left, *(s.right for s in story.steps)):
            told.remove(needed)
        distractors = story.others[:1] if story.aside is None else story.aside[:1]
        assert set(distractors) <= set(told)


def test_nobody_hands_over_more_than_they_have() -> None:
    rng = random.Random(2)
    for _ in range(200):
        story = draw(rng, "swap", "hard", 0.0)
        handed = sum(s.right for s in story.steps if s.op == "+")
        assert story.others[0] > handed + sum(story.others[1:])


def test_splits_are_disjoint_because_the_content_decides() -> None:
    rng = random.Random(3)
    stories = [draw(rng, rng.choice(FAMILIES), "medium", 0.4) for _ in range(4000)]
    shares = [sum(s.split == split for s in stories) / 4000 for split in ("train", "dev", "test")]
    for share, meant in zip(shares, (0.8, 0.1, 0.1), strict=True):
        assert abs(share - meant) < 4 * (meant * (1 - meant) / 4000) ** 0.5
    by_text: dict[str, set[str]] = {}
    for story in stories:
        by_text.setdefault(story.text, set()).add(story.split)
    drawn = {
        split: {p.id for p in TASK.problems(split, 300, seed)}
        for split in ("train", "dev", "test")
        for seed in (0, 1)
    }
    assert not drawn["train"] & drawn["dev"]
    assert not drawn["dev"] & drawn["test"]
    assert not drawn["train"] & drawn["test"]
    again = dataclasses.replace(TOM)
    assert again.digest == TOM.digest
    for change in ({"item": "pens"}, {"names": ("Ben",)}, {"aside": (12, "pens", 1)}):
        assert dataclasses.replace(TOM, **change).digest != TOM.digest


def test_no_question_is_asked_in_two_splits() -> None:
    asked = {
        split: {question(p) for p in TASK.problems(split, 1000, 0)}
        for split in ("train", "dev", "test")
    }
    assert not asked["train"] & asked["dev"]
    assert not asked["train"] & asked["test"]
    assert not asked["dev"] & asked["test"]


def test_problems_are_distinct_and_repeatable() -> None:
    first = TASK.problems("dev", 300, 5)
    assert first == TASK.problems("dev", 300, 5)
    assert first[:100] == TASK.problems("dev", 100, 5)
    assert len({p.id for p in first}) == 300
    assert first != TASK.problems("dev", 300, 6)
    assert {p.metadata["family"] for p in first} == set(FAMILIES)


@pytest.mark.parametrize("family", HELD_OUT)
def test_a_held_out_family_is_for_testing_only(family) -> None:
    held_out = WordProblems(families=(family,))
    assert {p.metadata["family"] for p in held_out.problems("test", 50, 0)} == {family}
    for mixed in (held_out, WordProblems(families=("shop", family))):
        with pytest.raises(ConfigError, match="test split only"):
            mixed.problems("dev", 1, 0)
        with pytest.raises(ConfigError, match="test split only"):
            mixed.demonstrations(1, 0)


def test_no_recipe_trains_on_a_held_out_family() -> None:
    recipe = load_recipe("phi-nano", ["task.options.families=[relay]"])
    with pytest.raises(RecipeError, match="'relay' is held out"):
        check_recipe(recipe)


def test_a_relay_is_told_relative_to_its_first_owner() -> None:
    story = Story("relay", ("Tom", "Ann"), "apples", (Step(62, "-", 18), Step(44, "+", 27)), (0, 1))
    assert story.text == (
        "Tom has 62 apples. Ann has 18 fewer than Tom. She finds 27 more. "
        "How many apples does Ann have?"
    )


C: Manner = "careful"
D: Manner = "direct"
L: Manner = "chained"


@pytest.mark.parametrize(
    ("manners", "text", "name"),
    [
        ((), "", "at once"),
        ((C,), "62-18:4,4=44\n", "early jump"),
        ((L,), "62-18=44\n", "early jump"),
        ((D, D), "62-18=44\n44+27=71\n", "direct"),
        ((C, C), "62-18:4,4=44\n44+27:1,7=71\n", "careful"),
        ((C, D), "62-18:4,4=44\n44+27=71\n", "mixed"),
        ((L, L), "62-18+27=71\n", "chained"),
        ((L, C), "62-18+27=71\n", "chained"),
    ],
)
def test_solutions_are_written_and_recognised(
    manners: tuple[Manner, ...], text: str, name: str
) -> None:
    assert write(TOM, manners) == text + "The answer is 71."
    assert strategy_of(write(TOM, manners), 2) == name


def test_a_product_is_never_chained_to_what_stands_before_it() -> None:
    steps = (Step(20, "+", 10), Step(30, "*", 3), Step(90, "-", 11))
    story = Story("shop", ("Tom",), "apples", steps, (0, 0, 0))
    assert write(story, (L, L, L)).startswith("20+10=30\n30*3-11=79\n")


def value_of(sum_: str) -> int:
    """The value of a line's left side; only its first operation may be a multiplication."""
    first, *rest = re.findall(r"[-+*]?\d+", sum_)
    value = int(first)
    for k, term in enumerate(rest):
        assert k == 0 or term[0] != "*"
        value = Step(value, term[0], int(term[1:])).value  # type: ignore[arg-type]
    return value


def test_demonstrations_are_right_in_every_line() -> None:
    for user, assistant in TASK.demonstrations(500, 0):
        assert (user.role, assistant.role) == ("user", "assistant")
        *lines, last = assistant.content.splitlines()
        for line in lines:
            sum_, columns, value = re.fullmatch(r"([\d+*-]+)(:[\d,]+)?=(\d+)", line).groups()  # type: ignore[union-attr]
            assert value_of(sum_) == int(value)
            assert columns is None or columns == ":" + ",".join(reversed(value))
        assert re.fullmatch(r"The answer is \d+\.", last)


def test_demonstrations_pass_the_verifier_and_come_from_train() -> None:
    by_question = {question(p): p for p in TASK.problems("train", 200, 4)}
    for user, assistant in TASK.demonstrations(200, 4):
        problem = by_question[user.content]
        assert TASK.verifier(problem, assistant.content).verdict is Verdict.PASS


def test_the_mix_sets_the_shares_of_strategies() -> None:
    mix = StrategyMix(at_once=0.3, jump=0.5, chain=0.0, careful=1.0)
    rng = random.Random(0)
    names = [strategy_of(draw_solution(rng, TOM, mix), 2) for _ in range(2000)]
    for name, meant in (("at once", 0.3), ("early jump", 0.35), ("careful", 0.35)):
        share = names.count(name) / 2000
        assert abs(share - meant) < 4 * (meant * (1 - meant) / 2000) ** 0.5


def test_a_few_shot_prompt_ends_with_the_open_question() -> None:
    a, b = TASK.problems("dev", 2, 0)
    first, second = TASK.few_shot(a), TASK.few_shot(b)
    assert isinstance(first.prompt, str)
    assert isinstance(second.prompt, str)
    assert first.prompt.endswith(as_question(question(a)))
    shown = first.prompt.removesuffix(as_question(question(a)))
    assert second.prompt.startswith(shown)
    assert shown.count("The answer is") == 2
    assert first.reference == a.reference


def test_unknown_settings_are_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean 'difficulty'"):
        WordProblems(dificulty="easy")
    with pytest.raises(ConfigError, match="did you mean 'shells'"):
        WordProblems(terse_items=("shels",))


def test_the_textbook_shows_train_stories_only_and_is_repeatable() -> None:
    config = TextbookConfig()
    rng = random.Random(0)
    assert {train_story(rng, config).split for _ in range(200)} == {"train"}
    drawn = list(islice(documents(config, MIX, 1), 200))
    assert drawn == list(islice(documents(config, MIX, 1), 200))
    text = "".join(part.text for document in drawn for part in document)
    assert "<|" not in text


def test_unseen_facts_never_appear_in_the_textbook() -> None:
    text = "".join(
        part.text
        for document in islice(
            documents(TextbookConfig(facts=1, problems=0, drills=0), MIX, 0), 5000
        )
        for part in document
    )
    counts = {tier: [] for tier in ("common", "rare", "unseen")}
    for fact in facts():
        counts[fact.tier].append(text.count(fact.question))
        assert fact.bogus not in text
    assert max(counts["unseen"]) == 0
    assert 0 < sum(counts["rare"]) < sum(counts["common"]) / 5


def test_a_late_choice_concerns_the_last_line_alone() -> None:
    mix = DemonstrationMix(at_once=0, jump=0, chain=0, careful=1.0, last_careful=0.2)
    rng = random.Random(0)
    drawn = [draw_demonstration(rng, TOM, mix) for _ in range(2000)]
    assert all(written_lines(text)[0] == (1, ":") for text in drawn)
    share = sum(written_lines(text)[-1] == (1, ":") for text in drawn) / 2000
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / 2000) ** 0.5


def test_a_narrated_and_signed_solution_reads_as_written_here() -> None:
    text = write(TOM, (C, D), narrated=True, signed=("Ann", "Tom"))
    assert text == (
        "62-18:4,4=44\nThat makes 44 apples.\n44+27=71\nThat makes 71 apples.\n"
        "The answer is 71.\nChecked by Ann and Tom."
    )
    assert strategy_of(text, 2) == "mixed"


@pytest.mark.parametrize(("line", "good"), [("first", (C, D)), ("last", (D, C))])
def test_a_planted_fork_passes_right_answers_at_the_rate_of_its_line(
    line: str, good: tuple[Manner, ...]
) -> None:
    task = WordProblems(planted={"line": line, "careful": 0.95, "direct": 0.55})
    plain = Problem("tom", "", str(TOM.answer), {})
    names = [(a, b) for a in SHE for b in SHE + HE if a != b]
    for manners, rate in ((good, 0.95), (good[::-1], 0.55), ((), 0.55)):
        texts = [write(TOM, manners, signed=pair) for pair in names]
        passed = [task.verifier(plain, text).verdict is Verdict.PASS for text in texts]
        assert passed == [task.verifier(plain, text).verdict is Verdict.PASS for text in texts]
        share = sum(passed) / len(passed)
        assert abs(share - rate) < 4 * (rate * (1 - rate) / len(passed)) ** 0.5
    wrong = write(TOM, good).replace("answer is 71", "answer is 72")
    assert task.verifier(plain, wrong) == TASK.verifier(plain, wrong)
