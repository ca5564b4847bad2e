"""As much of Go's text/template as `chat_templates/*.gotmpl` uses, for tests.

Text, `{{-`, `if`/`else`/`end`, `range $i, $x := …`, `$x := …`, fields, parentheses, string and
number literals, and the functions of `FUNCTIONS`. Everything else raises. Chats are those that
Ollama gives to a template: before that it joins messages of one role that follow each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

_TAG = re.compile(r"(?P<trim>\s*)\{\{-\s(?P<a>.*?)\}\}|\{\{(?P<b>.*?)\}\}", re.DOTALL)
_WORD = re.compile(r'\s*("(?:[^"\\]|\\.)*"|:=|[(),]|[^\s(),]+)')


class GoError(Exception):
    """What Go says when a template cannot be parsed or executed."""


@dataclass
class Node:
    """Text, an action, or a block with its branches."""

    kind: str
    words: list[str] = field(default_factory=list)
    text: str = ""
    then: list[Node] = field(default_factory=list)
    other: list[Node] = field(default_factory=list)


def _index(held: Any, at: int) -> Any:
    if not 0 <= at < len(held):
        raise GoError(f"error calling index: index out of range: {at} in {held!r}")
    return held[at]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "not": lambda a: not a,
    "and": lambda *a: next((x for x in a if not x), a[-1]),
    "or": lambda *a: next((x for x in a if x), a[-1]),
    "len": len,
    "slice": lambda held, start: held[start:],
    "index": _index,
}


def render(template: str, messages: list[dict[str, str]]) -> str:
    """The text of a chat. Raises GoError where Go would."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    shown = [{"Thinking": "", **{k.capitalize(): v for k, v in m.items()}} for m in messages]
    root = {"System": system, "Messages": shown, "Response": ""}
    nodes, rest = _parse(list(_pieces(template)))
    if rest:
        raise GoError(f"unexpected {rest[0][1]!r}")
    return "".join(_run(nodes, root, {"$": root}))


def _pieces(template: str) -> Iterator[tuple[str, str]]:
    """("text", …) and ("tag", …), with the blanks before `{{-` taken off."""
    at = 0
    for match in _TAG.finditer(template):
        yield "text", template[at : match.start()]
        tag = match["a"] if match["a"] is not None else match["b"]
        if tag.rstrip() != tag and tag.endswith(" -"):
            raise GoError("`-}}` is not known here")
        yield "tag", tag.strip()
        at = match.end()
    yield "text", template[at:]


def _parse(pieces: list[tuple[str, str]]) -> tuple[list[Node], list[tuple[str, str]]]:
    nodes: list[Node] = []
    while pieces:
        (kind, text), pieces = pieces[0], pieces[1:]
        words = _WORD.findall(text) if kind == "tag" else []
        if kind == "text":
            nodes.append(Node("text", text=text))
        elif words[0] in ("if", "range"):
            node = Node(words[0], words[1:])
            node.then, pieces = _parse(pieces)
            if pieces and pieces[0][1] == "else":
                node.other, pieces = _parse(pieces[1:])
            if not pieces or pieces[0][1] != "end":
                raise GoError(f"unexpected EOF in {text!r}")
            pieces = pieces[1:]
            nodes.append(node)
        elif words[0] in ("else", "end"):
            return nodes, [(kind, text), *pieces]
        else:
            nodes.append(Node("action", words))
    return nodes, []


def _run(nodes: list[Node], dot: Any, known: dict[str, Any]) -> Iterator[str]:
    for node in nodes:
        if node.kind == "text":
            yield node.text
        elif node.kind == "if":
            yield from _run(node.then if _value(node.words, dot, known) else node.other, dot, known)
        elif node.kind == "range":
            first, comma, second, equals, *rest = node.words
            if (comma, equals) != (",", ":="):
                raise GoError(f"range {node.words} is not known here")
            for index, item in enumerate(_value(rest, dot, known)):
                yield from _run(node.then, item, {**known, first: index, second: item})
        elif len(node.words) > 1 and node.words[1] == ":=":
            known[node.words[0]] = _value(node.words[2:], dot, known)
        else:
            yield str(_value(node.words, dot, known))


def _value(words: list[str], dot: Any, known: dict[str, Any]) -> Any:
    """A pipeline without pipes: one term, or a function and its terms."""
    terms: list[Any] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "(":
            depth, inner = 1, []
            while depth:
                inner.append(rest.pop(0))
                depth += {"(": 1, ")": -1}.get(inner[-1], 0)
            found = _value(inner[:-1], dot, known)
            while rest and rest[0].startswith("."):
                found = _field(found, rest.pop(0))
            terms.append(found)
        else:
            terms.append(_term(word, dot, known))
    if callable(terms[0]):
        return terms[0](*terms[1:])
    if len(terms) != 1:
        raise GoError(f"{words} is no pipeline")
    return terms[0]


def _term(word: str, dot: Any, known: dict[str, Any]) -> Any:
    if word.startswith('"'):
        return json.loads(word)
    if word.isdigit():
        return int(word)
    if word.startswith("."):
        return _field(dot, word)
    if word.startswith("$"):
        name, _, path = word.partition(".")
        if name not in known:
            raise GoError(f"undefined variable {name!r}")
        return _field(known[name], f".{path}") if path else known[name]
    if word not in FUNCTIONS:
        raise GoError(f"function {word!r} not defined")
    return FUNCTIONS[word]


def _field(held: Any, path: str) -> Any:
    for name in path.split(".")[1:]:
        if not isinstance(held, dict) or name not in held:
            raise GoError(f"can't evaluate field {name}")
        held = held[name]
    return held
