"""Pairs and best answers by a judge: what is chosen, what is left out and why, killed at any point;
recipes that ask one, and what is told of it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from align.context import seed_of
from align.errors import RecipeError, StageError
from align.judging.choice import (
    Answered,
    Candidate,
    Comparison,
    best_of,
    choose_pairs,
    draw_comparisons,
)
from align.judging.orders import BothOrders
from align.judging.replies import Judgement, Marks
from align.judging.settings import POLICY, JudgeConfig, JudgedPairsConfig
from align.ledger import Ledger
from align.models.load import load_tokenizer
from align.pipeline import run as pipeline
from align.pipeline.check import check_recipe
from align.pipeline.judges import judge_costs
from align.pipeline.recipe import Recipe, parse_recipe
from align.report.judges import judges
from align.run_folder import tree_digest
from align.stages import full_dpo, pivotal_tokens, rejection_sft, sft
from align.stages.full_dpo import FullDPOConfig
from align.stages.generators import answer_ids
from align.stages.judged import in_turn
from align.stages.sampling import searched_problems
from pts.data.rollouts import read_rollouts
from pts.types import Message, Problem
from tests.align import tiny
from tests.align.scripted_judge import ScriptedJudge, reply_json


def judged(first: tuple[int, int, int], second: tuple[int, int, int]) -> BothOrders:
    """The same marks in both orders."""
    one = Judgement((Marks(*first), Marks(*second)))
    return BothOrders(one, one)


def candidate(text: str, source: str = POLICY, right: bool = True) -> Candidate:
    return Candidate(source, tuple(map(ord, text)), text, right)


def question(name: str, *texts: str) -> Answered:
    problem = Problem(name, (Message("user", "Why?"),), "")
    return Answered(problem, (1, 2), tuple(candidate(text) for text in texts))


ONLY_ACCURACY = judged((4, 3, 3), (3, 4, 3))
ONLY_OVERALL = judged((4, 3, 3), (4, 2, 3))
EITHER = judged((5, 3, 3), (4, 3, 3))
OPPOSED = judged((5, 1, 1), (4, 3, 3))
TIE = judged((4, 3, 3), (4, 3, 3))
UNSCORED = BothOrders(Judgement((Marks(5, 5, 5), Marks(1, 1, 1))), Judgement((), "cut", "cut"))
FLIP = BothOrders(
    Judgement((Marks(5, 5, 5), Marks(1, 1, 1))), Judgement((Marks(1, 1, 1), Marks(5, 5, 5)))
)


def chosen(found: list[BothOrders], limit: int = 0, seed: int = 0, **settings: Any) -> Any:
    compared = [
        Comparison(question(str(k), "a", "bb"), candidate("a"), candidate("bb", "teacher"))
        for k in range(len(found))
    ]
    return choose_pairs(compared, found, JudgedPairsConfig(**settings), limit, seed)


@pytest.mark.parametrize(
    ("found", "share", "accuracy", "overall"),
    [
        ([EITHER] * 9, 2 / 3, 6, 3),
        ([EITHER] * 9, 1.0, 9, 0),
        ([EITHER] * 9, 0.0, 0, 9),
        # Two accuracy pairs for each overall one: four of the former allow two of the latter.
        ([ONLY_ACCURACY] * 4 + [ONLY_OVERALL] * 9, 2 / 3, 4, 2),
        # Two thirds of seven are nearest to five; eight pairs would need three overall ones.
        ([ONLY_ACCURACY] * 9 + [ONLY_OVERALL] * 2, 2 / 3, 5, 2),
        ([ONLY_ACCURACY] * 2 + [EITHER] * 4, 2 / 3, 4, 2),
        ([ONLY_OVERALL] * 3 + [EITHER] * 3, 0.5, 3, 3),
        # One pair alone is of the commoner kind.
        ([ONLY_ACCURACY], 2 / 3, 1, 0),
        ([ONLY_OVERALL], 2 / 3, 0, 0),
        ([ONLY_OVERALL] * 3, 2 / 3, 0, 0),
        ([TIE, FLIP, UNSCORED], 2 / 3, 0, 0),
        ([], 2 / 3, 0, 0),
    ],
)
def test_the_two_kinds_keep_their_proportion(
    found: list[BothOrders], share: float, accuracy: int, overall: int
) -> None:
    pairs, counts = chosen(found, accuracy_share=share)
    assert (counts["pairs_by_accuracy"], counts["pairs_by_overall"]) == (accuracy, overall)
    assert Counter(pair.by for pair in pairs) == Counter(accuracy=accuracy, overall=overall)
    lost = sum(counts[f"comparisons_{why}"] for why in ("tied", "flipped", "unscored", "spare"))
    assert counts["pairs"] + lost == counts["comparisons"] == len(found)


def test_each_kind_prefers_by_its_own_score() -> None:
    pairs, _ = chosen([OPPOSED] * 3)
    sources = {(pair.by, pair.chosen.source, pair.rejected.source) for pair in pairs}
    assert sources == {("accuracy", POLICY, "teacher"), ("overall", "teacher", POLICY)}
    by_accuracy = next(pair for pair in pairs if pair.by == "accuracy")
    assert (by_accuracy.chosen.accuracy, by_accuracy.rejected.accuracy) == (5, 4)
    assert by_accuracy.chosen_ids == (ord("a"),)


def test_what_is_lost_is_counted_by_its_reason() -> None:
    found = [TIE, TIE, FLIP, FLIP, FLIP, UNSCORED, EITHER, EITHER, EITHER]
    _, counts = chosen(found)
    assert counts["comparisons_tied"] == 2
    assert counts["comparisons_flipped"] == 3
    assert counts["comparisons_unscored"] == 1
    assert counts["comparisons_spare"] == 0
    assert chosen(found, limit=2)[1]["comparisons_spare"] == 1
    # The mean of a flip's two orders is a tie here.
    assert chosen(found, flips="mean")[1]["comparisons_tied"] == 5
    assert chosen(found, margin=1.5)[1]["comparisons_tied"] == 5


def test_the_draw_is_a_function_of_its_seed() -> None:
    questions = [question(str(k), *"abcdef") for k in range(30)]
    drawn = draw_comparisons(questions, 2, 0)
    assert len(drawn) == 60
    assert drawn == draw_comparisons(questions, 2, 0) != draw_comparisons(questions, 2, 1)
    assert draw_comparisons(questions[7:8], 2, 0) == drawn[14:16]
    assert len(draw_comparisons(questions[:1], 99, 0)) == 15
    assert not draw_comparisons([question("x", "a"), question("y")], 2, 0)


def test_best_of_takes_the_first_among_equals() -> None:
    one = Judgement((Marks(3, 3, 3), Marks(5, 4, 3), Marks(4, 5, 3)))
    other = Judgement((Marks(3, 3, 3), Marks(5, 4, 3), Marks(4, 5, 3)))
    assert best_of(BothOrders(one, other)) == (1, True)
    # 9 + 15, 12 + 12 and 12 + 12 points.
    first = Judgement((Marks(5, 5, 5), *one.marks[1:]))
    assert best_of(BothOrders(one, first)) == (0, True)
    assert best_of(BothOrders(first, first)) == (0, False)
    assert best_of(BothOrders(one, Judgement((), "cut", "cut"))) is None


# Stages


class LetterJudge(ScriptedJudge):
    """Scores answers that are made of letters: accuracy by their parity, style by their length."""

    def _say(self, prompt: str, conversation: str, replies: list[str], tries: int) -> Any:
        scores = [[5 - len(r) % 2, min(5, 1 + len(r)), 3] for r in replies]
        choice = {"message": {"content": json.dumps(reply_json(scores))}, "finish_reason": "stop"}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}, {}


@pytest.fixture
def server() -> Iterator[LetterJudge]:
    with LetterJudge() as judge:
        yield judge


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that answers with one to five letters and then ends its turn."""
    folder = tmp_path_factory.mktemp("base")
    settings = {"num_examples": 320, "batch_size": 8, "learning_rate": 1e-2}
    raw = tiny.save(folder / "raw")
    made = sft.run(tiny.context(raw, folder / "sft", tiny.ParityTask(), sft=settings))
    assert made.model is not None
    return made.model


SETTINGS: dict[str, Any] = {"num_problems": 12, "samples": 4, "batch_size": 4, "max_steps": 2}


def context(base: Path, folder: Path, url: str, kind: str = "full_dpo", **more: Any) -> Any:
    judge = {"url": url, "model": "letters", "concurrency": 4, **more.pop("judge", {})}
    settings = {**SETTINGS, "judge": judge, **more}
    return tiny.context(base, folder, tiny.ParityTask(), **{kind: settings})


SIDES = ("chosen", "rejected")


def pairs_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]


def test_full_dpo_trains_on_judged_pairs(base: Path, tmp_path: Path, server: LetterJudge) -> None:
    result = full_dpo.run(context(base, tmp_path, server.url))
    metrics, pairs = result.metrics, pairs_of(tmp_path)
    tokenizer = load_tokenizer(base, tiny.recipe(base).model)
    assert metrics["pairs"] == len(pairs) > 3
    assert abs(metrics["pairs_by_accuracy"] - 2 * metrics["pairs_by_overall"]) <= 1
    assert metrics["judge"]["calls"] == sum(server.asked.values())
    assert metrics["judge"]["cases"] == metrics["comparisons"]
    assert metrics["judge"]["reply_tokens"] == 2 * metrics["judge"]["calls"]
    assert metrics["judge"]["position"]["share"] == 0
    for pair in pairs:
        assert {pair["chosen"]["source"], pair["rejected"]["source"]} == {POLICY}
        texts = [
            tokenizer.decode(pair[f"{side}_ids"], skip_special_tokens=True)
            for side in ("chosen", "rejected")
        ]
        accuracy = [5 - len(text) % 2 for text in texts]
        total = [5 - len(text) % 2 + min(5, 1 + len(text)) + 3 for text in texts]
        better, worse = accuracy if pair["by"] == "accuracy" else total
        assert better > worse
        assert pair["chosen"]["overall"] == pytest.approx(total[0] / 3)


def test_a_verifier_may_score_accuracy(base: Path, tmp_path: Path, server: LetterJudge) -> None:
    asked = context(
        base, tmp_path, server.url,
        judge={"accuracy": "verifier"}, judged_pairs={"accuracy_share": 1.0},
    )  # fmt: skip
    full_dpo.run(asked)
    tokenizer = load_tokenizer(base, asked.recipe.model)
    for pair in pairs_of(tmp_path):
        assert (pair["chosen"]["accuracy"], pair["rejected"]["accuracy"]) == (5, 1)
        text = tokenizer.decode(pair["chosen_ids"], skip_special_tokens=True)
        assert len(text) % 2 == 0


def test_generators_give_answers_as_text(base: Path, tmp_path: Path, server: LetterJudge) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    made = load_tokenizer(base, tiny.recipe(base).model)
    made.add_tokens(["xyz"])  # another vocabulary
    made.save_pretrained(other)
    generators = [
        {"name": "alien", "engine": f"transformers:{other}", "samples": 3},
        {"name": "twin", "engine": f"transformers:{base}", "samples": 2},
    ]
    asked = context(base, tmp_path / "run", server.url, generators=generators,
                    judged_pairs={"comparisons": 20})  # fmt: skip
    metrics = full_dpo.run(asked).metrics
    assert metrics["answers"] == 12 * (4 + 3 + 2)
    used = metrics["answers"] - sum(
        metrics[f"answers_{w}"] for w in ("too_long", "identical", "unfit")
    )
    assert used > 12
    assert metrics["generator_tokens"] > 0
    pairs = pairs_of(tmp_path / "run")
    end = made.convert_tokens_to_ids("<|im_end|>")
    sides = [(p[s]["source"], p[f"{s}_ids"]) for p in pairs for s in ("chosen", "rejected")]
    assert {source for source, _ in sides} == {POLICY, "twin", "alien"}
    assert all(ids[-1] == end for source, ids in sides if source == "alien")
    assert all(len(ids) <= 6 for _, ids in sides)


WRITTEN = (
    ("zz", "stop"),
    ("zzzzzzzzz", "stop"),
    ("z<|im_end|>", "stop"),
    ("zzz", "length"),
    ("", "content_filter"),
)
"""What the endpoint writes, one after the other."""


class ScriptedWriter(ScriptedJudge):
    """An endpoint that answers conversations; what goes wrong is decided by the count of a
    question's calls."""

    def answer(self, path: str, sent: str, body: dict[str, Any]) -> Any:
        if sent != "Bearer open-sesame":
            return 401, {"error": "no"}, {}
        question = body["messages"][-1]["content"]
        with self._lock:
            self.bodies.append(body)
            self.asked[question] += 1
            text, end = WRITTEN[self.asked[question] % len(WRITTEN)]
        choice = {"message": {"content": text}, "finish_reason": end}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 7}}, {}


def test_a_chat_endpoint_gives_answers(
    base: Path, tmp_path: Path, server: LetterJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WRITER_KEY", "open-sesame")
    with ScriptedWriter() as writer:
        options = {"model": "writer", "key_variable": "WRITER_KEY", "concurrency": 1}
        hosted = {"name": "hosted", "engine": f"chat:{writer.url}/v1", "samples": 5}
        asked = context(
            base, tmp_path, server.url,
            generators=[{**hosted, "options": options}], judged_pairs={"comparisons": 99},
        )  # fmt: skip
        metrics = full_dpo.run(asked).metrics
        shutil.rmtree(tmp_path / "model")
        (tmp_path / "finished.json").unlink()
        assert full_dpo.run(asked).metrics == metrics
        assert sum(writer.asked.values()) == 12 * 5
    assert metrics["generator_tokens"] == 12 * 5 * 7
    # Of five answers one holds a special token and one was refused; one was cut, one is longer
    # than six tokens.
    assert metrics["answers_unfit"] == 2 * 12
    own = [
        json.loads(line)["rollouts"]
        for line in (tmp_path / "answers" / "samples.jsonl").read_text().splitlines()
    ]
    assert metrics["answers_too_long"] == 2 * 12 + sum(r["truncated"] for row in own for r in row)
    body = writer.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("writer", 1.0, 6)
    tokenizer = load_tokenizer(base, asked.recipe.model)
    sides = [(p[s]["source"], p[f"{s}_ids"]) for p in pairs_of(tmp_path) for s in SIDES]
    assert {tokenizer.decode(ids) for source, ids in sides if source == "hosted"} == {
        "zz<|im_end|>"
    }
    assert "sesame" not in "".join(
        file.read_text() for file in tmp_path.rglob("*.json*") if file.is_file()
    )


def test_text_becomes_the_ids_that_the_policy_would_have_written(base: Path) -> None:
    tokenizer = load_tokenizer(base, tiny.recipe(base).model)
    chat = Problem("a", (Message("system", "Short."), Message("user", "Hi")), "")
    turns = [{"role": m.role, "content": m.content} for m in chat.prompt]  # type: ignore[union-attr]
    prompt = tuple(
        tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    )
    ids = answer_ids(tokenizer, chat, prompt, "Oh, well.")
    assert tokenizer.decode(ids) == "Oh, well.<|im_end|>"
    assert answer_ids(tokenizer, chat, prompt, "a<|im_end|>b") == ()
    assert answer_ids(tokenizer, chat, (*prompt[:-1], 99), "a") == ()
    plain = answer_ids(tokenizer, Problem("b", "Hi", ""), (1,), "ab")
    assert tokenizer.decode(plain[:-1]) == "ab"
    assert plain[-1] == tokenizer.eos_token_id


def test_rejection_sft_takes_answers_of_generators(
    base: Path, tmp_path: Path, server: LetterJudge
) -> None:
    twins = [
        {"name": name, "engine": f"transformers:{base}", "samples": n}
        for name, n in (("one", 2), ("two", 3))
    ]
    asked = context(
        base, tmp_path, server.url, "rejection_sft", generators=twins, judged_answers=3
    )  # fmt: skip
    metrics = rejection_sft.run(asked).metrics
    sources = metrics["answers_by_source"]
    assert {name: told["asked"] for name, told in sources.items()} == {
        POLICY: 12 * 4, "one": 12 * 2, "two": 12 * 3,
    }  # fmt: skip
    assert all(0 < told["right"] <= told["left"] < told["asked"] for told in sources.values())
    chosen = metrics["chosen_by_source"]
    assert sum(chosen.values()) == metrics["rows"] + metrics["rows_other_stop"]
    assert chosen.keys() <= sources.keys()
    assert len(chosen) > 1
    spent = Ledger.of(metrics)
    assert spent.judge_calls == metrics["judge"]["calls"] == sum(server.asked.values())
    assert spent.judge_tokens == 3 * spent.judge_calls
    assert spent.generator_calls == 12 * 5
    assert spent.generator_tokens > 12 * 5


def test_each_source_has_its_turn() -> None:
    found = in_turn(
        [*map(candidate, "abc"), *(candidate(t, "x") for t in "de"), candidate("f", "y")]
    )
    assert "".join(one.text for one in found) == "adfbec"


def test_the_best_of_stored_answers(base: Path, tmp_path: Path, server: LetterJudge) -> None:
    search = {"filter_rollouts": 8, "confirm_rollouts": 12, "max_rollouts": 40, "fdr": 0.5}
    stage = {"num_problems": 6, "search": search}
    pivotal_tokens.run(tiny.context(base, tmp_path / "pts", tiny.ParityTask(), pts=stage))
    judge = {"url": server.url, "model": "letters"}
    settings = {**SETTINGS, "judge": judge, "rollouts": "pts", "purposes": ["filter"]}
    made = tiny.context(base, tmp_path / "rows", tiny.ParityTask(), pts=stage,
                        rejection_sft=settings)  # fmt: skip
    stored = tmp_path / "pts" / "rollouts.jsonl"
    metrics = rejection_sft.run(dataclasses.replace(made, rollouts=stored)).metrics
    tokenizer = load_tokenizer(base, made.recipe.model)
    expected: dict[tuple[int, ...], str] = {}
    for drawn in read_rollouts(stored):
        texts = [tokenizer.decode(ids, skip_special_tokens=True)
                 for ids in drawn.answers(purposes=["filter"])][:4]  # fmt: skip
        if texts:  # all are even, so that the longest one has the best mean
            expected[drawn.prompt_ids] = max(texts, key=lambda text: min(5, 1 + len(text)))
    assert metrics["rows"] == len(expected) > 1
    assert metrics["generated_tokens"] == 0
    assert metrics["chosen_by_source"] == {POLICY: len(expected)}
    assert 0 < metrics["judge"]["calls"] == sum(server.asked.values()) <= 2 * len(expected)
    asked = {re.findall(r"\d\+\d", prompt)[0] for prompt in server.asked}
    questions = {p.prompt[-1].content for p in tiny.ParityTask().problems(
        "train", 6, seed_of(made.recipe.seed, "pts", "problems"))}  # fmt: skip
    assert asked <= questions
    rows = rejection_sft._rows(dataclasses.replace(made, rollouts=stored))[0]
    for row in rows:
        n = row.mask.index(1)
        said = tokenizer.decode(row.ids[n:], skip_special_tokens=True)
        assert said == expected[tuple(row.ids[:n])]


def test_stored_answers_need_their_problems(base: Path, tmp_path: Path) -> None:
    made = tiny.context(base, tmp_path, tiny.ParityTask(), rejection_sft={"rollouts": "pts"})
    with pytest.raises(StageError, match="has no train problem 'gone' any more"):
        searched_problems(made, {"gone"})


def test_rejection_sft_keeps_the_best_right_answer(
    base: Path, tmp_path: Path, server: LetterJudge
) -> None:
    asked = context(base, tmp_path, server.url, "rejection_sft", samples=6)
    metrics = rejection_sft.run(asked).metrics
    several = metrics["judge"]["cases"]
    answered = metrics["questions"] - metrics["questions_all_wrong"]
    assert metrics["judge"]["calls"] == 2 * several > 0
    assert metrics["rows"] + metrics["rows_other_stop"] <= answered
    assert metrics["questions_unscored_by_judge"] == 0
    # The judge gives all right answers the same accuracy and detail: the longest one is kept.
    shown = [re.findall(r"^\| ([a-z]*)$", p.split("# Replies")[1], re.M) for p in server.asked]
    assert all(len(replies) <= 4 and len(set(replies)) == len(replies) for replies in shown)
    assert all(len(text) % 2 == 0 for replies in shown for text in replies)


def test_a_killed_stage_goes_on_with_no_call_repeated(
    base: Path, tmp_path: Path, server: LetterJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = full_dpo.run(context(base, tmp_path / "whole", server.url))
    calls = Counter(server.asked)
    server.asked.clear()
    asked = context(base, tmp_path / "torn", server.url, judge={"concurrency": 1})
    say, count = server._say, iter(range(100))

    def dying(*words: Any) -> Any:
        if next(count) == 7:
            raise ConnectionResetError
        return say(*words)

    monkeypatch.setattr(server, "_say", dying)
    short = asked.settings.judge.model_copy(update={"patience": 0.01})
    config = asked.settings.model_copy(update={"judge": short})
    entry = dataclasses.replace(asked.entry, settings=config)
    asked = dataclasses.replace(asked, entry=entry)
    with pytest.raises(Exception, match="given up"):
        full_dpo.run(asked)
    assert sum(server.asked.values()) == 8
    again = full_dpo.run(asked)
    assert again.metrics == whole.metrics
    assert tiny.same(again.model, whole.model)  # type: ignore[arg-type]
    assert server.asked.keys() == calls.keys()
    assert sum(server.asked.values()) == sum(calls.values()) + 1


def test_a_judge_that_cannot_judge_leaves_no_pairs(base: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "judge": {"path": str(base), "max_tokens": 20}}
    asked = tiny.context(base, tmp_path, tiny.ParityTask(), full_dpo=settings)
    with pytest.raises(StageError, match="left nothing to train on") as caught:
        full_dpo.run(asked)
    assert "UNSCORED because" in str(caught.value)
    assert "context of 256" in str(caught.value)


def test_a_run_tells_of_its_judge(
    base: Path, tmp_path: Path, server: LetterJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = {"url": server.url, "model": "letters"}
    teacher = {"name": "teacher", "engine": f"transformers:{base}", "samples": 1}
    stage = {"kind": "full_dpo", **SETTINGS, "judge": judge, "generators": [teacher]}
    recipe = tiny.recipe(base, stages=[stage], evaluate={"skip": ["base", "full_dpo"]})
    for module in ("run", "check", "judges"):
        monkeypatch.setattr(f"align.pipeline.{module}.build_task", lambda _: tiny.ParityTask())

    def run() -> tuple[str, str]:
        console = Console(record=True, width=200)
        report = pipeline.run(recipe, tmp_path / "run", console, progress=False, parallel=False)
        return report.read_text(), console.export_text()

    report, said = run()
    assert "full_dpo: the judge is asked 48 times at most, with about " in said
    assert "<h2>Judges</h2>" in report
    asked = sum(server.asked.values())
    assert f"<td>calls</td><td>{asked}</td>" in report
    assert "<td>preference follows the position</td><td>0.0% [0.0%, " in report
    record = json.loads((tmp_path / "run" / "manifest.json").read_text())["stages"]["full_dpo"]
    assert record["metrics"]["judge"]["calls"] == asked
    assert record["inputs"]["generators.teacher"] == tree_digest(base)
    _, said = run()
    assert "full_dpo: done before, kept" in said
    assert sum(server.asked.values()) == asked


# Recipes

JUDGED = """
name: judged
model: {path: builtin:phi-nano}
task: {kind: word_problems}
stages:
  - sft
  - {kind: rejection_sft, judge: {path: builtin:phi-nano, chat_template: chatml}}
  - full_dpo
full_dpo:
  num_problems: 100
  judge: {url: "http://localhost:1/v1", model: gpt, key_variable: JUDGE_KEY}
  generators:
    - {name: teacher, engine: "server:http://localhost:2", options: {tokenizer: x}}
    - {name: hosted, engine: "chat:nowhere", options: {model: m, key_variable: JUDGE_KEY}}
"""


def parsed(text: str = JUDGED, *overrides: str) -> Recipe:
    return parse_recipe(yaml.safe_load(text), "x.yaml", overrides)


def test_a_recipe_with_a_judge_survives_being_written_out() -> None:
    recipe = parsed()
    assert parse_recipe(recipe.plain(), "manifest.json") == recipe


def test_without_a_judge_settings_are_dumped_as_before() -> None:
    assert not {"judge", "generators", "judged_pairs"} & FullDPOConfig().model_dump().keys()
    plain = rejection_sft.RejectionSFTConfig().model_dump()
    assert not {"judge", "generators", "judged_answers", "answers"} & plain.keys()


def test_all_faults_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    monkeypatch.setattr("align.judging.faults.importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError) as caught:
        check_recipe(parsed(JUDGED.replace("builtin:phi-nano, chat", "./nowhere, chat")))
    said = "\n".join(caught.value.problems)
    for fault in (
        "full_dpo.judge.key_variable: the environment variable JUDGE_KEY is not set",
        "full_dpo.judge.url: httpx2 is not installed; run: pip install 'three-stage[server]'",
        "full_dpo.generators.teacher: x: no tokenizer here",
        "full_dpo.generators.hosted: url: 'nowhere' is no base URL",
        "full_dpo.generators.hosted: key_variable: the environment variable JUDGE_KEY is not set",
        "rejection_sft.judge.path: './nowhere' holds no config.json",
    ):
        assert fault in said


def test_costs_are_told_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parsed(JUDGED, "rejection_sft.num_problems=50", "sampling.max_new_tokens=100")
    told = dict(line.split(": ", 1) for line in judge_costs(recipe))
    assert told["rejection_sft"].startswith("the judge is asked 100 times at most, with about ")
    assert told["full_dpo"].startswith("the judge is asked 400 times at most")
    assert f"and {400 * 1024:,} of replies at most" in told["full_dpo"]
    tokens = int(re.findall(r"about ([\d,]+)", told["full_dpo"])[0].replace(",", ""))
    assert 400 * 200 < tokens < 400 * (200 + 1000)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("full_dpo.judge.key_variable=sk-secret123", "must be the name of an environment variable"),
        ("full_dpo.judge.path=x", "give either url (with model) or path"),
        ("full_dpo.judge.model=''", "model is missing"),
        ("full_dpo.style_weight=1", "style_weight has no place beside a judge"),
        ("full_dpo.judge=null", "generators needs a judge"),
        ("rejection_sft.judge.temperature=1", "temperature has no place beside path"),
        ("rejection_sft.judge.attempts=0", "rejection_sft.judge.attempts: got 0"),
        ("full_dpo.generators=[{name: policy, engine: x}]", "each name may stand once"),
        (
            "full_dpo.generators=[{name: a, engine: 'chat:http://x', options: {key: sk-secret}}]",
            "options.key: no such key",
        ),
        ("full_dpo.generators=[{name: a, engine: 'chat:http://x'}]", "options.model is missing"),
        ("full_dpo.judged_pairs.accuracy_share=2", "judged_pairs.accuracy_share: got 2"),
    ],
)
def test_bad_settings_are_refused(override: str, fault: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parsed(JUDGED, override)
    assert fault in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_judge_needs_sampled_answers() -> None:
    text = JUDGED.replace("  - full_dpo\n", "  - pts\n  - full_dpo\n")
    with pytest.raises(RecipeError, match="rollouts has no place beside a judge"):
        parsed(text, "full_dpo.rollouts=pts", "full_dpo.generators=[]")


def test_the_report_shows_a_judges_figures() -> None:
    figures = {"calls": 1200, "prompt_tokens": 5, "reply_tokens": 0, "malformed": 3, "refused": 0,
               "unscored": {"share": 0.25, "low": 0.1, "high": 0.4, "n": 8},
               "longer": {"share": None, "n": 0}}  # fmt: skip
    stages = {"sft": {"metrics": {}}, "full_dpo": {"metrics": {"judge": figures}}}
    [(label, rows)] = judges(stages, {"full_dpo": "+ full DPO"})
    assert label == "+ full DPO"
    assert dict(rows) == {
        "calls": "1,200", "tokens of prompts": "5", "tokens of replies": "0",
        "replies that were malformed": "3",
        "UNSCORED judgements": "25.0% [10.0%, 40.0%] of 8",
        "preference follows the position": "none to tell of",
        "the longer answer is preferred": "none to tell of",
    }  # fmt: skip


def test_keys_of_either_backend() -> None:
    assert JudgeConfig(path="x", chat_template="chatml").url == ""
    assert JudgeConfig(url="http://x", model="m", temperature=0.3).temperature == 0.3
