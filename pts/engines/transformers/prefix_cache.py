"""Keys and values of paths already run through the model, kept for the rollouts that share them.

A path is `prompt + completion`. `PrefixCache.find` returns the stored path that shares the longest
prefix with a request; `put` adds one and drops the least recently used ones above a byte budget.
Nothing is trimmed or merged: a path stored twice under two lengths is two entries.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from operator import itemgetter

from pts.engines.transformers.kv_cache import Kv
from pts.types import Ids


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """Tokens (prompt included) and the keys and values of all of them."""

    ids: Ids
    kv: Kv


def shared_length(a: Ids, b: Ids) -> int:
    """Number of leading tokens on which two sequences agree."""
    short = min(len(a), len(b))
    if a[:short] == b[:short]:
        return short
    return next(i for i in range(short) if a[i] != b[i])


class PrefixCache:
    """Least-recently-used store of paths, bounded in bytes, looked up by prompt."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self._paths: OrderedDict[tuple[Ids, Ids], CachedPrefix] = OrderedDict()
        self._of_prompt: dict[Ids, set[Ids]] = {}

    def put(self, prompt: Ids, path: CachedPrefix) -> None:
        """Store a path of a prompt; a path larger than the whole budget is not kept."""
        if path.kv.nbytes > self.budget:
            return  # it would push out all others and then itself
        key = (prompt, path.ids)
        if key in self._paths:
            self._paths.move_to_end(key)
            return
        self._paths[key] = path
        self._of_prompt.setdefault(prompt, set()).add(path.ids)
        self.nbytes += path.kv.nbytes
        while self.nbytes > self.budget:
            (asked, ids), oldest = self._paths.popitem(last=False)
            self.nbytes -= oldest.kv.nbytes
            self._of_prompt[asked].discard(ids)
            if not self._of_prompt[asked]:
                del self._of_prompt[asked]

    def find(self, prompt: Ids, ids: Ids) -> tuple[int, CachedPrefix | None]:
        """How many leading tokens of `ids` a stored path of the prompt covers, and that path."""
        lengths = ((shared_length(path, ids), path) for path in self._of_prompt.get(prompt, ()))
        best, at = max(lengths, key=itemgetter(0), default=(0, ids))
        if not best:
            return 0, None
        self._paths.move_to_end((prompt, at))
        return best, self._paths[(prompt, at)]
