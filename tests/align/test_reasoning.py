"""The reasoning-gym task, on a stand-in that draws entry i from seed + i as the package does."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from align.errors import RecipeError
from align.settings import ReasoningGymTask
from align.tasks.base import Split
from align.tasks.reasoning_gym import CHUNK, CHUNKS, GymTask
from pts.errors import MissingExtra
from pts.types import Verdict


def create_dataset(name: str, *, seed: int, size: int, most: int = 10**6) -> list[dict[str, Any]]:
    draws = [random.Random(seed + i) for i in range(size)]
    numbers = [(draw.randrange(most), draw.randrange(most)) for draw in draws]
    return [{"question": f"{a} + {b}", "answer": str(a + b)} for a, b in numbers]


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = SimpleNamespace(DATASETS={"sums": None})
    gym = SimpleNamespace(create_dataset=create_dataset, factory=factory)
    monkeypatch.setitem(sys.modules, "reasoning_gym", gym)


def task(**options: Any) -> GymTask:
    return GymTask(ReasoningGymTask(kind="reasoning_gym", dataset="sums", options=options))


def test_chunks_of_one_seed_and_of_the_next_hold_different_questions() -> None:
    splits: tuple[Split, ...] = ("train", "dev", "test")
    whole = CHUNK * CHUNKS
    first, second = (
        {p.id for split in splits for p in task().problems(split, whole, seed)} for seed in (0, 1)
    )
    assert len(first) == len(second) == whole
    assert not first & second


def test_a_small_data_set_gives_what_it_has_and_splits_share_nothing() -> None:
    small = task(most=5)
    found = [{p.id for p in small.problems(split, 100, 0)} for split in ("train", "dev", "test")]
    assert sum(map(len, found)) == len(set.union(*found)) == 25
    chats = {chat[0].content for chat in small.demonstrations(100, 3)}
    asked = {p.prompt[-1].content for p in small.problems("test", 100, 0)}  # type: ignore[union-attr]
    assert chats
    assert not chats & asked


def test_the_last_integer_is_the_answer() -> None:
    (problem,) = task().problems("dev", 1, 0)
    assert task().verifier(problem, f"3, so {problem.reference}").verdict is Verdict.PASS
    few_shot = task().few_shot(problem)
    assert few_shot.prompt.count("The answer is") == 3  # type: ignore[union-attr]


def test_a_wrong_name_is_told() -> None:
    with pytest.raises(RecipeError, match=r"task\.dataset: got 'sumz'; did you mean 'sums'"):
        GymTask(ReasoningGymTask(kind="reasoning_gym", dataset="sumz"))


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MissingExtra, match="smollm2"):
        task()
