"""The HTML page and the text view: complete, offline, and safe with hostile model text."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pts.config import SearchConfig
from pts.errors import DataError, JournalError
from pts.report.page import report_data, script_json, write_report
from pts.report.text import overview, printable, question
from pts.report.words import RunCounts, explanations
from pts.runtime.results import record_line
from pts.runtime.run_folder import RunFolder
from pts.runtime.search import search
from pts.types import Grade, Ids, Problem

from .scripted import ScriptedEngine, judge_odd, problems
from .slow_search import CONFIG

HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<!-- <script> \u2028 &lt; \x1b[2J\ud83d",
    "\u0301\u202e\u200b\u2066" + "x" * 3000,
]


class HostileEngine(ScriptedEngine):
    """Every letter reads as something that wants to be markup."""

    def token_texts(self, ids: Ids) -> list[str]:
        return [HOSTILE[i % len(HOSTILE)] for i in ids]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("plain")
    search(problems(6), ScriptedEngine(8), judge_odd, CONFIG, output=folder)
    return RunFolder(folder)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("hostile")
    asked = [Problem(HOSTILE[k] + str(k), "a", "odd") for k in range(2)]
    search(asked, HostileEngine(8), judge_odd, CONFIG, output=folder)
    return RunFolder(folder)


class Tags(HTMLParser):
    """Start tags and the text of each script, as a browser's parser would find them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and data.strip():
            self.scripts.append(data)


def page_of(folder: RunFolder, tmp_path: Path) -> str:
    return write_report(folder.path, tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_page_holds_all_of_the_run(run: RunFolder, tmp_path: Path) -> None:
    parsed = Tags(page_of(run, tmp_path))
    data = json.loads(parsed.scripts[0])
    assert data == json.loads(json.dumps(report_data(run)))
    results = [record.result for record in run.records]
    assert [q["id"] for q in data["questions"]] == [result.problem_id for result in results]
    for shown, result in zip(data["questions"], results, strict=True):
        assert [len(p["tokens"]) for p in shown["paths"]] == [len(p.ids) for p in result.paths]
        assert [len(p["pivots"]) for p in shown["paths"]] == [len(p.tokens) for p in result.paths]
        assert shown["prompt"] == run.text(result.prompt_ids)
    marked = [p for q in data["questions"] for path in q["paths"] for p in path["pairs"]]
    assert sum(pair["confirmed"] for pair in marked) >= len(run.pairs) > 0
    assert data["run"]["confirmed"] == len(run.pairs)


def test_a_page_stays_small_and_says_so(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Totals are of all questions, whatever number is shown."""
    whole = report_data(run)
    monkeypatch.setattr("pts.report.page.QUESTIONS", 4)
    assert report_data(run) == {**whole, "questions": whole["questions"][:4]}
    sizes = [len(script_json(question)) for question in whole["questions"]]
    monkeypatch.setattr("pts.report.page.BYTES", sum(sizes[:3]) - 1)
    assert report_data(run) == {**whole, "questions": whole["questions"][:2]}
    monkeypatch.setattr("pts.report.page.BYTES", 1)
    assert report_data(run)["questions"] == whole["questions"][:1], "one in any case"
    page = write_report(run.path, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "questions.length < questionCount" in page


def test_undecided_tokens_are_shown_as_such(run: RunFolder, tmp_path: Path) -> None:
    """They stand apart from the report, in the page and in the text view."""
    for name in ("journal.jsonl", "results.jsonl", "token_texts.json"):
        shutil.copy(run.path / name, tmp_path / name)
    records = list(run.records)
    found = next(r for r in records if any(path.tokens for path in r.result.paths))
    path = next(path for path in found.result.paths if path.tokens)
    token = dataclasses.replace(path.tokens[0], decided=False)
    moved = dataclasses.replace(path, tokens=path.tokens[1:], undecided=(token,))
    result = dataclasses.replace(found.result, paths=(moved,))
    line = record_line(dataclasses.replace(found, result=result)) + "\n"
    (tmp_path / "results.jsonl").write_text(line, encoding="utf-8")
    folder = RunFolder(tmp_path)
    ((shown,),) = [q["paths"] for q in report_data(folder)["questions"]]
    mean, low, high, n, decided, method = shown["undecided"][str(token.position)]
    assert (round(token.delta.mean, 4), token.delta.n, False) == (mean, n, decided)
    assert (low, high, method) == (
        round(token.delta.low, 4),
        round(token.delta.high, 4),
        token.delta.method,
    )
    assert str(token.position) not in shown["pivots"]
    text = "\n".join(question(folder, result.problem_id))
    assert f"at {token.position}: q {token.prob:.2f}" in text
    assert f"by {token.delta.method} (undecided)" in text
    _, line = overview(folder)
    assert line.split()[2] == str(len(moved.tokens))


def test_the_page_needs_no_network(run: RunFolder, tmp_path: Path) -> None:
    page = page_of(run, tmp_path)
    assert "default-src 'none'" in page
    for tag, attributes in Tags(page).tags:
        assert tag not in {"link", "img", "iframe", "object"}
        assert "src" not in attributes
        assert "href" not in attributes
    assert set(re.findall(r"https?://[^\s\"']+", page)) <= {"http://www.w3.org/2000/svg"}


def test_model_text_stays_text(hostile: RunFolder, run: RunFolder, tmp_path: Path) -> None:
    plain, page = Tags(page_of(run, tmp_path)), Tags(page_of(hostile, tmp_path))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert page.scripts[1] == plain.scripts[1]
    paths = [path for q in json.loads(page.scripts[0])["questions"] for path in q["paths"]]
    assert {text for path in paths for text, _ in path["tokens"]} >= set(HOSTILE[:2])


def test_the_script_sets_text_only() -> None:
    parts = list((Path(__file__).parents[2] / "pts" / "report").glob("*.[hj]*"))
    assert len(parts) == 3
    for part in parts:
        wrong = r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\("
        assert not re.search(wrong, part.read_text())


@pytest.mark.parametrize("text", [*HOSTILE, "]]>", "é\u2029\x00", "&amp;<>"])
def test_script_json_is_json_without_markup(text: str) -> None:
    written = script_json({"text": text})
    assert not set(written) & set("<>&\u2028\u2029")
    assert json.loads(written) == {"text": text}


def words_of(folder: RunFolder) -> dict[str, str]:
    return dict(report_data(folder)["run"]["words"])


def test_the_page_explains_the_run_in_words(run: RunFolder) -> None:
    words = words_of(run)
    proposed = [p for r in run.records for path in r.result.paths for p in path.pairs]
    for criterion in {pair.criterion for pair in proposed}:
        kept = sum(pair.criterion == criterion for pair in run.pairs)
        asked = sum(pair.criterion == criterion for pair in proposed)
        assert f"{criterion} {kept} of {asked}" in words["Confirmed"]
    assert words["Confirmed"].startswith(f"{len(run.pairs)} of {len(proposed)} proposed")
    assert "at most 50 %" in words["Confirmed"]  # fdr=0.5
    assert "up to 16 rollouts" in words["Pairs"]
    assert "exceeds 0.15" in words["Pairs"]  # p_gap - indifference_margin
    assert "at most 60 rollouts" in words["Method"]
    assert "8 rollouts of each question" in words["Questions"]
    # 2.24 standard errors on both sides of a normal mean hold 97.49 %.
    assert "2.24 standard errors, nominally 97.5 %" in words["Intervals"]


@pytest.mark.parametrize(
    ("settings", "term", "said"),
    [
        ({"z": 2.576}, "Intervals", "nominally 99 %"),
        ({"method": "bisect", "bisect_rollouts": 32}, "Method", "share of 32 rollouts"),
        ({"unit": "step"}, "Pairs", "None"),
        (
            {"p_gap": 0.3, "unit": "step"},
            "Pivotal",
            "A step is pivotal if it changes p(success) by 0.3 or more",
        ),
    ],
)
def test_words_follow_the_settings(settings: dict[str, Any], term: str, said: str) -> None:
    config = SearchConfig.model_validate(settings)
    words = dict(explanations(config, {"temperature": 0.7, "top_k": 40}, RunCounts(True)))
    assert said in words[term]
    assert "temperature 0.7, top-k 40." in words["p(success)"]


def test_costs_add_up_by_purpose(run: RunFolder) -> None:
    data = report_data(run)["run"]
    for key in ("rollouts", "tokens", "passed", "truncated", "unscored"):
        assert sum(spent[key] for spent in data["spent"].values()) == data["total"][key]
    assert run.summary is not None
    for purpose, spent in run.summary["spent"].items():
        assert data["spent"][purpose]["rollouts"] == spent["rollouts"]


def test_a_run_that_is_not_finished_has_a_page(run: RunFolder, tmp_path: Path) -> None:
    for name in ("journal.jsonl", "results.jsonl"):
        shutil.copy(run.path / name, tmp_path / name)
    data: dict[str, Any] = json.loads(Tags(page_of(RunFolder(tmp_path), tmp_path)).scripts[0])
    assert data["run"]["finished"] is False
    assert dict(data["run"]["words"])["Confirmed"].startswith("Not yet")
    assert data["questions"][0]["prompt"].startswith("⟨97⟩")


def test_folders_without_a_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no journal\.jsonl"):
        write_report(tmp_path)
    for name in ("journal.jsonl", "results.jsonl"):
        (tmp_path / name).write_text("")
    with pytest.raises(JournalError, match="no header"):
        write_report(tmp_path)


# The text view


def test_the_overview_has_a_line_a_question(run: RunFolder) -> None:
    head, *lines = overview(run)
    assert [line.split()[-1] for line in lines] == [p.id for p in problems(6)]
    assert sum(int(line.split()[-2]) for line in lines) == len(run.pairs)
    assert head.split() == ["status", "solved", "pivotal", "proposed", "pairs", "question"]


def test_a_question_is_shown_with_its_tokens_and_pairs(run: RunFolder) -> None:
    results = [record.result for record in run.records]
    result = next(r for r in results if any(path.tokens for path in r.paths))
    text = "\n".join(question(run, result.problem_id))
    for path in result.paths:
        for token in path.tokens:
            assert f"{run.token_text(token.token)} {token.delta.mean:+.2f}⟧" in text
        for pair in path.pairs:
            assert f"pair at {pair.position} ({pair.criterion}" in text


def test_unknown_questions_are_refused(run: RunFolder) -> None:
    with pytest.raises(DataError, match="no question 'q'; did you mean"):
        question(run, "q")


def test_model_text_cannot_steer_the_terminal(hostile: RunFolder) -> None:
    lines = [*overview(hostile), *question(hostile, HOSTILE[0] + "0")]
    assert not any("\x1b" in line for line in lines)
    assert printable("a\x1b[2J\nb\r") == "a\\x1b[2J\nb\\r"


def test_judging_nothing_is_shown_too(tmp_path: Path) -> None:
    def never(problem: Problem, text: str) -> Grade:
        raise OSError("broken")

    search(problems(1), ScriptedEngine(8), never, CONFIG, output=tmp_path)
    (_, line) = overview(RunFolder(tmp_path))
    assert line.startswith("unscored")
    assert "q0" in "\n".join(question(RunFolder(tmp_path), "q0"))
    write_report(tmp_path)
