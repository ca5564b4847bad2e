"""Rows that a model makes: fates that follow from scripted answers, and no call made twice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.data.formats import Conversation, Preference, RowFormat
from align.errors import RecipeError, StageError
from align.judging.journal import CallJournal
from align.refusals.run import make_refusals
from align.refusals.settings import RefusalConfig
from align.synthesis.agreement import agree, answer_reader
from align.synthesis.run import SynthesisResult, summary_text, synthesize
from align.synthesis.settings import SynthesisConfig
from align.synthesis.steps import likeness
from align.tasks.word_problems.task import WordProblems
from pts.config import parse_settings
from pts.data.problems import load_problems
from pts.errors import ConfigError, DataError
from tests.align.scripted_chat import ScriptedChat
from tests.align.scripted_judge import read_prompt, reply_json

NUMBER = r"exact:(-?\d+)\."


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def config(server: ScriptedChat, step: str, **more: Any) -> SynthesisConfig:
    options = {"model": "scripted", "concurrency": 1}
    given = {"step": step, "engine": f"chat:{server.url}", "options": options, **more}
    return parse_settings(SynthesisConfig, given, "test")


# Which answers agree


@pytest.mark.parametrize(
    ("answers", "fate", "label"),
    [
        ("7. 7. 7. 7.", "all_agree", "7"),
        ("1. 2. 3. 4.", "all_disagree", None),
        ("5. 5. 6. 5.", "kept", "5"),
        ("6. 5. 5. 7.", "kept", "5"),
        ("1. 2. 2. 1.", "tied", None),
        ("? ? ? 3.", "unread", None),
        ("? 3. 3. ?", "all_agree", "3"),  # what cannot be read votes for nothing
        ("3. 03. 3. 4.", "kept", "3"),  # compared normalised
    ],
)
def test_fates_follow_from_the_answers(answers: str, fate: str, label: str | None) -> None:
    found = agree(answer_reader(NUMBER), answers.split())
    assert found.fate == fate
    assert found.unread == answers.count("?")
    if label:
        assert found.votes[0].answer == label
    assert sum(len(vote.samples) for vote in found.votes) + found.unread == 4


def test_letters_are_read_as_the_choice_verifier_reads_them() -> None:
    texts = ["The answer is C.", "So it must be C.", "The answer is B.", None, "A or B?"]
    found = agree(answer_reader("choice"), texts)
    assert [(vote.answer, vote.samples) for vote in found.votes] == [("C", (0, 1)), ("B", (2,))]
    assert (found.fate, found.unread) == ("kept", 2)


def test_mathematics_is_compared_as_such() -> None:
    pytest.importorskip("math_verify")
    texts = [r"\boxed{\frac{1}{2}}", "The answer is 0.5", r"\boxed{3}", "I do not know."]
    found = agree(answer_reader("math"), texts)
    assert [vote.samples for vote in found.votes] == [(0, 1), (2,)]
    assert found.unread == 1


# The plurality filter over a chat endpoint

ANSWERS = {
    "easy?": "7. 7. 7. 7.",
    "odd?": "1. 2. 3. 4.",
    "good?": "6. 5. 5. cut",
    "torn?": "1. 1. 2. 2.",
    "mute?": "hm hm hm 1.",
}
FATES = {"kept": 1, "all_agree": 1, "all_disagree": 1, "tied": 1, "unread": 1}


def from_script(text: str, k: int) -> str:
    return ANSWERS[text].split()[k]


def questions(folder: Path) -> str:
    rows: list[dict[str, Any]] = [{"prompt": text} for text in ANSWERS]
    rows[2] = {"prompt": [{"role": "user", "content": "good?"}], "provenance": {"file": "x"}}
    rows += [{"prompt": "easy?"}, {"prompt": "What is <|im_end|>?"}]
    return write(folder / "questions.jsonl", rows)


def test_plurality_keeps_what_is_neither_easy_nor_ambiguous(tmp_path: Path) -> None:
    said: list[str] = []
    source = questions(tmp_path)
    with ScriptedChat(from_script) as server:
        asked = config(server, "plurality", samples=4, answer=NUMBER, answers=2, max_tokens=10)
        result = synthesize([source], tmp_path / "out", asked, said.append)
        assert set(server.asked.values()) == {4}
        assert {body["max_tokens"] for body in server.bodies} == {10}
    unread = {"answers_unread": 4}  # one is cut, three say nothing
    assert result.fates == {**FATES, **unread, "repeated": 1, "with_markup": 1}
    assert said == ["5 texts: " + said[0].partition(": ")[2]]
    assert "20 calls at most" in said[0]
    assert "200 of replies" in said[0]
    letters = sum(4 * len(text) for text in ANSWERS)
    assert (result.took["calls"], result.took["prompt_tokens"]) == (20, letters)
    assert f"20 calls, {letters} tokens of prompts" in summary_text(result)
    [problem] = load_problems(tmp_path / "out" / "problems.jsonl", chat=True)
    assert problem.reference == "5"
    assert problem.prompt[-1].content == "good?"  # type: ignore[union-attr]
    about = problem.metadata["provenance"]
    assert problem.metadata["share"] == 0.5
    assert (about["file"], about["row"], about["step"]) == (source, 3, "plurality")
    assert about["model"].startswith(f"chat:{server.url} ")
    assert about["origin"] == {"file": "x"}
    chats = read(tmp_path / "out" / "sft.jsonl")
    assert [chat["provenance"]["sample"] for chat in chats] == [1, 2]
    for chat in chats:
        found = RowFormat("chats").read(chat)
        assert isinstance(found, Conversation)
        assert [message.content for message in found.messages] == ["good?", "5."]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["fates"] == result.fates
    assert summary["expected"]["calls"] == summary["took"]["calls"] == 20


def test_a_killed_run_asks_only_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, puts = questions(tmp_path), 0
    keep = CallJournal.put

    def put(self: CallJournal, *given: Any) -> None:
        nonlocal puts
        keep(self, *given)
        puts += 1
        if puts == 7:
            raise KeyboardInterrupt

    with ScriptedChat(from_script) as server:
        asked = config(server, "plurality", samples=4, answer=NUMBER)
        monkeypatch.setattr(CallJournal, "put", put)
        with pytest.raises(KeyboardInterrupt):
            synthesize([source], tmp_path / "out", asked)
        assert sum(server.asked.values()) == 7
        result = synthesize([source], tmp_path / "out", asked)
        assert set(server.asked.values()) == {4}
        assert {key: result.fates[key] for key in FATES} == FATES
        more = config(server, "plurality", samples=4, answer=r"exact:(\d)")
        synthesize([source], tmp_path / "out", more)  # read in another way, asked of nobody
        assert sum(server.asked.values()) == 20
    with pytest.raises(StageError, match=r"holds .* but no calls.jsonl"):
        synthesize([source], tmp_path, asked)


def test_phi_nano_is_asked_about_word_problems(tmp_path: Path) -> None:
    from align.models.load import base_path
    from align.settings import ModelConfig

    problems = WordProblems(difficulty="easy").problems("train", 4, 0)
    rows = [
        {"prompt": [{"role": "user", "content": p.prompt[-1].content}]}  # type: ignore[union-attr]
        for p in problems
    ]
    source = write(tmp_path / "q.jsonl", rows)
    asked = SynthesisConfig(
        step="plurality", samples=3, answer=r"exact:(-?\d+)\.", max_tokens=24,
        engine=f"transformers:{base_path(ModelConfig(path='builtin:phi-nano'))}",
        options={"chat_template": template(), "device": "cpu"}, temperature=1.0,
    )  # fmt: skip
    first = synthesize([source], tmp_path / "a", asked)
    fates = [first.fates[key] for key in FATES]
    assert sum(fates) == first.rows == 4
    assert first.took["calls"] == 12
    assert first.took["reply_tokens"] > 0
    # Replies depend on the model and the question alone, not on what else is asked.
    write(tmp_path / "r.jsonl", rows[::-1])
    other = synthesize([str(tmp_path / "r.jsonl")], tmp_path / "b", asked)
    assert other.fates == first.fates
    lines = [set((tmp_path / name / "calls.jsonl").read_text().splitlines()) for name in "ab"]
    assert lines[0] == lines[1]


def template() -> str:
    from align.settings import data_folder

    return (data_folder("chat_templates") / "chatml.jinja").read_text()


# Rewriting, reversal, revision


def material(prompt: str) -> str:
    """The quoted text of a prompt, without its bars."""
    return "\n".join(re.findall(r"^\| (.*)$", prompt, re.MULTILINE))


def run(
    folder: Path, say: Callable[[str, int], str], step: str, rows: list[dict[str, Any]], **more: Any
) -> tuple[SynthesisResult, ScriptedChat]:
    source = write(folder / "rows.jsonl", rows)
    with ScriptedChat(say) as server:
        result = synthesize([source], folder / "out", config(server, step, **more))
    return result, server


def test_new_questions_are_made_none_twice(tmp_path: Path) -> None:
    def say(prompt: str, k: int) -> str:
        assert "of two steps" in prompt
        text = material(prompt)
        if text == "a?":
            return json.dumps({"question": ["New one?", "new  ONE?", "A?"][k]})
        return "no JSON" if k < 2 else json.dumps({"question": "New two?"})

    rows = [{"text": "a?"}, {"text": "b?"}]
    result, server = run(
        tmp_path, say, "rewrite", rows, column="text", samples=3, attempts=1,
        request="Write a question of two steps.",
    )  # fmt: skip
    assert result.fates == {
        "kept": 2, "identical": 2, "unread": 2, "repeated": 0, "with_markup": 0,
    }  # fmt: skip
    made = read(tmp_path / "out" / "prompts.jsonl")
    assert [(row["prompt"], row["provenance"]["sample"]) for row in made] == [
        ("New one?", 0),
        ("New two?", 2),
    ]
    assert result.took["malformed"] == 2
    assert sum(server.asked.values()) == 6


def test_an_instruction_is_found_whose_answer_is_the_text(tmp_path: Path) -> None:
    codes = {"def f(): return 1": "Write f.", "def g(): return 2": "Write g."}

    def say(prompt: str, k: int) -> str:
        if prompt in codes.values():
            return "def f(): return 1" if prompt == "Write f." else "def hello(): pass"
        return json.dumps({"instruction": codes[material(prompt)]})

    rows = [{"code": code} for code in codes]
    more = {"column": "code", "samples": 1}
    result, _ = run(tmp_path, say, "reverse", rows, fidelity=0.6, **more)
    assert (result.fates["kept"], result.fates["unlike"]) == (1, 1)
    [row] = read(tmp_path / "out" / "sft.jsonl")
    assert [turn["content"] for turn in row["messages"]] == ["Write f.", "def f(): return 1"]
    assert row["fidelity"] == 1
    # "def g(): return 2" and "def hello(): pass" share one word of three and three.
    assert likeness("def g(): return 2", "def hello(): pass") == pytest.approx(2 / 7)
    result, server = run(tmp_path, say, "reverse", rows, **more)
    assert result.fates["kept"] == 2
    assert not set(codes.values()) & set(server.asked)


FIRST = {"a?": "1.", "b?": "2.", "c?": "3.", "d?": "4.", "e?": "5.", "f?": "cut"}
BETTER = {"a?": "0.", "b?": "9.", "c?": "9.", "d?": "0.", "e?": ""}
REFERENCE = {"a?": "0", "b?": "2", "c?": "3", "d?": "7", "e?": "5", "f?": "6"}


def test_a_revision_is_kept_where_it_alone_is_right(tmp_path: Path) -> None:
    better = {**BETTER, "c?": "it is 3."}

    def say(prompt: str, k: int) -> str:
        if prompt in FIRST:
            return FIRST[prompt]
        question = material(prompt).splitlines()[0]
        faults = ["It is wrong."] if better[question] else []
        return json.dumps({"faults": faults, "answer": better[question] or "5."})

    rows = [{"prompt": q, "right": REFERENCE[q]} for q in FIRST]
    result, _ = run(
        tmp_path, say, "revise", rows, samples=1, reference="right", answer=NUMBER
    )  # fmt: skip
    told = {key: n for key, n in result.fates.items() if n}
    assert told == {
        "kept": 1, "spoilt": 1, "right_before": 1, "still_wrong": 1, "no_faults": 1, "cut": 1,
    }  # fmt: skip
    [chat], [pair] = (read(tmp_path / "out" / name) for name in ("sft.jsonl", "pairs.jsonl"))
    assert chat["messages"][-1]["content"] == "0."
    found = RowFormat("pairs").read(pair)
    assert isinstance(found, Preference)
    assert (found.chosen, found.rejected) == ("0.", "1.")


def test_without_a_reference_the_model_must_prefer_it_in_both_orders(tmp_path: Path) -> None:
    # What the judge thinks of each text, and its one vice: of "d?" it prefers what stands first.
    score = {"1.": 1, "0.": 5, "2.": 5, "9.": 2, "3.": 3}

    def say(prompt: str, k: int) -> str:
        if prompt in FIRST:
            return FIRST[prompt]
        question = re.findall(r"^\| (.\?)$", prompt, re.MULTILINE)[0]
        if "# Replies" not in prompt:
            better = {**BETTER, "c?": "9.", "e?": "5."}[question]
            return json.dumps({"faults": ["It is wrong."], "answer": better})
        _, replies = read_prompt(prompt)
        marks = [5, 1] if question == "d?" else [score[text] for text in replies]
        return json.dumps(reply_json([[mark, 3, 3] for mark in marks]))

    result, _ = run(tmp_path, say, "revise", [{"prompt": q} for q in FIRST], samples=1)
    told = {key: n for key, n in result.fates.items() if n}
    assert told == {"kept": 1, "worse": 2, "flip": 1, "identical": 1, "cut": 1}
    # First answers, revisions of five of them, and four comparisons in both orders.
    assert result.took["calls"] == 6 + 5 + 2 * 4


# Questions about nothing, and refusals

WHO = "Who wrote Emma?"


def test_the_best_rated_bogus_question_becomes_a_column(tmp_path: Path) -> None:
    said = {
        WHO: [(4, "Who wrote Emna?"), (5, "Who wrote Enna?"), (5, "Who wrote Ynna?")],
        "Who rules?": [(2, "Who rules Ur?"), (5, "who  wrote emma?"), (0, "Who?")],
    }

    def say(prompt: str, k: int) -> str:
        rating, question = said[material(prompt)][k]
        return json.dumps({"question": question, "rating": rating, "refusal": f"No {question}"})

    rows: list[dict[str, Any]] = [{"question": text, "answers": ["x"]} for text in said]
    more = {"column": "question", "samples": 3, "attempts": 1}
    result, server = run(tmp_path, say, "bogus", rows, **more)
    assert result.fates == {
        "kept": 1, "spare": 2, "poor": 1, "identical": 1, "unread": 1, "rows_without": 1,
        "repeated": 0, "with_markup": 0,
    }  # fmt: skip
    first, second = read(tmp_path / "out" / "rows.jsonl")
    assert (first["bogus"], first["bogus_refusal"]) == ("Who wrote Enna?", "No Who wrote Enna?")
    assert (first["answers"], first["provenance"]["sample"]) == (["x"], 1)
    assert (second["question"], second["bogus"], second["bogus_refusal"]) == ("Who rules?", "", "")
    assert sum(server.asked.values()) == 6
    result, server = run(tmp_path, say, "bogus", rows, quality=2, **more)
    assert not server.asked  # the replies are there
    assert result.fates["kept"] == 2


def test_a_refusal_keeps_the_answer_to_itself(tmp_path: Path) -> None:
    said = {WHO: "I do not know who did.", "Who rules?": "I am not sure. Queen  ANNE?", "When?": ""}

    def say(prompt: str, k: int) -> str:
        return json.dumps({"refusal": said[material(prompt)]})

    rows = [{"prompt": text, "answers": ["Queen Anne", "Anne"]} for text in said]
    result, server = run(tmp_path, say, "refusal", rows, reference="answers", attempts=2)
    assert {key: n for key, n in result.fates.items() if n} == {"kept": 1, "tells": 1, "unread": 1}
    assert [row["refusal"] for row in read(tmp_path / "out" / "rows.jsonl")] == [said[WHO], "", ""]
    assert sum(server.asked.values()) == 4
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["expected"]["calls"] == 3


def test_refusals_are_made_of_the_columns_that_were_written(tmp_path: Path) -> None:
    def say(prompt: str, k: int) -> str:
        if '"rating"' in prompt:
            return json.dumps({"question": "Who wrote Enna?", "rating": 5, "refusal": "Enna? No."})
        return json.dumps({"refusal": "Emma? I do not know."})

    rows = [{"prompt": WHO, "answers": ["Austen"]}]
    run(tmp_path, say, "bogus", rows, samples=1)
    [written] = read(tmp_path / "out" / "rows.jsonl")
    (tmp_path / "second").mkdir()
    run(tmp_path / "second", say, "refusal", [written], reference="answers")
    [doc] = read(tmp_path / "second" / "out" / "rows.jsonl")
    assert doc["provenance"]["origin"] == written["provenance"]
    scores = {"correct": [0, 0], "incorrect": [1, 1], "not_attempted": [0, 0]}
    answered = {"doc_id": 0, "doc": doc, "filtered_resps": ["Bronte", "Bronte"], **scores}
    write(tmp_path / "samples_who.jsonl", [answered])
    names = ("refusal", "bogus", "bogus_refusal")
    columns = {name: f"{{{{ {name} }}}}" for name in names}
    config = RefusalConfig(question="{{ prompt }}", **columns)
    make_refusals(tmp_path / "samples_who.jsonl", tmp_path / "rows", config)
    chats = [[m["content"] for m in r["messages"]] for r in read(tmp_path / "rows" / "sft.jsonl")]
    assert chats == [[WHO, "Emma? I do not know."], ["Who wrote Enna?", "Enna? No."]]
    [pair] = read(tmp_path / "rows" / "pairs.jsonl")
    assert (pair["chosen"], pair["rejected"]) == ("Emma? I do not know.", "Bronte")


# What is wrong is told


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"step": "plurality", "answer": "math", "samples": 1}, "plurality needs 2"),
        ({"step": "plurality"}, "answer is missing"),
        ({"step": "plurality", "answer": "math", "temperature": 0}, "raise temperature"),
        ({"step": "rewrite", "fidelity": 0.5}, "fidelity means nothing where step is rewrite"),
        ({"step": "revise", "reference": "a"}, "answer is missing"),
        ({"step": "revise", "answer": "math"}, "answer means nothing where step is revise"),
        ({"step": "plurality", "answer": "math", "attempts": 2}, "attempts means nothing"),
        ({"step": "refusal", "samples": 2}, "samples means nothing where step is refusal"),
        ({"step": "rewrite", "quality": 4}, "quality means nothing where step is rewrite"),
        ({"step": "plurl"}, "step"),
    ],
)
def test_settings_that_fit_no_step(given: dict[str, Any], message: str) -> None:
    data = {"engine": "transformers:models/x", **given}
    with pytest.raises(ConfigError, match=message):
        parse_settings(SynthesisConfig, data, "--set")


def test_faults_come_before_any_call(tmp_path: Path) -> None:
    given: dict[str, Any] = {"step": "plurality", "answer": "code"}
    nowhere = SynthesisConfig(engine="transformers:nowhere", **given)
    source = write(tmp_path / "q.jsonl", [{"prompt": "a?"}, {"prompt": ""}, {"question": "b?"}])
    with pytest.raises(RecipeError, match="nowhere: no model here"):
        synthesize([source], tmp_path / "out", nowhere)
    with ScriptedChat(from_script) as server:
        with pytest.raises(ConfigError, match="'code' reads no final answer"):
            synthesize([source], tmp_path / "out", config(server, **given))
        given = {"step": "plurality", "answer": "choice"}
        with pytest.raises(DataError, match=r"line 2: prompt: is empty\n.*line 3: column 'prompt'"):
            synthesize([source], tmp_path / "out", config(server, **given))
        assert not server.asked


def test_the_command_reads_a_file_and_settings_over_it(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from align.cli import app

    source = questions(tmp_path)
    with ScriptedChat(from_script) as server:
        (tmp_path / "a.yaml").write_text(
            f"step: plurality\nengine: chat:{server.url}\nanswer: math\nsamples: 4\n"
            "options: {model: m, concurrency: 1}\n"
        )
        words = ["synthesize", source, "--config", str(tmp_path / "a.yaml"), "--quiet"]
        words += ["--output", str(tmp_path / "out"), "--set", f"answer='{NUMBER}'"]
        done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "5 texts: 20 calls at most" in done.output
    assert "kept 1, all agree 1, all disagree 1, tied 1, unread 1" in done.output
    assert f"{tmp_path}/out/problems.jsonl: 1 rows" in done.output
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such file"):
        CliRunner().invoke(
            app, [*words[:3], str(tmp_path / "nothing.yaml"), "--output=x"], catch_exceptions=False
        )
