"""The report is read as a reader's browser would: as markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from align.errors import ManifestError
from align.evaluation import tables
from align.report.answers import changed_problems
from align.report.charts import forest, gains_side_by_side, lines
from align.report.page import duration, write_report
from pts.types import Estimate
from tests.align.evaluations import store
from tests.align.runs import write_run

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Tags that stand open, headings, links, and every attribute value."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(write_run(tmp_path_factory.mktemp("run"))).read_text(encoding="utf-8")


def test_the_page_is_balanced_and_loads_nothing(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"https?://|url\(|@import", html)
    assert [v for name, v in page.attributes if name in {"href", "src"}] == ["pts/report.html"]


def test_every_section_is_there(html: str) -> None:
    text = " ".join(Page(html).text)
    for expected in (
        "tiny",
        "0123456789 with uncommitted changes",
        "8 min 12 s",  # eight stages of 61.5 s
        "+ full DPO does not hold at",
        "Accuracy by stage, %",
        "Accuracy by family of problems, %",
        "Greedy answers before and after",
        "Pivotal tokens",
        "Probability at the pairs' position",
        "rows too long",
        "4,800",
    ):
        assert expected in text, expected


def test_what_fails_stands_before_what_holds(html: str) -> None:
    claims = re.findall(r'<li class="(fails|holds)">', html)
    assert claims == sorted(claims)
    assert set(claims) == {"fails", "holds"}


def test_pivotal_tokens_are_marked_on_real_answers(html: str, tmp_path: Path) -> None:
    marks = re.findall(
        r'<mark class="(?:up|down)" title="probability [\d.]+, p\(success\) [+-][\d.]+"', html
    )
    assert marks
    assert 'aria-label="p(success) along an answer"' in html


def test_model_text_cannot_become_markup(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script><b title='\"&{}'>"
    page = write_report(write_run(tmp_path, nasty, name="<i>x</i>")).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<i>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&lt;b title=&#39;&#34;&amp;" in page
    assert Page(page).open == []


def test_characters_that_hide_or_turn_text_are_shown_by_number(tmp_path: Path) -> None:
    hidden = "a\u202eb\u2066c\u200bd\x1be\u2028f \U0001f469\u200d\U0001f680"
    page = write_report(write_run(tmp_path, hidden)).read_text(encoding="utf-8")
    shown = "a⟨U+202E⟩b⟨U+2066⟩c⟨U+200B⟩d⟨U+001B⟩e⟨U+2028⟩f \U0001f469\u200d\U0001f680"
    assert shown in page
    assert "\u202e" not in page


def test_rows_follow_the_chain_and_not_the_order_in_which_they_were_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base may be measured last, and a folder may hold an arm that the recipe has no more."""
    write_run(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    stages = list(manifest["stages"].items())
    manifest["stages"] = {"eval/rejection_sft": stages[0][1], **dict(reversed(stages))}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    asked: list[list[str]] = []
    build = tables.build_table
    monkeypatch.setattr(
        tables, "build_table", lambda f, n, *more: asked.append(n) or build(f, n, *more)
    )
    write_report(tmp_path)
    assert asked == [["base", "sft", "token_dpo", "full_dpo"]]


def test_a_run_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"recipe": {"name": "n"}, "stages": {}}))
    assert Page(write_report(tmp_path).read_text()).open == []
    stages = {"eval/base": {"seconds": 1, "metrics": {}}}
    (tmp_path / "manifest.json").write_text(json.dumps({"recipe": {}, "stages": stages}))
    store(tmp_path, "base", [0, 1], [3, 4])
    assert "Evidence" in write_report(tmp_path).read_text()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="not found"):
        write_report(tmp_path)


def test_problems_are_picked_by_rule(tmp_path: Path) -> None:
    before = store(tmp_path, "base", [0, 0, 0, 1, 1, 1], [0] * 6)
    after = store(tmp_path, "sft", [1, 1, 1, 0, 0, 1], [0] * 6)
    by_id = [{item.id: item for item in e.items} for e in (before, after)]
    # Two that were gained and one that was lost, the first of each; q5 did not change.
    assert changed_problems(by_id) == ["q0", "q1", "q3"]


def test_panels_of_gains_share_one_scale() -> None:
    def panel(mean: float) -> list[tuple[str, list[float]]]:
        return [("a", [0.0]), ("b", [mean, mean])]

    svg = gains_side_by_side({"one & all": panel(0.1), "two": panel(-0.1)})
    assert "one &amp; all" in svg
    x = [float(at) for at in re.findall(r'<circle cx="([0-9.]+)"', svg)]
    nothing, up, same, down = x
    assert up - nothing == pytest.approx(same - down, abs=0.11), "10 points, either way"
    # From -11 to +11 points on 140 pixels, a round step that gives at most five parts: 5 points.
    assert up - nothing == pytest.approx(140 * 10 / 22, abs=0.11)
    assert re.findall(r">([+-]?[0-9]+)</text>", svg) == ["-10", "-5", "0", "+5", "+10"] * 2


def test_a_forest_has_a_dot_where_the_mean_is() -> None:
    svg = forest([("a", [Estimate(0.5, 0.25, 0.75, 4, "wilson")])], width=420)
    # The axis runs from 92 to 406: its middle is 249, its quarters 170.5 and 327.5.
    assert 'cx="249.0"' in svg
    assert 'x1="170.5"' in svg
    assert 'x2="327.5"' in svg


def test_curves_span_their_axes() -> None:
    svg = lines([("loss", [(1, 2.0), (2, 1.0)])], "Loss", width=300, height=150)
    assert 'points="46.0,8.0 290.0,128.0"' in svg
    assert "nan" not in lines([("flat", [(1, 0.0), (2, 0.0)])], "Loss")
    assert lines([], "Loss") == ""


@pytest.mark.parametrize(
    ("seconds", "said"), [(59.4, "59 s"), (60, "1 min 00 s"), (3725, "1 h 02 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
