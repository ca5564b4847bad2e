"""Whole numbers, token ids above all, as short text: for files that hold very many of them."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import numpy as np

WIDTHS = (1, 2, 4, 8)
"""Bytes of a number; a list takes the fewest that its largest one needs."""


def pack_numbers(numbers: Sequence[int]) -> str:
    """Numbers from 0 to 2⁶³ - 1 as base64 of zlib of their width and their little-endian bytes."""
    array = np.asarray(numbers, dtype="<i8")
    most = int(array.max(initial=0))
    width = next(width for width in WIDTHS if most < 256**width)
    data = bytes([width]) + array.astype(f"<u{width}").tobytes()
    return base64.b64encode(zlib.compress(data)).decode()


def unpack_numbers(text: str) -> list[int]:
    """The inverse of `pack_numbers`. ValueError for what it did not make."""
    try:
        data = zlib.decompress(base64.b64decode(text, validate=True))
    except zlib.error as error:
        raise ValueError(f"packed numbers are damaged ({error})") from None
    if not data or data[0] not in WIDTHS or (len(data) - 1) % data[0]:
        raise ValueError("packed numbers are damaged (no whole numbers)")
    numbers: list[int] = np.frombuffer(data, f"<u{data[0]}", offset=1).tolist()
    return numbers
