"""The process that runs the judged code and answers what the tests ask of it.

It never holds the tests. Nothing that it says decides a verdict by itself: the other side compares
the values, on its own copies.
"""

from __future__ import annotations

import atexit
import builtins
import io
import os
import random
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NoReturn

from pts.verifiers.code.wire import Channel, ChannelClosed, Crossing

MODULE = "solution"
MESSAGE = 300
"""Characters of an exception's text that are passed on."""
FREE = frozenset(
    f"__{name}__"
    for name in (
        *("call", "len", "iter", "next", "reversed", "getitem", "setitem", "delitem"),
        *("bool", "str", "repr", "int", "float", "index", "hash", "enter", "exit"),
        *("neg", "pos", "abs", "invert"),
    )
)
"""Special methods that the tests may call on any object of the code."""
_OPERATORS = (
    *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow"),
    *("and", "or", "xor", "lshift", "rshift"),
)
BINARY = frozenset(f"__{p}{name}__" for name in _OPERATORS for p in ("", "r", "i")) | frozenset(
    f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge", "contains")
)
"""Special methods that take part in a comparison or an operation; see
`pts.verifiers.code.harness`."""


class Candidate:
    """Runs the code and serves requests: load, call, get, set, special, isinstance."""

    def __init__(self, connection: socket.socket) -> None:
        self._objects: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._channel = Channel(connection, self.refer, self.resolve)
        self._work: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "load": self._load,
            "call": self._call,
            "get": lambda m: self._ok(getattr(self._objects[m["of"]], m["name"])),
            "set": self._set,
            "special": self._special,
            "isinstance": self._isinstance,
        }

    def serve(self) -> NoReturn:
        """Answer until the other side is gone or the code leaves."""
        while True:
            message = self._channel.receive()
            if message["do"] == "run":
                self._run_program(message)
            self._answer(message)

    def _answer(self, message: dict[str, Any]) -> None:
        try:
            self._channel.send(self._work[message["do"]](message))
        except ChannelClosed:
            raise
        except BaseException as error:
            error.__traceback__ = None  # its frames may hold all the memory there is
            self._channel.send({"raised": self._raised(error)})

    def _load(self, message: dict[str, Any]) -> dict[str, Any]:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.close(nothing)
        names = _execute(message["code"], MODULE)
        public = {n: v for n, v in names.items() if not (n[:2] == n[-2:] == "__")}
        mine = {n: v for n, v in public.items() if not isinstance(v, ModuleType)}
        return {"ok": {name: self._channel.encode(value) for name, value in mine.items()}}

    def _run_program(self, message: dict[str, Any]) -> NoReturn:
        """A whole program; descriptors 0 and 1 are its input and output."""
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding="utf-8")
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8")
        status = 0
        try:
            try:
                _execute(message["code"], "__main__")
            except SystemExit as leave:
                status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
            _finish()
        except BaseException as error:
            self._channel.send({"raised": self._raised(error)})
            status = 1
        os._exit(status & 0xFF)

    def _call(self, message: dict[str, Any]) -> dict[str, Any]:
        crossing = Crossing()
        with self._channel.during(crossing):
            arguments = [self._channel.decode(value) for value in message["args"]]
            keywords = {k: self._channel.decode(v) for k, v in message["kwargs"].items()}
        before = self._contents(crossing)
        value = self._objects[message["of"]](*arguments, **keywords)
        after = self._contents(crossing)
        changed = [[i, new] for i, new in enumerate(after) if new != before[i]]
        with self._channel.during(crossing):
            return {**self._ok(value), "changed": changed}

    def _contents(self, crossing: Crossing) -> list[Any]:
        """What the containers among the arguments hold; one inside another is named by number.

        Copies are encoded, for the containers themselves would be no more than their numbers.
        """
        with self._channel.during(crossing):
            return [self._channel.encode(type(held)(held)) for held in crossing.containers]

    def _set(self, message: dict[str, Any]) -> dict[str, Any]:
        value = self._channel.decode(message["value"])
        setattr(self._objects[message["of"]], message["name"], value)
        return self._ok(None)

    def _special(self, message: dict[str, Any]) -> dict[str, Any]:
        target = self._objects[message["of"]]
        arguments = self._channel.decode(message["args"])
        return self._ok(getattr(type(target), message["name"])(target, *arguments))

    def _isinstance(self, message: dict[str, Any]) -> dict[str, Any]:
        kind = self._objects[message["of"]]
        return self._ok(isinstance(self._channel.decode(message["value"]), kind))

    def _ok(self, value: Any) -> dict[str, Any]:
        return {"ok": self._channel.encode(value)}

    def _raised(self, error: BaseException) -> dict[str, Any]:
        try:
            arguments = self._channel.encode(list(error.args))
        except BaseException:  # an argument may be anything; the exception goes without
            arguments = None
        try:
            message = str(error)[:MESSAGE]
        except BaseException:
            message = "(its text cannot be read)"
        kind = type(error)
        return {"type": kind.__name__, "base": base_of(kind), "message": message, "args": arguments}

    def refer(self, value: Any) -> Any:
        """Instances of plain data's subclasses by value, the rest by number.

        The other side chooses for classes of the code's own: it knows which the tests name.
        """
        kind = type(value)
        plain = self._channel.by_value(value)
        if plain is not None and (kind.__module__ != MODULE or hasattr(kind, "_fields")):
            return plain
        number = self._numbers.setdefault(id(value), len(self._numbers))
        self._objects[number] = value
        base = ""
        if isinstance(value, type) and issubclass(value, BaseException):
            kind, base = value, base_of(value)
        specials = [name for name in FREE | BINARY if getattr(kind, name, None) is not None]
        reference = ["ref", number, kind.__name__, sorted(specials), base]
        return reference if plain is None else ["either", plain, reference]

    def resolve(self, tag: str, parts: list[Any]) -> Any:
        """An object that the code handed out, or a stand-in for a function of the tests."""
        if tag == "own":
            return self._objects[parts[0]]
        return lambda *args: self._ask_back(parts[0], args)

    def _ask_back(self, number: int, args: tuple[Any, ...]) -> Any:
        """Call a function of the tests (they passed it) while a request is under way."""
        self._channel.send({"back": number, "args": self._channel.encode(list(args))})
        while "do" in (reply := self._channel.receive()):
            self._answer(reply)
        if "raised" in reply:
            raise getattr(builtins, reply["raised"])(reply["message"])
        return self._channel.decode(reply["ok"])


def base_of(kind: type[BaseException]) -> str:
    """The nearest exception of Python itself."""
    known = (k for k in kind.__mro__ if getattr(builtins, k.__name__, None) is k)
    return str(next(known).__name__)


def _execute(code: str, name: str) -> dict[str, Any]:
    """Run the code as the module `name`. Random numbers are the same in every run."""
    random.seed(0)
    module = ModuleType(name)
    sys.modules[name] = module
    exec(compile(code, f"<{name}>", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def _finish() -> None:
    """What the interpreter does when a program ends: wait for its threads, run exit functions."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
