"""Stand-ins for the functions, classes and objects of the code, in the process of the tests.

Plain data that the code returns is compared here, on copies, so neither patched builtins nor an
object that equals everything helps. Objects of the code's own classes stay where they are: the
tests may call them, read them and iterate over them, but they are compared and combined by their
own methods only among themselves. With plain data they never are: the tests' side of a comparison
is not for the code to see, nor its rollout for the code to say.
"""

from __future__ import annotations

import builtins
import socket
from collections.abc import Callable, Iterator
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from pts.verifiers.code.candidate import BINARY, FREE, base_of
from pts.verifiers.code.wire import CannotCross, Channel, Crossing

ITERATOR_LIMIT = 100_000
"""Items at most of an iterator that the tests pass on."""


class RemoteError(Exception):
    """Marks what the code raised, as the cause of the exception that the tests see."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind, self.message = kind, message
        super().__init__(f"{kind}: {message}")


class Remote:
    """A function, class or object of the code, as the tests see it."""

    __slots__ = ("_pts_harness", "_pts_number")
    _pts_harness: Harness
    _pts_number: int

    def __init__(self, harness: Harness, number: int) -> None:
        object.__setattr__(self, "_pts_harness", harness)
        object.__setattr__(self, "_pts_number", number)

    def __getattr__(self, name: str) -> Any:
        return self._pts_harness.ask(self, "get", name=name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._pts_harness.ask(self, "set", name=name, value=self._pts_harness.encode(value))

    def __instancecheck__(self, value: Any) -> bool:
        if not isinstance(value, Remote):
            return False
        encoded = self._pts_harness.encode(value)
        return self._pts_harness.ask(self, "isinstance", value=encoded) is True


class Harness:
    """The tests' end of the channel. `named` are the names that the tests use.

    `raised` counts the exceptions of the code, `asked` what was asked of it beside its loading.
    """

    def __init__(self, connection: socket.socket, named: frozenset[str]) -> None:
        self._named = named
        self._classes: dict[tuple[str, tuple[str, ...]], type[Remote]] = {}
        self._remotes: dict[int, Remote] = {}
        self._errors: dict[str, type[BaseException]] = {}
        self._lent: list[Callable[..., Any]] = []
        self.raised = self.asked = 0
        self._channel = Channel(connection, self.refer, self.resolve)
        self.encode = self._channel.encode

    def load(self, code: str) -> dict[str, Any]:
        """Run the code; its public names. Raises what it raised."""
        reply = self._exchange({"do": "load", "code": code})
        return {str(name): self._channel.decode(value) for name, value in reply["ok"].items()}

    def ask(self, target: Remote, what: str, **details: Any) -> Any:
        """Ask one thing of an object of the code."""
        reply = self._exchange({"do": what, "of": target._pts_number, **details})
        return self._channel.decode(reply["ok"])

    def call(self, target: Remote, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the code; what it changed in the arguments is changed here too."""
        crossing = Crossing()
        with self._channel.during(crossing):
            given = [self.encode(value) for value in args]  # before the others, as they are decoded
            named = {name: self.encode(value) for name, value in kwargs.items()}
        try:
            reply = self._exchange(
                {"do": "call", "of": target._pts_number, "args": given, "kwargs": named}
            )
        except StopIteration as stop:  # it would end a loop of the tests without a word
            raise RuntimeError("the code raised StopIteration") from stop.__cause__
        with self._channel.during(crossing):
            for number, contents in reply.get("changed", ()):
                _restore(crossing.containers[number], self._channel.decode(contents))
            return self._channel.decode(reply["ok"])

    def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        self.asked += message["do"] != "load"
        self._channel.send(message)
        while "back" in (reply := self._channel.receive()):
            self._channel.send(self._lend(reply))
        if "raised" in reply:
            self.raised += 1
            raise self._error(reply["raised"])
        return reply

    def _lend(self, message: dict[str, Any]) -> dict[str, Any]:
        """Call a function of the tests for the code."""
        try:
            function = self._lent[message["back"]]
            return {"ok": self.encode(function(*self._channel.decode(message["args"])))}
        except Exception as error:
            return {"raised": base_of(type(error)), "message": str(error)}

    def refer(self, value: Any) -> Any:
        """Lend a function. Raises CannotCross for objects of the tests' own classes."""
        if isinstance(value, Remote):
            return ["own", value._pts_number]
        if isinstance(value, Iterator):
            return self.encode(list(islice(value, ITERATOR_LIMIT)))
        if isinstance(value, (FunctionType, BuiltinFunctionType, MethodType)):
            self._lent.append(value)
            return ["lent", len(self._lent) - 1]
        plain = self._channel.by_value(value)
        if plain is None and any(value is k or type(value) is k for k in self._errors.values()):
            raise TypeError("an exception of the code is passed back to it")
        if plain is None:
            raise CannotCross(f"the tests pass a {type(value).__name__} to the code")
        return plain

    def resolve(self, tag: str, parts: list[Any]) -> Any:
        """A stand-in for an object of the code."""
        if tag == "either":
            plain, reference = parts
            return self._channel.decode(reference if reference[2] in self._named else plain)
        if tag != "ref":
            raise ValueError(f"no tag {tag!r}")
        number, name, specials, base = int(parts[0]), str(parts[1]), parts[2], str(parts[3])
        if base:
            return self._errors.setdefault(name, type(name, (_exception(base),), {}))
        if number not in self._remotes:  # the same object again is the same stand-in: `is` holds
            key = name, tuple(map(str, specials))
            if key not in self._classes:
                body = {s: _special(s) for s in key[1] if s in FREE | BINARY}
                self._classes[key] = type(name, (Remote,), {"__slots__": (), **body})
            self._remotes[number] = self._classes[key](self, number)
        return self._remotes[number]

    def _error(self, raised: dict[str, Any]) -> BaseException:
        """The exception of the code, rebuilt with its arguments where they are plain."""
        name, message = str(raised["type"]), str(raised["message"])
        try:
            kind = self._errors.get(name) or _exception(raised["base"])
            error = kind(*self._channel.decode(raised["args"]))
        except Exception:  # arguments that its type does not take
            error = RuntimeError(message)
        error.__cause__ = RemoteError(name, message)
        return error


def _exception(name: str) -> type[BaseException]:
    kind = getattr(builtins, name)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        raise ValueError(f"{name!r} is no exception")
    return kind


def _special(name: str) -> Callable[..., Any]:
    if name == "__call__":
        return lambda self, *args, **kwargs: self._pts_harness.call(self, args, kwargs)

    def method(self: Remote, *args: Any) -> Any:
        if name in BINARY and not all(isinstance(other, Remote) for other in args):
            return False if name == "__contains__" else NotImplemented
        encoded = self._pts_harness.encode(list(args))
        return self._pts_harness.ask(self, "special", name=name, args=encoded)

    return method


def _restore(old: Any, new: Any) -> None:
    """Give a container the contents that the code left in its copy."""
    if type(old) is not type(new):
        return
    old.clear()
    if isinstance(old, (dict, set)):
        old.update(new)
    else:
        old.extend(new)
