"""What the code verifier reads: code in a completion, tests in a reference."""

from __future__ import annotations

import ast
import json
import re
import sys
from typing import Any, NamedTuple

from pts.errors import DataError
from pts.verifiers.code.candidate import MODULE
from pts.verifiers.code.tests import runnable

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+.-]*)[^\n`]*$", re.MULTILINE)
_PYTHON = frozenset({"python", "py", "python3", "py3"})


class Case(NamedTuple):
    """What a program reads and what it must print."""

    stdin: str
    stdout: str


Tests = str | tuple[Case, ...]
"""Python that asserts something of what the code defines, or the cases of a program."""


def extract_code(text: str) -> str:
    """The last fenced Python block, else the last fenced block, else the whole text.

    A block that is never closed reaches to the end of the text.
    """
    blocks: list[tuple[str, str]] = []
    mark, language, start = "", "", 0
    for fence in _FENCE.finditer(text):
        if not mark:
            mark, language, start = fence[1], fence[2].lower(), fence.end() + 1
        elif fence[1].startswith(mark) and not fence[2]:
            blocks.append((language, text[start : fence.start()]))
            mark = ""
    if mark:
        blocks.append((language, text[start:]))
    python = [code for language, code in blocks if language in _PYTHON]
    return python[-1] if python else blocks[-1][1] if blocks else text


def read_tests(reference: str, entry_point: str) -> Tests:
    """The tests of a reference, in one of the forms that `pts.verifiers.code.verifier` lists.

    Raises DataError for what can test nothing: it does not compile, holds no assertion, needs a
    package that the sandbox does not have, or defines check(candidate) without an entry point.
    """
    if reference.lstrip()[:1] in ("[", "{"):
        try:
            data = json.loads(reference)
        except (ValueError, RecursionError):
            data = None  # a set or list at the start of Python; it says itself what is wrong
        if isinstance(data, list) and data and all(isinstance(line, str) for line in data):
            reference = "\n".join(data)
        elif isinstance(data, (list, dict)):
            cases = _cases(data)
            if not isinstance(cases, str):
                return cases
            reference = cases
    _check(reference, entry_point)
    return reference


def _cases(data: list[Any] | dict[str, Any]) -> tuple[Case, ...] | str:
    """Cases of a program, or the assertions that calls of a function come to."""
    about = data if isinstance(data, dict) else {}
    inputs, outputs, name = (about.get(key) for key in ("inputs", "outputs", "fn_name"))
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise DataError('JSON tests are ["assert ...", ...] or {"inputs": [...], "outputs": [...]}')
    if len(inputs) != len(outputs):
        raise DataError(f"{len(inputs)} inputs, but {len(outputs)} outputs")
    if not inputs:
        raise DataError("the tests hold no cases")
    if name is not None:
        if not (isinstance(name, str) and name.isidentifier()):
            raise DataError(f"fn_name must be the name of a function, got {name!r}")
        if not all(isinstance(arguments, list) for arguments in inputs):
            raise DataError("with fn_name, each of the inputs is the list of a call's arguments")
        pairs = zip(inputs, outputs, strict=True)
        return "\n".join(f"assert {name}(*{a!r}) == {b!r}" for a, b in pairs)
    if not all(isinstance(text, str) for text in inputs + outputs):
        raise DataError("inputs and outputs of programs must be text")
    return tuple(map(Case, inputs, outputs))


def _check(tests: str, entry_point: str) -> None:
    try:
        tree = ast.parse(tests)
        compile(tree, "<tests>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"the tests do not compile ({error})") from error
    nodes = list(ast.walk(tree))
    if not any(isinstance(node, ast.Assert) for node in nodes):
        raise DataError("the tests hold no assertion")
    imported = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    imported += [n.module or "." for n in nodes if isinstance(n, ast.ImportFrom)]
    missing = {m.split(".")[0] for m in imported} - sys.stdlib_module_names - {MODULE}
    if missing:
        names = ", ".join(sorted(missing))
        raise DataError(f"the tests import {names}; only the standard library is there")
    if not entry_point and ("check", 1) in runnable(tree):
        raise DataError("the tests define check(candidate), and no entry point is given")
