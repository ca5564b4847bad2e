"""docs/tutorial.md from its first command to its last, with the files that it prints."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from align.cli import app
from align.refusals.settings import REFUSALS
from align.tasks.word_problems.facts import facts
from tests.align.scripted_judge import ScriptedJudge, reply_json

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
ENDPOINT = "http://localhost:8000"
"""The judge's, on the page."""
ASKED = "Where does Brano Kelt live?\n\n"
"""What `align chat` is told: a question, then an empty line."""


class LineJudge(ScriptedJudge):
    """Likes working: an answer's detail is its number of lines."""

    def _say(self, prompt: str, conversation: str, replies: list[str], tries: int) -> Any:
        scores = [[3, 3, min(5, len(reply.splitlines()))] for reply in replies]
        choice = {"message": {"content": json.dumps(reply_json(scores))}, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 50}
        return 200, {"choices": [choice], "usage": usage}, {}


@pytest.fixture
def judge() -> Iterator[LineJudge]:
    server = LineJudge()
    with server:
        yield server


def commands(block: str) -> list[list[str]]:
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def align(words: list[str]) -> str:
    """What a command of the page prints."""
    done = CliRunner().invoke(app, words, input=ASKED, catch_exceptions=False)
    assert done.exit_code == 0, (words, done.output)
    return done.output


def follow(page: str) -> dict[str, str]:
    """Do what a page says in the current folder: write its files, run its Python and its commands.

    Returns what each command printed.
    """
    said = {}
    for language, block in re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL):
        if language == "python":
            exec(compile(block, "tutorial.md", "exec"), {"__name__": "docs"})
        elif language == "yaml":
            name = block.partition("\n")[0].removeprefix("# ")
            Path(name).write_text(block)
        else:
            for program, *words in commands(block):
                assert program == "align"
                said[shlex.join(words)] = align(words)
    return said


def rows(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def test_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: LineJudge) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("align.pipeline.run.cores", lambda: 1)  # no second process
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(ENDPOINT) == 1
    said = follow(text.replace(ENDPOINT, judge.url))

    # The planted question went, from the chats that are trained on as well.
    leak = next(csv.DictReader(Path("data/test.csv").read_text().splitlines()))["prompt"]
    removed = [row["row"] for row in rows("clean/removed.jsonl")]
    questions = [row["messages"][0]["content"] for row in removed if "messages" in row]
    assert leak in questions
    assert leak not in {row["messages"][0]["content"] for row in rows("clean/clean/chats.jsonl")}

    # The judge's cost was told before it was asked; right answers and working are preferred.
    stages = json.loads(Path("runs/mine/manifest.json").read_text())["stages"]
    [most] = re.findall(r"asked (\d+) times at most", said["check mine.yaml"])
    told = stages["full_dpo"]["metrics"]
    assert 0 < told["judge"]["calls"] == sum(judge.asked.values()) <= int(most)
    assert told["judge"]["unscored"]["share"] == 0
    pairs = rows("runs/mine/full_dpo/pairs.jsonl")
    assert len(pairs) == told["pairs"] > 0
    for pair in pairs:
        better, worse = pair["chosen"], pair["rejected"]
        if pair["by"] == "accuracy":
            assert (better["accuracy"], worse["accuracy"]) == (5, 1)
        else:
            assert better["overall"] > worse["overall"]
    assert stages["token_dpo"]["metrics"]["pairs"] == stages["pts"]["metrics"]["pairs"] > 0
    page = Path("runs/mine/report.html").read_text()
    assert "judge" in page
    assert "p (Holm)" in said["compare runs/mine/eval/sft runs/mine/eval/full_dpo"]

    # What it gets wrong becomes refusals, what it knows stays an answer, and both are trained on.
    chats = rows("runs/refusals/sft.jsonl")
    for row in chats:
        reply = row["messages"][-1]["content"]
        assert (reply in REFUSALS) == (row["kind"] == "unknown")
        assert row["right" if row["kind"] == "known" else "wrong"] > 0.5
    names = {fact.question for fact in facts()}
    unknown = {row["messages"][0]["content"] for row in chats if row["kind"] == "unknown"}
    assert len(unknown & names) > 5
    assert {row["kind"] for row in chats} == {"known", "unknown"}
    again = json.loads(Path("runs/refuse/manifest.json").read_text())["stages"]
    assert again["sft"]["metrics"]["sources"]["refusals"]["kept"] == len(chats)
    kept = again["full_dpo"]["metrics"]["sources"]["refusals"]["kept"]
    assert kept == len(rows("runs/refusals/pairs.jsonl"))
    assert "asked, not_attempted" in said["compare runs/before/asked runs/after/asked"]
