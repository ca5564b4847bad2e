"""Results of what texts have been judged to be, without the texts."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")

MOST_RESULTS = 65536


class Memo(Generic[T]):
    """Remembers results by a digest of texts: a completion may be 100 kB long, and they are many.

    What raises is not remembered. Of more than `MOST_RESULTS` those unused for longest are dropped.
    """

    def __init__(self) -> None:
        self._results: OrderedDict[bytes, T] = OrderedDict()
        self._lock = Lock()

    def recall(self, texts: tuple[str, ...], judge: Callable[[], T]) -> T:
        """The result for these texts: `judge()`, unless it is known."""
        key = _digest(texts)
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
        result = judge()  # outside of the lock: it takes long
        with self._lock:
            self._results[key] = result
            if len(self._results) > MOST_RESULTS:
                self._results.popitem(last=False)
        return result


def _digest(texts: tuple[str, ...]) -> bytes:
    """16 bytes for texts, each with its length, so that no two tuples run together."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.digest()
