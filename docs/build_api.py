"""docs/api.md from the signatures and docstrings of the public names: `python docs/build.py`."""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pts
import pts.testing

TARGET = Path(__file__).parent / "api.md"
HEAD = """# API reference

Written by `python docs/build.py` from signatures and docstrings; a test keeps it up to date.
Everything here is imported as `pts.NAME`, the last section from `pts.testing`.
"""
SECTIONS = {
    "Searching": ("pts.runtime.search", "pts.algorithm.question", "pts.planning"),
    "Settings": ("pts.config",),
    "Engines": ("pts.engines",),
    "Verifiers": ("pts.verifiers",),
    "Problems, pairs and files": (
        "pts.algorithm.selection",
        "pts.data",
        "pts.runtime",
        "pts.report",
    ),
    "Records": ("pts.types",),
    "Errors": ("pts.errors",),
}
"""Title -> beginnings of the names of the modules whose public names stand there."""
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
WIDTH = 90


def reference() -> str:
    """The page as Markdown. Raises LookupError for a name whose module is in no section."""
    placed = {name: _section(module) for name, module in pts._HOME.items()}
    parts = [HEAD]
    for title in SECTIONS:
        names = sorted((n for n in placed if placed[n] == title), key=str.lower)
        parts += [f"## {title}\n", ", ".join(f"[{n}](#{n.lower()})" for n in names) + "\n"]
        parts += [part for n in names for part in _entry(n, getattr(pts, n), pts._HOME[n])]
    parts.append("## pts.testing\n")
    for name in pts.testing.__all__:
        value = getattr(pts.testing, name)
        parts += _entry(name, value, value.__module__)
    return "\n".join(parts)


def _section(module: str) -> str:
    for title, prefixes in SECTIONS.items():
        if module.startswith(prefixes):
            return title
    raise LookupError(f"docs/build_api.py: give {module} a place in SECTIONS")


def _entry(name: str, value: Any, module: str) -> Iterator[str]:
    """Heading, signature, docstring and members of one public name."""
    yield f"### {name}\n"
    if inspect.isclass(value):
        yield from _class(name, value)
    elif inspect.isfunction(value):
        yield _code(_signature(name, value)) + prose(inspect.getdoc(value) or "")
    else:
        source, said = _assigned(module, None)[name]
        yield _code(f"{name} = {source}") + prose(said)


def _class(name: str, kind: type) -> Iterator[str]:
    fields = getattr(kind, "__dataclass_fields__", None) or getattr(kind, "model_fields", None)
    base = ", ".join(b.__name__ for b in kind.__bases__ if b is not object)
    if issubclass(kind, Exception):
        yield f"Derived from {base}.\n"
    elif not fields and "__init__" in vars(kind) and not getattr(kind, "_is_protocol", False):
        yield _code(_signature(name, kind.__init__))
    yield prose(inspect.getdoc(kind) or "")
    yield from _fields(kind, fields or {})
    for member, found in vars(kind).items():
        function = getattr(found, "fget", None) or getattr(found, "__func__", found)
        called = member == "__call__" and getattr(kind, "_is_protocol", False)
        if inspect.isfunction(function) and (called or not member.startswith("_")):
            yield f"#### {name}.{member}\n"
            if not isinstance(found, property):
                yield _code(_signature(member, function))
            yield prose(_said(kind, member, function))


def _said(kind: type, member: str, function: Any) -> str:
    """A method's docstring, or where the protocol tells what it does."""
    said = inspect.getdoc(function)
    if not said and hasattr(pts.Engine, member):
        return f"See `Engine.{member}`."
    if not said:
        raise LookupError(f"{kind.__name__}.{member} has no docstring")
    return said


def _fields(kind: type, fields: Any) -> Iterator[str]:
    """A table of attributes: those of records and settings, and documented ones of others."""
    known = _assigned(kind.__module__, kind.__name__)
    shown = [n for n in (fields or known) if n in known and not n.startswith("_")]
    if not fields and not any(known[n][1] for n in shown) and not issubclass(kind, enum.Enum):
        return
    rows = []
    for name in shown:
        source, said = known[name]
        text = kind.__annotations__.get(name, "")
        bounds = (
            [
                f"{SIGNS[key]} {value:g}"
                for m in getattr(fields[name], "metadata", ()) or ()
                for key, value in ((k, getattr(m, k, None)) for k in SIGNS)
                if value is not None
            ]
            if fields
            else []
        )
        typed = (f"`{text}` " if text else "") + ", ".join(bounds)
        cells = (f"`{name}`", typed.strip(), _default(fields, name, source), " ".join(said.split()))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if rows:
        yield "| attribute | type | default | meaning |\n|---|---|---|---|"
        yield "\n".join(rows) + "\n"


def _default(fields: Any, name: str, source: str) -> str:
    field = fields.get(name) if fields else None
    if hasattr(field, "is_required"):
        return "" if field.is_required() else f"`{field.default!r}`"
    if source.startswith("field(default_factory="):
        return f"`{source.removeprefix('field(default_factory=').removesuffix(')')}()`"
    return f"`{source}`" if source else ""


@cache
def _assigned(module: str, kind: str | None) -> dict[str, tuple[str, str]]:
    """Name -> (source of the value, docstring under it), in a module or in one of its classes."""
    importlib.import_module(module)
    body = ast.parse(inspect.getsource(sys.modules[module])).body
    if kind is not None:
        body = next(n.body for n in body if isinstance(n, ast.ClassDef) and n.name == kind)
    found: dict[str, tuple[str, str]] = {}
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name):
            text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            said = inspect.cleandoc(str(after.value.value)) if text else ""
            found[target.id] = (ast.unparse(node.value) if node.value else "", said)
    return found


def _signature(name: str, function: Any) -> str:
    """`name(parameters) -> type`, a parameter a line where one line would be too long."""
    signature = inspect.signature(function)
    given: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.name in {"self", "cls"}:
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not any(g[0] == "*" for g in given):
            given.append("*")
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        text = stars.get(parameter.kind, "") + parameter.name
        typed = parameter.annotation is not parameter.empty
        text += f": {parameter.annotation}" if typed else ""
        if parameter.default is not parameter.empty:
            shown = getattr(parameter.default, "__name__", None) or repr(parameter.default)
            text += f" = {shown}" if typed else f"={shown}"
        given.append(text)
    result = signature.return_annotation
    arrow = "" if result is signature.empty or name[0].isupper() else f" -> {result}"
    line = f"{name}({', '.join(given)}){arrow}"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {text},\n" for text in given) + f"){arrow}"


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n\n"


def prose(doc: str) -> str:
    """A docstring as Markdown: its `Args:` become a list."""
    lines, inside = [], False
    for line in doc.splitlines():
        if re.fullmatch(r"(Args|Returns|Raises):", line):
            inside = True
            line = f"{line}\n"
        elif inside and re.match(r"    \w+:", line):
            name, _, rest = line.strip().partition(":")
            line = f"- `{name}`:{rest}"
        elif inside and line.startswith("    "):
            line = f"  {line.strip()}"
        else:
            inside = inside and not line
        lines.append(line)
    return "\n".join(lines) + "\n"


def files() -> dict[Path, str]:
    """What `python docs/build.py` writes for this part."""
    return {TARGET: reference()}
