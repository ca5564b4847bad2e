"""All n-grams of one length in the texts of the evaluation sets, found again in other texts.

Words are numbered by the index's vocabulary, 0 standing for every word that no evaluation text
has. N-grams are looked up by 64-bit hashes, and each hit is compared word by word with the place in
the evaluation texts: texts that merely share a hash are never taken for equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

Words = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

LONG, SHORT = 13, 7
"""Words of the n-grams of Algorithm 1: one of the long ones is contamination by itself, the share
of short ones is its second test."""

_FACTOR = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_CELLS_PER_GRAM = 8
"""Size of the table that sorts out most n-grams that are not there."""
_CHUNK = 2**18
"""N-grams whose words are compared at a time while an index is built."""


def keys_of(count: int, salt: int) -> Hashes:
    """64 random-looking bits for each word number below `count` (splitmix64)."""
    x = np.arange(count, dtype=np.uint64) + np.uint64((salt * _FACTOR) & _MASK)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)


def hashes_of(keyed: Hashes, length: int) -> Hashes:
    """Hashes of the n-grams that begin at each of the words, shape [words - length + 1].

    A polynomial in `_FACTOR`; that of a + b words is made of those of a and of b words.
    """
    if len(keyed) < length:
        return np.empty(0, np.uint64)
    power, done, found = keyed, 0, np.empty(0, np.uint64)
    size = 1
    while True:
        if length & size:
            if done:
                shifted = power[done : done + len(keyed) - length + 1]
                found = found[: len(shifted)] * _raised(size) + shifted
            else:
                found = power
            done += size
        if done == length:
            return found[: len(keyed) - length + 1]
        power = power[:-size] * _raised(size) + power[size:]
        size *= 2


def _raised(exponent: int) -> np.uint64:
    return np.uint64(pow(_FACTOR, exponent, 2**64))


@dataclass(frozen=True)
class NGrams:
    """The distinct n-grams of evaluation texts, in the order of their hashes ("slots")."""

    length: int
    corpus: Words
    """The words of all texts, a 0 behind each text."""
    hashes: Hashes
    first: Numbers
    """Where in the corpus each n-gram stands."""
    starts: Numbers
    """Slot s is in the texts owners[starts[s]:starts[s + 1]]."""
    owners: Numbers
    sizes: Numbers
    """Distinct n-grams of each text."""
    _shift: np.uint64
    _seen: npt.NDArray[np.bool_]

    @classmethod
    def build(
        cls, corpus: Words, text_of: Numbers, texts: int, length: int, keys: Hashes
    ) -> NGrams:
        """Index a corpus; `text_of` tells the text of each word.

        Raises:
            CollisionError: two different n-grams have one hash; build again with other keys.
        """
        hashes = hashes_of(keys[corpus], length)
        ends = np.flatnonzero(corpus == 0)  # no n-gram reaches over the end of its text
        at = np.flatnonzero(_whole(len(hashes), ends, length))
        hashes, owners = hashes[at], text_of[at]
        order = np.lexsort((at, hashes))
        hashes, owners, at = hashes[order], owners[order], at[order]
        new = np.ones(len(hashes), bool)
        new[1:] = hashes[1:] != hashes[:-1]
        slot = np.cumsum(new) - 1
        first = at[new]
        if not _all_same(corpus, corpus, at, first[slot], length):
            raise CollisionError
        again = np.zeros(len(hashes), bool)  # the same n-gram in the same text; texts are in order
        again[1:] = ~new[1:] & (owners[1:] == owners[:-1])
        owners, slot = owners[~again], slot[~again]
        bits = max(10, int(np.ceil(np.log2(_CELLS_PER_GRAM * max(1, len(first))))))
        shift = np.uint64(64 - bits)
        seen = np.zeros(2**bits, bool)
        seen[hashes[new] >> shift] = True
        starts = np.searchsorted(slot, np.arange(len(first) + 1))
        sizes = np.bincount(owners, minlength=texts)
        return cls(length, corpus, hashes[new], first, starts, owners, sizes, shift, seen)

    def find(self, words: Words, keyed: Hashes) -> tuple[Numbers, Numbers]:
        """Positions in `words` at which an n-gram of the index begins, and the slots of these."""
        hashes = hashes_of(keyed, self.length)
        at = np.flatnonzero(self._seen[hashes >> self._shift])
        if not len(at) or not len(self.hashes):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        slots = np.minimum(np.searchsorted(self.hashes, hashes[at]), len(self.hashes) - 1)
        same = self.hashes[slots] == hashes[at]
        at, slots = at[same], slots[same]
        if len(at):
            mine = sliding_window_view(words, self.length)[at]
            true = (mine == sliding_window_view(self.corpus, self.length)[self.first[slots]]).all(1)
            at, slots = at[true], slots[true]
        return at, slots

    def distinct_words(self, counted: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
        """How many distinct words each n-gram has, of those word numbers that are counted."""
        found = np.zeros(len(self.first), np.uint8)
        if len(self.first):
            windows = sliding_window_view(
                np.where(counted[self.corpus], self.corpus, 0), self.length
            )
            for begin in range(0, len(found), _CHUNK):
                some = np.sort(windows[self.first[begin : begin + _CHUNK]], axis=1)
                new = (some[:, 1:] != some[:, :-1]).sum(axis=1)
                found[begin : begin + _CHUNK] = new + (some[:, 0] != 0)
        return found

    def texts_with(self, slots: Numbers) -> tuple[Numbers, Numbers]:
        """(slot, text) of every text that has one of the slots, as two arrays."""
        counts = self.starts[slots + 1] - self.starts[slots]
        ends = np.cumsum(counts)
        inside = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)
        return np.repeat(slots, counts), self.owners[np.repeat(self.starts[slots], counts) + inside]


class CollisionError(Exception):
    """Two different n-grams have the same hash."""


def _whole(count: int, ends: Numbers, length: int) -> npt.NDArray[np.bool_]:
    """Which of `count` n-grams hold no end of a text."""
    broken = np.zeros(count + length, np.int64)
    np.add.at(broken, np.maximum(ends - length + 1, 0), 1)
    np.add.at(broken, ends + 1, -1)
    return np.asarray(np.cumsum(broken)[:count] == 0)


def _all_same(one: Words, other: Words, at: Numbers, there: Numbers, length: int) -> bool:
    """Whether the n-grams at `at` in one text are those at `there` in the other."""
    if not len(at):
        return True
    mine, theirs = sliding_window_view(one, length), sliding_window_view(other, length)
    return all(
        bool((mine[at[k : k + _CHUNK]] == theirs[there[k : k + _CHUNK]]).all())
        for k in range(0, len(at), _CHUNK)
    )
