"""The templates in Ollama's language write what the jinja ones write.

They are run by an evaluator of the part of Go that they use (`go_templates.py`), and, where a `go`
is on the path, by Go's own text/template.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="pip install hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

from align.export.model_folder import without_marks
from align.export.ollama import go_template, template_name
from align.models.load import FROM_TRL, published_text, template_text
from tests.align.go_templates import GoError, render
from tests.align.test_template_masks import ENDS, TRIMMED, tokenizer

NAMES = sorted(ENDS)
WITHOUT_SYSTEM = ("gemma",)
CHATS: dict[str, list[dict[str, str]]] = {
    "one turn": [{"role": "user", "content": "1+1?"}],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello\nthere"},
    ],
    "several turns": [
        {"role": "user", "content": "a {{ .Role }} {% if %}"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
    "system and turns": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "2 < 3 & \"4\""},
        {"role": "user", "content": "日本"},
        {"role": "assistant", "content": "e\n\nf"},
        {"role": "user", "content": "g"},
    ],
    "to be continued": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "The answer"},
    ],
}  # fmt: skip
GO = """
package main

import (
    "encoding/json"
    "os"
    "strings"
    "text/template"
)

type Message struct{ Role, Content, Thinking string }
type Case struct {
    Template string
    Messages []*Message
}

func main() {
    var cases []Case
    if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
        panic(err)
    }
    said := []string{}
    for _, c := range cases {
        var b strings.Builder
        var system []string
        for _, m := range c.Messages {
            if m.Role == "system" {
                system = append(system, m.Content)
            }
        }
        values := map[string]any{"System": strings.Join(system, "\\n\\n"), "Messages": c.Messages}
        t, err := template.New("").Option("missingkey=zero").Parse(c.Template)
        if err == nil {
            err = t.Execute(&b, values)
        }
        if err != nil {
            b.WriteString("ERROR " + err.Error())
        }
        said = append(said, b.String())
    }
    json.NewEncoder(os.Stdout).Encode(said)
}
"""


def expected(name: str, chat: list[dict[str, str]]) -> str:
    """What the jinja writes, without bos, which llama.cpp adds; a last answer is left open."""
    opened = chat[-1]["role"] != "assistant"
    text = tokenizer(name).apply_chat_template(chat, tokenize=False, add_generation_prompt=opened)
    if not opened:
        text = text[: text.rindex(ENDS[name])]
    return str(text).removeprefix("<s>") if "bos_token" in template_text(name) else str(text)


def knows(name: str, chat: list[dict[str, str]]) -> bool:
    return name not in WITHOUT_SYSTEM or chat[0]["role"] != "system"


CASES = [(name, label) for name in NAMES for label in CHATS if knows(name, CHATS[label])]


@pytest.mark.parametrize(("name", "label"), CASES)
def test_both_languages_write_the_same_chat(name: str, label: str) -> None:
    assert render(go_template(name), CHATS[label]) == expected(name, CHATS[label])


CONTENT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: text.strip() == text and "</think>" not in text and not set("<>|") & set(text)
)
"""Blanks around content, which some templates take off, are another test; qwen3 reads thoughts out
of content, which Ollama gives apart from it."""


@pytest.mark.parametrize("name", NAMES)
@given(system=st.none() | CONTENT, turns=st.lists(CONTENT, min_size=1, max_size=6))
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_any_chat_is_written_alike(name: str, system: str | None, turns: list[str]) -> None:
    roles = ("user", "assistant")
    chat = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    if system is not None and name not in WITHOUT_SYSTEM:
        chat.insert(0, {"role": "system", "content": system})
    assert render(go_template(name), chat) == expected(name, chat)


@pytest.mark.parametrize("name", NAMES)
def test_blanks_around_content_differ_only_where_jinja_trims(name: str) -> None:
    chat = [{"role": "user", "content": " a \n"}]
    same = render(go_template(name), chat) == expected(name, chat)
    assert same == (name not in TRIMMED)


@pytest.mark.parametrize(
    ("name", "chat"),
    [
        ("chatml", [{"role": "tool", "content": "x"}]),
        ("chatml-newline", [{"role": "tool", "content": "x"}]),
        ("mistral", [{"role": "tool", "content": "x"}]),
        ("gemma", [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]),
        ("gemma3", [{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]),
    ],
)
def test_what_a_template_does_not_know_is_an_error_and_no_text(
    name: str, chat: list[dict[str, str]]
) -> None:
    with pytest.raises(GoError, match=f"index out of range: 99 in '{name} "):
        render(go_template(name), chat)


@pytest.mark.parametrize("name", NAMES)
def test_a_template_is_recognised_by_its_text(name: str) -> None:
    assert template_name(template_text(name)) == name
    assert template_name(without_marks(template_text(name))) == name
    assert template_name(template_text(name).replace("content", "text")) is None


def test_of_the_published_templates_qwen3_alone_is_another() -> None:
    known = {name: template_name(published_text(name)) for name in FROM_TRL}
    assert known == {name: None if name == "qwen3" else name for name in FROM_TRL}


@pytest.mark.parametrize("name", NAMES)
def test_templates_without_marks_write_the_same_text(name: str) -> None:
    chat = CHATS["several turns"]
    marked = tokenizer(name)
    write: Callable[..., Any] = marked.apply_chat_template
    plain = without_marks(template_text(name))
    assert "generation %" not in plain
    assert write(chat, tokenize=False, chat_template=plain) == write(chat, tokenize=False)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="no go on the path")
def test_go_itself_writes_the_same(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text(GO)
    asked = [
        {"Template": go_template(name), "Messages": [
            {key.capitalize(): value for key, value in message.items()} for message in CHATS[label]
        ]}
        for name, label in CASES
    ]  # fmt: skip
    system = {"Template": go_template("gemma"), "Messages": [{"Role": "system", "Content": "x"}]}
    done = subprocess.run(
        ["go", "run", "main.go"], cwd=tmp_path, input=json.dumps([*asked, system]),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    *said, refused = json.loads(done.stdout)
    assert said == [expected(name, CHATS[label]) for name, label in CASES]
    assert refused.startswith("ERROR ")
    assert "gemma has no system role" in refused
