"""`align data`: what is shown before any training, in the terminal and as a page."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from align.cli import app
from align.errors import RecipeError, StageError
from align.pipeline.data import view_data
from align.pipeline.recipe import load_recipe, parse_recipe
from align.report.data_page import write_data_page
from align.report.data_text import print_view
from tests.test_docs import ROOT, blocks

HOSTILE = "</span><script>alert(1)</script> & \u202e \x1b[31m"


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe(tmp_path: Path, **more: Any) -> dict[str, Any]:
    rows = [{"prompt": f"{k}?", "completion": f"it is {k}"} for k in range(6)]
    rows += [{"prompt": HOSTILE, "completion": HOSTILE}, {"prompt": "long", "completion": "a" * 99}]
    pairs = [{"prompt": "q", "chosen": "yes", "rejected": side} for side in ("no", "yes")]
    stages = [
        {
            "kind": "sft",
            "sources": [{"path": write(tmp_path / "chats.jsonl", *rows), "name": "chats"}],
            "max_length": 90,
            "losses": {"too_long": 0.2},
            **more,
        },
        {
            "kind": "full_dpo",
            "sources": [{"path": write(tmp_path / "pairs.jsonl", *pairs), "name": "pairs"}],
            "losses": {"identical_sides": 0.5},
        },
    ]
    return {
        "name": "own",
        "model": {"path": "builtin:phi-nano"},
        "task": {"kind": "word_problems"},
        "stages": stages,
    }


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = parse_recipe(recipe(tmp_path_factory.mktemp("data")), "own.yaml")
    return view_data(made, [], samples=8)


def test_counts_lengths_and_rows(views: Any) -> None:
    sft, dpo = views
    counts = sft.counts["chats"]
    assert (counts.drawn, counts.kept, counts.too_long) == (8, 7, 1)
    lengths = sft.sources["chats"].lengths
    assert sum(lengths) == 8
    assert lengths[-1] == 1
    assert sft.edges()[-1] == sft.max_length == 90
    assert len(sft.sources["chats"].samples) == 7
    assert sft.sources["chats"].lost["too_long"].place.endswith("chats.jsonl, line 8")
    assert sft.faults == dpo.faults == ()
    assert dpo.counts["pairs"].identical_sides == 1
    [pair] = dpo.sources["pairs"].samples
    assert [(name, [text for text, on in pieces if on]) for name, pieces in pair.texts] == [
        ("chosen", ["yes<|im_end|>"]),
        ("rejected", ["no<|im_end|>"]),
    ]


def test_the_samples_are_a_fixed_random_choice(tmp_path: Path) -> None:
    made = parse_recipe(recipe(tmp_path), "own.yaml")
    first, second = (view_data(made, ["sft"], samples=3)[0] for _ in range(2))
    assert first.sources == second.sources
    assert len(first.sources["chats"].samples) == 3


@pytest.mark.parametrize("colour", [True, False])
def test_the_terminal_tells_what_is_trained_with_and_without_colour(
    views: Any, colour: bool
) -> None:
    told = io.StringIO()
    console = Console(
        file=told, force_terminal=colour, color_system="standard" if colour else None, width=200
    )
    print_view(views[0], console)
    text = told.getvalue()
    assert ("\x1b[1;32mit is 0<|im_end|>\x1b[0m" if colour else "⟦it is 0<|im_end|>⟧") in text
    assert "\x1b[31m" not in text  # of a row
    assert "\\x1b[31m" in text
    assert "1 (12.5%)" in text


class Page(HTMLParser):
    """Tags and texts, and which texts are trained on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.trained: list[str] = []
        self._open: list[bool] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag == "span":
            self._open.append(("class", "trained") in attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if any(self._open):
            self.trained.append(data)


def test_the_page_loads_nothing_and_escapes_what_rows_hold(views: Any, tmp_path: Path) -> None:
    write_data_page(views, "own", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert not re.findall(r"(?:src|href)=|url\(|@import", text)
    assert "default-src 'none'" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    trained = "".join(page.trained)
    assert "it is 0<|im_end|>" in trained
    assert "</span><script>alert(1)</script> & ⟨U+202E⟩ ⟨U+001B⟩[31m<|im_end|>" in trained


def test_the_command_shows_and_then_refuses_what_the_run_would(tmp_path: Path) -> None:
    told = recipe(tmp_path, losses={"too_long": 0.1})
    (tmp_path / "own.yaml").write_text(json.dumps(told))
    page = tmp_path / "page.html"
    words = ["data", str(tmp_path / "own.yaml"), "--html", str(page), "--examples", "0"]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, StageError)
    assert "chats: 1 of 8 rows are too long and dropped (12.5%)" in str(result.exception)
    assert "too long" in result.output
    assert "above sft.losses.too_long (0.1)" in page.read_text(encoding="utf-8")


def test_demonstrations_of_a_task_are_shown_too() -> None:
    made = load_recipe("phi-nano", ["sft.num_examples=20"])
    [view] = view_data(made, [], samples=1)
    counts = view.counts["demonstrations"]
    assert (counts.drawn, counts.kept, counts.lost_stop) == (20, 20, 0)
    [shown] = view.sources["demonstrations"].samples
    [(_, pieces)] = shown.texts
    assert pieces[-1][1]
    assert pieces[-1][0].endswith("<|im_end|>")


def test_a_stage_without_rows_is_refused() -> None:
    with pytest.raises(RecipeError, match="--stage: pts: trains on no rows that are there before"):
        view_data(load_recipe("phi-nano"), ["pts"], samples=1)


def test_the_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [text] = blocks(ROOT / "docs" / "data.md", "python")
    exec(compile(text, "data.md", "exec"), {"__name__": "docs"})
