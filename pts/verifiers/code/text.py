"""What the code verifier reads in a reference: tests."""

from __future__ import annotations

import ast
import builtins
import json
import sys
from typing import Any, NamedTuple

from pts.errors import DataError
from pts.verifiers.code.candidate import MODULE
from pts.verifiers.code.tests import modules_used, runnable


class Asserts(NamedTuple):
    """Python that asserts something of what the code defines.

    `entry_point` is the function under test, where one is named; `wanted` are the names that the
    code has to define. `as_json`: values are compared as JSON writes them.
    """

    tests: str
    entry_point: str
    wanted: frozenset[str]
    as_json: bool = False


class Case(NamedTuple):
    """What a program reads and what it must print."""

    stdin: str
    stdout: str


Tests = Asserts | tuple[Case, ...]


def read_tests(reference: str, entry_point: str) -> Tests:
    """The tests of a reference, in one of the forms that `pts.verifiers.code.verifier` lists.

    Raises DataError for what can test nothing: it does not compile, holds no assertion, needs a
    package that the sandbox does not have, or defines check(candidate) without an entry point.
    """
    if reference.lstrip()[:1] in ("[", "{"):
        try:
            data = _loads(reference)
        except DataError:
            raise
        except (ValueError, RecursionError):
            data = None  # a set or list at the start of Python; it says itself what is wrong
        if isinstance(data, list) and data and all(isinstance(line, str) for line in data):
            reference = "\n".join(data)
        elif isinstance(data, list) and data and all(isinstance(row, dict) for row in data):
            return _live_code_bench(data, entry_point)
        elif isinstance(data, (list, dict)):
            return _cases(data)
    return _asserts(reference, entry_point)


def _no_number(name: str) -> None:
    raise DataError(f"{name} is no JSON, and nothing can be compared with it")


def _asserts(tests: str, entry_point: str, as_json: bool = False) -> Asserts:
    _check(tests, entry_point)
    wanted = free_names(ast.parse(tests))
    named = {entry_point.partition("(")[0]} if entry_point else set()
    return Asserts(tests, entry_point, wanted | named, as_json)


def free_names(tree: ast.AST) -> frozenset[str]:
    """Names that tests use and do not bind: the code has to define them."""
    used: set[str] = set()
    bound = {"candidate", *dir(builtins)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.ImportFrom) and node.module == MODULE:
            used |= {alias.name for alias in node.names} - {"*"}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return frozenset(used - bound - (sys.stdlib_module_names & modules_used(tree)))


def _live_code_bench(rows: list[dict[str, Any]], entry_point: str) -> Tests:
    """Tests as LiveCodeBench has them: what a program reads, or a call's arguments a line."""
    if not all(isinstance(row.get(key), str) for row in rows for key in ("input", "output")):
        raise DataError('each of the JSON tests is {"input": text, "output": text}')
    if not any(row.get("testtype") == "functional" for row in rows):
        return tuple(Case(row["input"], row["output"]) for row in rows)
    if not entry_point:
        raise DataError("functional tests need an entry point, the function's name")
    try:
        inputs = [list(map(_loads, row["input"].splitlines())) for row in rows]
        outputs = [_loads(row["output"]) for row in rows]
    except ValueError as error:
        raise DataError(f"inputs and outputs of functional tests are JSON ({error})") from error
    return _calls(entry_point, inputs, outputs)


def _loads(text: str) -> Any:
    return json.loads(text, parse_constant=_no_number)


def _calls(name: str, inputs: list[Any], outputs: list[Any]) -> Asserts:
    pairs = zip(inputs, outputs, strict=True)
    tests = "\n".join(f"assert {name}(*{a!r}) == {b!r}" for a, b in pairs)
    return _asserts(tests, name, as_json=True)


def _cases(data: list[Any] | dict[str, Any]) -> Tests:
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
        return _calls(name, inputs, outputs)
    return tuple(map(Case, map(_program_text, inputs), map(_program_text, outputs)))


def _program_text(value: Any) -> str:
    """What a program reads or prints; APPS gives some as lists of lines."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise DataError("inputs and outputs of programs must be text")
    return value


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
