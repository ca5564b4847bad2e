"""What a verifier is known by in a run's fingerprint: class, settings, and code if not shipped."""

from __future__ import annotations

import dis
import functools
import hashlib
import re
import types
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any

from pts.files import plain
from pts.verifiers.base import Verifier

SHIPPED = ("pts", "align", "builtins")
"""Packages whose code is known by its name."""
ASSIGNED = ("STORE_GLOBAL", "STORE_DEREF", "DELETE_GLOBAL", "DELETE_DEREF")
"""Instructions by which a function changes a name outside of it."""
CHANGED_IN_PLACE = {
    *("add", "append", "clear", "discard", "extend", "insert"),
    *("pop", "popitem", "remove", "setdefault", "update"),
}
"""Methods by which a function may change what such a name holds."""
CONSTANTS = (str, int, float, tuple, frozenset, re.Pattern, PurePath)
CONTAINERS = (list, dict, set)
LONGEST = 200
"""Characters of a container that stand in a fingerprint; of longer ones a digest does."""
MOST_HELD = 10_000
"""Members of a container that are looked at; of a larger one the number is."""


def describe_verifier(verifier: Verifier) -> str:
    """A verifier's class and settings; a function's name.

    Settings are attributes that are plain values, patterns or functions, and containers of these
    under public names; others are left out. Of functions and classes that are not shipped a digest
    of their code follows (see `code_digest`).
    """
    name = getattr(verifier, "__qualname__", type(verifier).__qualname__)
    slots = [slot for kind in type(verifier).__mro__ for slot in getattr(kind, "__slots__", ())]
    names = sorted({*getattr(verifier, "__dict__", {}), *slots})
    settings = {n: _setting(n, getattr(verifier, n, None)) for n in names}
    told = ", ".join(f"{n}={v}" for n, v in settings.items() if v is not None)
    functions = [verifier] if _is_function(verifier) else [*_methods(type(verifier))]
    return f"{name}({told}){_mark(functions)}"


def _setting(name: str, value: Any) -> str | None:
    if isinstance(value, CONSTANTS):
        return repr(plain(value))
    if isinstance(value, CONTAINERS):
        said = repr(_held(value))
        short = said if len(said) <= LONGEST else f"{said[:20]}… #{_digest(said)}"
        return None if name.startswith("_") else short
    if isinstance(value, functools.partial):
        return f"partial{_mark([value])}"
    told = getattr(value, "__qualname__", None)
    return None if told is None else f"{told}{_mark([value])}"


def _is_function(value: Any) -> bool:
    return isinstance(value, types.FunctionType | types.MethodType | functools.partial)


def _methods(kind: type) -> Iterator[Any]:
    """The functions of a class and of those that it inherits from."""
    for each in kind.__mro__:
        for _, held in sorted(vars(each).items()):
            yield getattr(held, "fget", getattr(held, "__func__", held))


def _mark(functions: Iterable[Any]) -> str:
    own = [f for f in functions if _is_function(f) and not _is_shipped(f)]
    return f" #{code_digest(own)}" if own else ""


def _is_shipped(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).partition(".")[0] in SHIPPED


def code_digest(functions: Iterable[Any]) -> str:
    """8 hexadecimal digits for what functions do.

    It covers their bytecode, which a change of comments or layout leaves as it is, their defaults,
    and of what they read from around them constants, containers that they leave as they are, and
    functions that are not shipped. It does not cover classes and modules that they call.
    """
    seen: set[int] = set()
    return _digest(repr([[*_parts(function, seen)] for function in functions]))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


def _held(value: Any) -> Any:
    return plain(value) if len(value) <= MOST_HELD else len(value)


def _parts(value: Any, seen: set[int]) -> Iterator[Any]:
    """All that decides what a function does, in an order of its own."""
    if isinstance(value, functools.partial):
        yield from map(plain, (value.args, value.keywords))
        value = value.func
    function = getattr(value, "__func__", value)
    if not isinstance(function, types.FunctionType) or id(function) in seen:
        yield getattr(function, "__qualname__", type(function).__qualname__)
        return
    seen.add(id(function))
    yield plain((function.__defaults__, function.__kwdefaults__))
    codes = [*_codes(function.__code__)]
    for code in codes:
        yield code.co_code.hex(), code.co_names, code.co_varnames
        yield [plain(c) for c in code.co_consts if not isinstance(c, types.CodeType)]
    for name, held in sorted(_around(function, codes).items()):
        yield name
        if isinstance(held, types.FunctionType) and not _is_shipped(held):
            yield from _parts(held, seen)
        elif isinstance(held, CONSTANTS):
            yield plain(held)
        elif isinstance(held, CONTAINERS):
            yield _held(held)


def _around(function: types.FunctionType, codes: list[types.CodeType]) -> dict[str, Any]:
    """What a function reads of names outside of it and does not change, by name."""
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    named = [name for code in codes for name in code.co_names]
    found |= {name: function.__globals__[name] for name in named if name in function.__globals__}
    steps = [step for code in codes for step in dis.get_instructions(code)]
    for step in steps:
        if step.opname in ASSIGNED:
            found.pop(step.argval, None)
    if CHANGED_IN_PLACE & {*named} or any(step.opname == "STORE_SUBSCR" for step in steps):
        found = {name: v for name, v in found.items() if not isinstance(v, CONTAINERS)}
    return found


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code and that of all functions inside it."""
    yield code
    for held in code.co_consts:
        if isinstance(held, types.CodeType):
            yield from _codes(held)
