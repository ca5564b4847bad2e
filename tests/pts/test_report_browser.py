"""The reports in a real browser: opened, clicked and read. `make test-all` runs it.

The screenshots of a run lie where pytest is told to keep them (`--basetemp=FOLDER`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pts.config import SamplingConfig, SearchConfig
from pts.engines.tabular import TabularEngine, TabularVerifier
from pts.report.page import report_data, write_report
from pts.runtime.run_folder import RunFolder
from pts.runtime.search import search
from pts.testing.shapes import sparse
from pts.types import Grade, Problem, Verdict
from tests.align.runs import write_run
from tests.browser import MISSING, Browser

from .scripted import ScriptedEngine, judge_odd, problems
from .slow_search import CONFIG
from .test_report import HOSTILE, HostileEngine

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

READABLE = 4.5
"""Contrast of text to its ground that WCAG 2 asks for (level AA)."""
PHONE = 390
TOKENS = "document.querySelectorAll('.answer .token')"
RIGHT_ARROW = "\ue014"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


def judge(problem: Problem, text: str) -> Grade:
    """q1 cannot be judged, q2 is always right and q3 always wrong."""
    if problem.id == "q1":
        return Grade(Verdict.UNSCORED)
    fixed = {"q2": Verdict.PASS, "q3": Verdict.FAIL}
    return Grade(fixed[problem.id]) if problem.id in fixed else judge_odd(problem, text)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("run")
    config = CONFIG.model_copy(update={"p_max": 0.8})
    search(problems(8), ScriptedEngine(8), judge, config, output=folder)
    return RunFolder(folder)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("hostile")
    texts = [text.replace("\ud83d", "") for text in HOSTILE]  # an id must be encodable
    asked = [Problem(text + str(k), "a" + text, "odd") for k, text in enumerate(texts)]
    search(asked, HostileEngine(8), judge_odd, CONFIG, output=folder)
    return RunFolder(folder)


def check(browser: Browser, page: Path, pictures: Path, name: str) -> None:
    """Fits a phone, is readable in both modes, asks for nothing, complains of nothing."""
    for width, dark in ((1280, False), (PHONE, False), (PHONE, True), (1280, True)):
        browser.requests()
        browser.open(page, width=width, dark=dark)
        browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        place = f"{name}-{width}{'-dark' if dark else ''}"
        browser.screenshot(pictures / f"{place}.png", whole=True)
        assert browser.sideways() <= 0, place
        ratio, text = browser.least_contrast()
        assert ratio >= READABLE, (place, text)
        assert browser.complaints() == []
        assert browser.requests() == [page.absolute().as_uri()]


def shown(browser: Browser) -> list[str]:
    script = "return [...document.querySelectorAll('#rows .name')].map(row => row.textContent)"
    return list(browser.run(script))


def test_a_search_is_read_on_any_screen(browser: Browser, run: RunFolder, tmp_path: Path) -> None:
    check(browser, write_report(run.path, tmp_path / "page.html"), tmp_path, "search")


def test_every_filter_shows_its_questions(browser: Browser, run: RunFolder, tmp_path: Path) -> None:
    browser.open(write_report(run.path, tmp_path / "page.html"))
    results = [record.result for record in run.records]
    expected = {status: [r.problem_id for r in results if r.status == status]
                for status in {r.status for r in results}}  # fmt: skip
    assert set(expected) == {"searched", "too easy", "too hard", "unscored"}
    paired = {pair.problem_id for pair in run.pairs}
    expected["with pairs"] = [r.problem_id for r in results if r.problem_id in paired]
    expected["all"] = [r.problem_id for r in results]
    names = browser.run(
        "return [...document.querySelectorAll('#filters button')].map(b => b.innerText)"
    )
    assert sorted(names) == sorted(f"{name} {len(ids)}" for name, ids in expected.items())
    for number, name in enumerate(names):
        browser.click("#filters button", number)
        assert shown(browser) == expected[name.rpartition(" ")[0]]
        pressed = browser.run("return document.querySelector('[aria-pressed=true]').innerText")
        assert pressed == name
        assert browser.text("#question h2") in shown(browser)
    browser.run("const f = document.getElementById('find'); f.value = 'Q3'; f.oninput()")
    assert set(shown(browser)) <= {"q3"}
    assert browser.complaints() == []


def test_every_question_opens(browser: Browser, run: RunFolder, tmp_path: Path) -> None:
    browser.open(write_report(run.path, tmp_path / "page.html"), width=PHONE)
    for number, question in enumerate(report_data(run)["questions"]):
        browser.click("#rows button", number)
        assert browser.text("#question h2") == question["id"]
        assert question["status"] in browser.text("#question .facts")
        answers = len(question["paths"])
        assert (
            len(browser.all("#question .answer"))
            == len(browser.all("#question svg.chart"))
            == answers
        )
        assert browser.sideways() <= 0
    assert browser.complaints() == []


def first_with_pairs(run: RunFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """The question that the page opens with, and its answer."""
    questions = report_data(run)["questions"]
    found = next(
        q for q in questions if any(p["confirmed"] for x in q["paths"] for p in x["pairs"])
    )
    return found, found["paths"][0]


def test_tokens_siblings_and_pairs_are_told(
    browser: Browser, run: RunFolder, tmp_path: Path
) -> None:
    browser.open(write_report(run.path, tmp_path / "page.html"))
    question, path = first_with_pairs(run)
    assert browser.text("#question h2") == question["id"]
    for at in range(len(path["tokens"])):
        browser.click(".answer .token", at)
        detail = browser.text(".detail")
        assert f"token {at + 1} of {len(path['tokens'])}" in detail
        for _, _, passed, n in path["siblings"].get(str(at), []):
            assert f"{passed} of {n}" in detail
        if pivot := path["pivots"].get(str(at)):
            assert f"{abs(pivot[0]):.2f}" in detail.partition("Δ")[2]
            colour = f"return getComputedStyle({TOKENS}[{at}]).backgroundColor"
            assert browser.run(colour) != "rgba(0, 0, 0, 0)"
    assert any(path["siblings"].values())
    table = browser.text("#question section > .scroll table")
    for number, pair in enumerate(path["pairs"]):
        assert f"{abs(pair['expected_gain']):.2f}" in table
        browser.click("td button", number)
        assert f"token {pair['at'] + 1} of" in browser.text(".detail")
    assert table.count("✓ confirmed") == sum(pair["confirmed"] for pair in path["pairs"])
    browser.click("svg.chart")  # its middle
    assert f"of {len(path['tokens'])}" in browser.text(".detail")
    assert browser.complaints() == []


def test_the_keyboard_is_enough(browser: Browser, run: RunFolder, tmp_path: Path) -> None:
    browser.open(write_report(run.path, tmp_path / "page.html"))
    length = len(first_with_pairs(run)[1]["tokens"])
    assert length > 1
    browser.click(".answer .token", 0)
    browser.press(RIGHT_ARROW)
    assert f"token 2 of {length}" in browser.text(".detail")
    focus = "const style = getComputedStyle(document.activeElement); return style.outlineStyle"
    assert browser.run(focus) == "solid"
    assert len(browser.all(".answer [tabindex='0']")) == 1
    # Every thing that a click works on is a button, a field or has a stop of its own.
    clicked = (
        "return [...document.querySelectorAll(':not(button, .answer, .chart)')]"
        ".filter(x => x.onclick).length"
    )
    assert browser.run(clicked) == 0


def test_hostile_text_does_nothing(browser: Browser, hostile: RunFolder, tmp_path: Path) -> None:
    page = write_report(hostile.path, tmp_path / "page.html")
    check(browser, page, tmp_path, "hostile")
    browser.open(page, width=PHONE)
    for number in range(len(HOSTILE)):
        browser.click("#rows button", number)
        for at in range(min(4, len(browser.all(".answer .token")))):
            browser.click(".answer .token", at)
        assert browser.sideways() <= 0
    assert browser.run("return document.title") == "Pivotal token search"
    assert browser.all("img") == []
    assert len(browser.all("script")) == 2
    text = browser.text("body")
    assert HOSTILE[0] in text
    assert not set(text) & set("\u202e\u200b\u2066\x1b\u2028")
    assert "⟨U+202E⟩" in text
    assert browser.run("return [standing('\\u200d'), standing('\\u0301'), standing('')]") == [
        "⟨U+200D⟩",
        "◌\u0301",
        "∅",
    ]
    assert browser.complaints() == []


def test_steps_are_marked(browser: Browser, tmp_path: Path) -> None:
    machines = [sparse(np.random.default_rng(seed), 30).machine for seed in range(2)]
    engine = TabularEngine(machines, SamplingConfig(max_new_tokens=48))
    folder = tmp_path / "run"
    search(engine.problems(), engine, TabularVerifier(), SearchConfig(unit="step"), output=folder)
    steps = [
        s
        for q in report_data(RunFolder(folder))["questions"]
        for p in q["paths"]
        for s in p["steps"]
    ]
    assert steps
    browser.open(write_report(folder), width=PHONE)
    browser.screenshot(tmp_path / "steps.png", whole=True)
    assert "None: pairs are made of single tokens" in browser.run(
        "return document.getElementById('words').textContent"
    )
    assert browser.sideways() <= 0
    assert browser.complaints() == []


def test_a_post_train_is_read_on_any_screen(browser: Browser, tmp_path: Path) -> None:
    from align.report.page import write_report as write_run_report

    nasty = "{} <img src=x onerror=\"document.title='owned'\"> \u202e" + "y" * 500
    page = write_run_report(write_run(tmp_path / "run", nasty, name="<i>tiny</i>"))
    check(browser, page, tmp_path, "run")
    assert browser.run("return document.title") == "<i>tiny</i>"
    assert browser.all("img, script, i") == []
    browser.click("a")
    assert browser.run("return document.title") == "Pivotal token search"


def test_data_of_a_recipe_are_read_on_any_screen(browser: Browser, tmp_path: Path) -> None:
    from align.pipeline.data import view_data
    from align.pipeline.recipe import parse_recipe
    from align.report.data_page import write_data_page
    from tests.align.test_data_command import recipe

    views = view_data(parse_recipe(recipe(tmp_path), "own.yaml"), [], samples=8)
    page = tmp_path / "data.html"
    write_data_page(views, "<i>own</i>", page)
    check(browser, page, tmp_path, "data")
    assert browser.run("return document.title") == "Data of <i>own</i>"
    hidden = (
        "return [...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)"
    )
    assert browser.run(hidden) == [0, 0], "trained tokens stand far right, and are seen"
    assert "it is 0<|im_end|>" in browser.run(
        "return [...document.querySelectorAll('.sample .trained')].map(e => e.textContent).join('')"
    )


def test_a_comparison_is_read_on_any_screen(browser: Browser, tmp_path: Path) -> None:
    from align.compare.pairing import compare
    from align.compare.readers import read_results
    from align.compare.table import write_page
    from tests.align.test_compare import FILES

    page = tmp_path / "compare.html"
    found = compare(read_results(FILES / "lm_eval_a"), read_results(FILES / "lm_eval_b"))
    write_page(found, page)
    check(browser, page, tmp_path, "compare")
    assert browser.run("return document.querySelectorAll('svg circle').length") == len(found.rows)
