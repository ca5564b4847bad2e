"""Runs the tests of one problem against stand-ins, and says how that ended."""

from __future__ import annotations

import ast
import builtins
import importlib
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
    tree: ast.Module, code: str, entry_point: str, connection: socket.socket
) -> dict[str, str]:
    """Run the tests against the code, whose process is at the other end of the connection.

    The code's names stand for themselves in the tests, but no builtin (except an entry point of
    that name) and no module of the standard library is replaced: what judges must not come from
    the judged. Returns {"verdict", "kind", "detail"}. Raises ChannelClosed when the code's process
    is gone.
    """
    used = names_of(tree)
    harness = Harness(connection, used)
    try:
        given = harness.load(code)
        if entry_point and entry_point not in given:
            return failure("missing", f"the code defines no {entry_point!r}")
        names = {n: v for n, v in given.items() if n == entry_point or not hasattr(builtins, n)}
        if not entry_point and not used & set(names):
            return failure("missing", "the code defines nothing that the tests use")
        reached = _run(tree, names, entry_point)
    except ChannelClosed:
        raise
    except BaseException as error:
        return _ended_by(error, tree)
    if not reached and not harness.raised:  # one of them was what the tests expected
        return failure("assertion", "no assertion of the tests was reached")
    return {"verdict": "pass", "kind": "", "detail": ""}


def names_of(tree: ast.AST) -> frozenset[str]:
    """All names and attributes that the tests use."""
    nodes = list(ast.walk(tree))
    found = {node.id for node in nodes if isinstance(node, ast.Name)}
    found |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return frozenset(found | {alias.name for node in imports for alias in node.names})


def _run(tree: ast.Module, names: dict[str, Any], entry_point: str) -> int:
    """How many assertions were reached. Raises what the tests raise."""
    reached: list[None] = []
    module = sys.modules[MODULE] = ModuleType(MODULE)  # for `from solution import name`
    module.__dict__.update(names)
    space = {**names, **_modules(tree), "__name__": "tests", "__builtins__": builtins}
    space["__assertion__"] = lambda: reached.append(None)
    if entry_point:
        space["candidate"] = names[entry_point]
    marked = ast.fix_missing_locations(_Marking().visit(tree))
    exec(compile(marked, _FILE, "exec", dont_inherit=True), space)
    for name, takes in runnable(tree):
        space[name](*[names.get(entry_point)][:takes])
    return len(reached)


def _modules(tree: ast.AST) -> dict[str, ModuleType]:
    """Modules that the tests use without importing them, as in `math.isclose(...)`."""
    nodes = list(ast.walk(tree))
    bases = {n.value.id for n in nodes if isinstance(n, ast.Attribute) and _is_name(n.value)}
    bound = {n.id for n in nodes if _is_name(n) and isinstance(n.ctx, ast.Store)}
    names = (bases - bound) & sys.stdlib_module_names
    return {name: importlib.import_module(name) for name in names}


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

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        call = ast.Call(ast.Name("__assertion__", ast.Load()), [], [])
        return [ast.copy_location(ast.Expr(call), node), node]


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
