"""How values cross between the process that runs the tests and the one that runs the code.

Frames are JSON with a length in front. Plain data crosses by value and is rebuilt from known
types only, so a hostile sender gains nothing but a wrong value: nothing is unpickled, and an
object whose `__eq__` says yes to everything arrives as what it is, an object. Whatever is not
plain crosses by reference (`Channel.refer`), at the discretion of each side.

What a call changes in place must be changed on both sides. So both number the containers of its
arguments alike, in the order in which they cross (`Crossing`), and name them by number afterwards.
"""

from __future__ import annotations

import builtins
import json
import socket
import struct
from collections import Counter, OrderedDict, deque, namedtuple
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

LIMIT = 8 << 20
"""Bytes of one frame at most."""


class ChannelClosed(BaseException):
    """The other process is gone. No test may catch it by `except Exception`."""


class CannotCross(TypeError):
    """A value that the other side may have neither by value nor by reference."""


class Crossing:
    """The containers among the arguments of one call, as one side holds them.

    While it is `open`, those that cross are added; afterwards they cross as ["same", number].
    """

    def __init__(self) -> None:
        self.open = True
        self.containers: list[Any] = []
        self.numbers: dict[int, int] = {}
        """Where a container stands among them, by its `id`."""


def exactly(read: Callable[[int], bytes], size: int) -> bytes:
    """So many bytes, from as many reads as it takes. Raises ChannelClosed where they end."""
    data = bytearray()
    while len(data) < size:
        try:
            chunk = read(min(size - len(data), 1 << 16))
        except OSError:
            chunk = b""
        if not chunk:
            raise ChannelClosed
        data += chunk
    return bytes(data)


class Channel:
    """One side of the connection: frames, and the coding of values.

    `refer(value)` gives the tagged list of a value that is not plain; `resolve(tag, parts)` turns
    one back into an object.
    """

    def __init__(
        self,
        connection: socket.socket,
        refer: Callable[[Any], Any],
        resolve: Callable[[str, list[Any]], Any],
    ) -> None:
        self._connection = connection
        self._refer, self._resolve = refer, resolve
        self._crossing: Crossing | None = None

    @contextmanager
    def during(self, crossing: Crossing) -> Iterator[None]:
        """Encode and decode as part of a call. The first time is for its arguments."""
        before, self._crossing = self._crossing, crossing
        try:
            yield
        finally:
            crossing.open = False
            self._crossing = before

    def send(self, message: dict[str, Any]) -> None:
        """Raises ValueError for a frame beyond the limit, ChannelClosed."""
        frame = json.dumps(message).encode()
        if len(frame) > LIMIT:
            raise ValueError(f"a value of more than {LIMIT >> 20} MiB was passed or returned")
        try:
            self._connection.sendall(struct.pack(">I", len(frame)) + frame)
        except OSError:
            raise ChannelClosed from None

    def receive(self) -> dict[str, Any]:
        """The next message. Raises ChannelClosed at the end and for what is no message."""
        (size,) = struct.unpack(">I", exactly(self._connection.recv, 4))
        if size > LIMIT:
            raise ChannelClosed
        try:
            message = json.loads(exactly(self._connection.recv, size))
        except (ValueError, RecursionError):
            raise ChannelClosed from None
        if not isinstance(message, dict):
            raise ChannelClosed
        return message

    def encode(self, value: Any) -> Any:
        """A value as JSON. Raises RecursionError for a value that holds itself."""
        kind = type(value)
        if value is None or kind in (bool, float, str):
            return value
        if kind is int:
            return value if -(2**63) <= value < 2**63 else ["int", hex(value)]
        if kind in _MUTABLE and self._crossing and id(value) in self._crossing.numbers:
            return ["same", self._crossing.numbers[id(value)]]
        if kind in _SEQUENCES:
            data = [kind.__name__, *map(self.encode, value)]
        elif kind in _MAPPINGS:
            pairs = dict.items(value)
            data = [kind.__name__, *([self.encode(k), self.encode(v)] for k, v in pairs)]
        elif kind in _SCALARS:
            data = [kind.__name__, *_SCALARS[kind][0](value)]
        else:
            name = _TYPES.get(id(value))
            return self._refer(value) if name is None else ["builtin", name]
        self._crossed(value)
        return data

    def _crossed(self, value: Any) -> None:
        """Called on both sides when a container and all that it holds have crossed."""
        if type(value) in _MUTABLE and self._crossing and self._crossing.open:
            self._crossing.numbers[id(value)] = len(self._crossing.containers)
            self._crossing.containers.append(value)

    def by_value(self, value: Any) -> Any:
        """An instance of a subclass of plain data as the data it is; None if it is none.

        Base classes' own methods read it: what the subclass overrides is not asked.
        """
        for kind in _SEQUENCES:
            if isinstance(value, kind):
                items = kind(getattr(kind, "__iter__")(value))  # noqa: B009
                fields = getattr(type(value), "_fields", None)
                if kind is tuple and isinstance(fields, tuple) and len(fields) == len(items):
                    return ["named", type(value).__name__, list(fields), *map(self.encode, items)]
                return self.encode(items)
        if isinstance(value, dict):
            return self.encode(dict(dict.items(value)))
        for plain, read in _PLAIN.items():
            if isinstance(value, plain):
                return self.encode(read(value))
        return None

    def decode(self, data: Any) -> Any:
        """The value of `encode`'s JSON. Raises ValueError, TypeError or the like for the rest."""
        if not isinstance(data, list):
            if isinstance(data, dict):
                raise ValueError("no value")
            return data
        tag, *parts = data
        kind: Any = _BY_NAME.get(tag)
        value: Any
        if kind in _SEQUENCES:
            value = kind(map(self.decode, parts))
        elif kind in _MAPPINGS:
            keys, values = [k for k, _ in parts], [v for _, v in parts]
            pairs = zip(map(self.decode, keys), map(self.decode, values), strict=True)
            value = kind(dict(pairs))  # without a frame of its own: deeper nesting is possible
        elif kind is not None:
            value = _SCALARS[kind][1](*parts)
        elif tag == "same" and self._crossing:
            return self._crossing.containers[parts[0]]
        elif tag == "builtin":
            return _CONSTANTS[parts[0]]
        elif tag == "named":
            return namedtuple(parts[0], parts[1])(*map(self.decode, parts[2:]))
        else:
            return self._resolve(tag, parts)
        self._crossed(value)
        return value


_TYPES = {
    id(value): name
    for name, value in vars(builtins).items()
    if isinstance(value, type) or value is Ellipsis or value is NotImplemented
}
"""Types and constants that both sides have. Functions stay out: none is handed to the tests."""
_CONSTANTS = {name: getattr(builtins, name) for name in _TYPES.values()}
_SEQUENCES: tuple[Any, ...] = (list, tuple, set, frozenset, deque)
_MAPPINGS: tuple[Any, ...] = (dict, Counter, OrderedDict)
_MUTABLE: frozenset[type] = frozenset((list, set, deque, bytearray, *_MAPPINGS))
"""Containers that a call may change in place."""
_PLAIN: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: lambda value: bytes.__add__(value, b""),
}
_SCALARS: dict[Any, tuple[Callable[[Any], Iterable[Any]], Callable[..., Any]]] = {
    int: (lambda v: [hex(v)], lambda text: int(text, 16)),
    bytes: (lambda v: [v.hex()], bytes.fromhex),
    bytearray: (lambda v: [v.hex()], bytearray.fromhex),
    complex: (lambda v: [v.real, v.imag], complex),
    range: (lambda v: [v.start, v.stop, v.step], range),
    Decimal: (lambda v: [str(v)], Decimal),
    Fraction: (lambda v: [str(v)], Fraction),
    date: (lambda v: [v.isoformat()], date.fromisoformat),
    time: (lambda v: [v.isoformat()], time.fromisoformat),
    datetime: (lambda v: [v.isoformat()], datetime.fromisoformat),
    timedelta: (lambda v: [v.days, v.seconds, v.microseconds], timedelta),
}
_BY_NAME = {kind.__name__: kind for kind in (*_SEQUENCES, *_MAPPINGS, *_SCALARS)}
