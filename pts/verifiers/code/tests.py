"""Runs the tests of one problem against stand-ins, and says how that ended."""

from __future__ import annotations

import ast
import builtins
import copy
import importlib
import math
import socket
import sys
from types import ModuleType
from typing import Any, TypeGuard

from pts.verifiers.code.candidate import MODULE
from pts.verifiers.code.harness import Harness, RemoteError
from pts.verifiers.code.wire import CannotCross, ChannelClosed

SHOWN = 200
"""Characters of a failed assertion or an exception that a reason holds."""
_FILE = "<tests>"


def run_tests(
    tree: ast.Module, code: str, entry_point: str, as_json: bool, connection: socket.socket
) -> dict[str, Any]:
    """Run the tests against the code, whose process is at the other end of the connection.

    The code's names stand for themselves in the tests, but no builtin (except an entry point of
    that name) and no module of the standard library is replaced: what judges must not come from
    the judged. An entry point is a function's name; where the code has none but a class `Solution`
    with such a method, or where it reads "Solution().add", each call has an object of its own.
    `as_json` compares values as `same_json` does. Returns {"verdict", "kind", "detail"}, and
    "untouched" where the tests ended without having asked anything of the code. Raises
    ChannelClosed when the code's process is gone.
    """
    used = names_of(tree)
    harness = Harness(connection, used)
    try:
        given = harness.load(code)
        names = {n: v for n, v in given.items() if n == entry_point or not hasattr(builtins, n)}
        if entry_point:
            names[entry_point] = _function(given, entry_point)
            if names[entry_point] is None:
                return failure("missing", f"the code defines no {entry_point!r}")
        if not entry_point and not used & set(names):
            return failure("missing", "the code defines nothing that the tests use")
        reached = _run(tree, names, entry_point, as_json)
    except ChannelClosed:
        raise
    except BaseException as error:
        return {**_ended_by(error, tree), "untouched": not harness.asked}
    if not reached and not harness.raised:  # one of them was what the tests expected
        return failure("assertion", "no assertion of the tests was reached")
    return {"verdict": "pass", "kind": "", "detail": ""}


def _function(given: dict[str, Any], entry_point: str) -> Any:
    """What an entry point names; None where the code does not define it."""
    name, of_class, method = entry_point.partition("().")
    if name in given and not of_class:
        return given[name]
    owner = given.get(name if of_class else "Solution")
    if owner is None or not hasattr(owner, method or name):
        return None
    return lambda *args, **keywords: getattr(owner(), method or name)(*args, **keywords)


def names_of(tree: ast.AST) -> frozenset[str]:
    """All names and attributes that the tests use."""
    nodes = list(ast.walk(tree))
    found = {node.id for node in nodes if isinstance(node, ast.Name)}
    found |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return frozenset(found | {alias.name for node in imports for alias in node.names})


def _run(tree: ast.Module, names: dict[str, Any], entry_point: str, as_json: bool) -> int:
    """How many assertions were reached. Raises what the tests raise."""
    reached: list[None] = []
    module = sys.modules[MODULE] = ModuleType(MODULE)  # for `from solution import name`
    module.__dict__.update(names)
    space = {**names, **_modules(tree), "__name__": "tests", "__builtins__": builtins}
    space["__assertion__"], space["__same__"] = lambda: reached.append(None), same_json
    if entry_point:
        space["candidate"] = names[entry_point]
    marked = ast.fix_missing_locations(_Marking(as_json).visit(copy.deepcopy(tree)))
    exec(compile(marked, _FILE, "exec", dont_inherit=True), space)
    for name, takes in runnable(tree):
        space[name](*[names.get(entry_point)][:takes])
    return len(reached)


def _modules(tree: ast.AST) -> dict[str, ModuleType]:
    """Modules that the tests use without importing them, as in `math.isclose(...)`."""
    names = modules_used(tree)
    return {name: importlib.import_module(name) for name in names}


def modules_used(tree: ast.AST) -> frozenset[str]:
    """Modules of the standard library that have attributes taken without being bound."""
    nodes = list(ast.walk(tree))
    bases = {n.value.id for n in nodes if isinstance(n, ast.Attribute) and _is_name(n.value)}
    bound = {n.id for n in nodes if _is_name(n) and isinstance(n.ctx, ast.Store)}
    return frozenset(bases - bound) & sys.stdlib_module_names


def _is_name(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name)


def runnable(tree: ast.Module) -> list[tuple[str, int]]:
    """What the tests define to be called, with its number of arguments: check(candidate), test_*().

    Functions that the tests call themselves are not among them.
    """
    lines = [n.value for n in tree.body if isinstance(n, ast.Expr)]
    calls = [line.func for line in lines if isinstance(line, ast.Call)]
    called = {function.id for function in calls if _is_name(function)}
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name not in called]
    takes = [(f.name, len(f.args.args)) for f in functions]
    return [(n, k) for n, k in takes if (n, k) == ("check", 1) or (n.startswith("test") and k == 0)]


class _Marking(ast.NodeTransformer):
    """Puts a mark before each assertion: tests that reach none prove nothing."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        call = ast.Call(ast.Name("__assertion__", ast.Load()), [], [])
        if self._as_json and isinstance(node.test, ast.Compare):
            sides = [node.test.left, *node.test.comparators]
            node.test = ast.Call(ast.Name("__same__", ast.Load()), sides, [])
        return [ast.copy_location(ast.Expr(call), node), node]


def same_json(value: Any, expected: Any) -> bool:
    """Whether a value is what JSON tests expect, which know neither tuples nor keys but text.

    Numbers may differ by a relative 1e-9, for what wrote the JSON may have rounded them. APPS has
    some values in a list of their own, so a list of one item also stands for the item.
    """
    value = _as_json(value)
    inner = expected[0] if isinstance(expected, list) and len(expected) == 1 else expected
    return _close(value, expected) or _close(value, inner)


def _as_json(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return list(map(_as_json, value))
    if isinstance(value, dict):
        return {_key(key): _as_json(item) for key, item in value.items()}
    return value


def _key(key: Any) -> Any:
    spelled = {True: "true", False: "false"}.get(key) if isinstance(key, bool) else str(key)
    return spelled if isinstance(key, (bool, int, float)) else "null" if key is None else key


def _close(value: Any, expected: Any) -> bool:
    if isinstance(expected, list) and isinstance(value, list):
        return len(value) == len(expected) and all(map(_close, value, expected))
    if isinstance(expected, dict) and isinstance(value, dict):
        return value.keys() == expected.keys() and all(_close(value[k], expected[k]) for k in value)
    if isinstance(expected, bool) is not isinstance(value, bool):
        return False  # in Python True is 1, in JSON it is not
    numbers = isinstance(expected, (int, float)) and isinstance(value, (int, float))
    if numbers and float in (type(value), type(expected)):
        return math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-9)
    return bool(value == expected)


def failure(kind: str, detail: str) -> dict[str, str]:
    return {"verdict": "fail", "kind": kind, "detail": detail[:SHOWN]}


def _ended_by(error: BaseException, tree: ast.Module) -> dict[str, str]:
    if isinstance(error.__cause__, RemoteError):
        return failure(*kind_of(error.__cause__.kind, error.__cause__.message))
    if isinstance(error, AssertionError):
        return failure("assertion", _line(error, tree))
    if isinstance(error, (CannotCross, ModuleNotFoundError)):
        return {"verdict": "unscored", "kind": "tests", "detail": str(error)}
    return failure("exception", f"{type(error).__name__}: {error} (in the tests)")


def kind_of(name: str, message: str) -> tuple[str, str]:
    """Kind and detail of an exception of the code."""
    kinds = {"MemoryError": "memory", "PermissionError": "forbidden", "SystemExit": "exited early"}
    if name == "OSError" and ("Read-only file system" in message or "No space left" in message):
        return "forbidden", f"{name}: {message}"
    if name == "OSError" and "File too large" in message:
        return "output", message
    return kinds.get(name, "exception"), f"{name}: {message}"


def _line(error: AssertionError, tree: ast.Module) -> str:
    """The assertion that failed, as the tests wrote it."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _FILE:
            line = trace.tb_lineno
        trace = trace.tb_next
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert) and node.lineno <= line <= (node.end_lineno or line):
            return ast.unparse(node)
    return str(error) or f"line {line}"
