"""Algorithm 1 of the Phi-4 report: does a row hold what an evaluation set asks?

    index = EvaluationIndex(evaluation_texts(["gsm8k.jsonl"]))
    [finding] = index.judge([["A robe takes 2 bolts of blue fiber and half that much white …"]])

Every text of an evaluation set (a column of a row) is an item of its own, so that a copied question
is found whether or not its solution was copied too. N-grams do not reach over the ends of texts, in
evaluation sets and in rows. Not covered: paraphrase, translation, spelling mistakes.

A row is, by the first of these that holds:

- "13-gram": it shares 13 words in a row with an item, unless these are allowed, or mostly numbers;
- "7-gram": for an item, common 7-grams / min(7-grams of the row, 7-grams of the item) reaches
  `contaminated_ratio`, all n-grams counted once;
- "partial": that share is above `partial_ratio` (listed, and kept);
- clean.

Items of 7 to 12 words must be there as a whole; shorter ones cannot be looked for. Rows of fewer
than 13 words are held against items that are no longer than they are.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, TypeVar

import numpy as np

from align.decontamination.ngrams import (
    LONG,
    SHORT,
    CollisionError,
    Hashes,
    NGrams,
    Numbers,
    Words,
    keys_of,
)
from align.decontamination.words import words_of
from align.settings import DecontaminationConfig

T = TypeVar("T")
SHOWN_WORDS = 60
"""Common words that a finding quotes at most."""
BATCH_CHARACTERS = 2**17
"""Text that is judged in one go; more of it needs more memory, and is no faster."""
BATCH_ROWS = 512
FEW = LONG - SHORT + 1
"""7-grams of a text of 13 words; what has fewer is short."""


@dataclass(frozen=True, slots=True)
class Item:
    """Where a text of an evaluation set stands."""

    source: str
    number: int
    """Line or row of the source, from 1."""
    column: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a row is contaminated, or partly so."""

    kind: Literal["13-gram", "7-gram", "partial"]
    item: Item
    """The item with the most in common; of equal ones the first."""
    words: str
    """The longest run of common words, normalised; of long ones the beginning."""
    ratio: float
    """Common 7-grams / the smaller number of 7-grams."""
    common: int
    of: int


class EvaluationIndex:
    """The n-grams of evaluation sets; a function of the texts and their order alone."""

    def __init__(
        self,
        texts: Iterable[tuple[Item, str]],
        config: DecontaminationConfig | None = None,
    ) -> None:
        self.config = config or DecontaminationConfig()
        self.items: list[Item] = []
        self.short: dict[str, int] = {}
        """By source, texts of fewer than 7 words, which cannot be looked for."""
        self._vocabulary: dict[str, int] = {}
        corpus = self._read(texts)
        lengths = np.diff(np.flatnonzero(np.concatenate(([0], corpus)) == 0))
        text_of = np.repeat(np.arange(len(self.items)), lengths)
        salt = 0
        while True:
            self._keys: Hashes = keys_of(len(self._vocabulary) + 1, salt)
            try:
                built = [
                    NGrams.build(corpus, text_of, len(self.items), length, self._keys)
                    for length in (SHORT, LONG)
                ]
                break
            except CollisionError:
                salt += 1
        self._sevens, self._thirteens = built
        lettered = np.array([False, *(any(map(str.isalpha, w)) for w in self._vocabulary)])
        self._counts = self._thirteens.distinct_words(lettered) >= self.config.distinct_words
        self._allowed = np.zeros(len(self._counts), bool)

    def _read(self, texts: Iterable[tuple[Item, str]]) -> Words:
        words, known = array("i"), set[bytes]()
        for item, text in texts:
            found = words_of(text)
            if len(found) < SHORT:
                self.short[item.source] = self.short.get(item.source, 0) + 1
                continue
            digest = hashlib.blake2b(" ".join(found).encode(), digest_size=16).digest()
            if digest in known:  # a question that stands in several rows, or sets
                continue
            known.add(digest)
            self.items.append(item)
            number = self._vocabulary
            words.extend(number.setdefault(word, len(number) + 1) for word in found)
            words.append(0)
        return np.frombuffer(words, np.int32) if words else np.zeros(0, np.int32)

    @property
    def allowed(self) -> int:
        """13-grams on the allow-list that stand in an evaluation set."""
        return int(self._allowed.sum())

    def learn_allowed(self, rows: Iterable[Sequence[str]]) -> None:
        """Allow the 13-grams that stand in `allowed_rows` distinct rows of texts or more."""
        seen = np.zeros(len(self._counts), np.int64)
        known: set[bytes] = set()
        for texts in rows:
            row = _Batch(self, [texts])
            slots = np.unique(self._thirteens.find(row.words, row.keyed)[1])
            if len(slots):
                digest = hashlib.blake2b(" ".join(row.flat).encode(), digest_size=16).digest()
                if digest not in known:
                    known.add(digest)
                    seen[slots] += 1
        self._allowed |= seen >= self.config.allowed_rows

    def allow(self, texts: Iterable[str]) -> None:
        """Allow every 13-gram of these texts."""
        for text in texts:
            row = _Batch(self, [[text]])
            self._allowed[self._thirteens.find(row.words, row.keyed)[1]] = True

    def allowed_texts(self) -> Iterator[str]:
        """The allowed 13-grams, as words."""
        names = ["", *self._vocabulary]
        for slot in np.flatnonzero(self._allowed):
            at = int(self._thirteens.first[slot])
            yield " ".join(names[word] for word in self._thirteens.corpus[at : at + LONG])

    def judge(self, rows: Sequence[Sequence[str]]) -> list[Finding | None]:
        """What is found in each row of texts, None where it is clean. Rows do not mix."""
        found: list[Finding | None] = [None] * len(rows)
        batch = _Batch(self, rows)
        at, slots = self._sevens.find(batch.words, batch.keyed)
        owner = np.searchsorted(batch.ends, at, side="right")
        for row in np.unique(owner).tolist():
            mine = owner == row
            found[row] = self._judge(batch, row, at[mine], slots[mine])
        return found

    def _judge(self, batch: _Batch, row: int, at: Numbers, slots: Numbers) -> Finding | None:
        in_common, texts = self._sevens.texts_with(np.unique(slots))
        items, common = np.unique(texts, return_counts=True)
        sizes = self._sevens.sizes[items]
        row_size = batch.sevens(row)
        of = np.minimum(sizes, row_size)
        ratios = common / of
        hit = np.isin(items, self._by_thirteen(batch, row))
        judged = np.where(sizes < FEW, common == sizes, (row_size >= FEW) | (sizes <= row_size))
        best = _largest(np.where(hit, 1 + ratios, np.where(judged, ratios, 0.0)))
        kind = self._kind(bool(hit[best]), bool(judged[best]), float(ratios[best]))
        if kind is None:
            return None
        shared = np.isin(slots, in_common[texts == items[best]])
        words = batch.longest_run(at[shared])
        item = self.items[int(items[best])]
        return Finding(kind, item, words, float(ratios[best]), int(common[best]), int(of[best]))

    def _kind(
        self, long: bool, judged: bool, ratio: float
    ) -> Literal["13-gram", "7-gram", "partial"] | None:
        if long:
            return "13-gram"
        if judged and ratio >= self.config.contaminated_ratio:
            return "7-gram"
        return "partial" if judged and ratio > self.config.partial_ratio else None

    def _by_thirteen(self, batch: _Batch, row: int) -> Numbers:
        """Items with which the row shares a 13-gram that counts."""
        inside = batch.place(row)
        slots = np.unique(self._thirteens.find(batch.words[inside], batch.keyed[inside])[1])
        slots = slots[self._counts[slots] & ~self._allowed[slots]]
        return self._thirteens.texts_with(slots)[1]


def judged(
    rows: Iterable[T], texts: Callable[[T], Sequence[str]], index: EvaluationIndex
) -> Iterator[tuple[T, Finding | None]]:
    """Each row of a stream with what was found in it, in order; a few rows are held at a time."""
    batch: list[T] = []
    held: list[Sequence[str]] = []
    size = 0
    for row in rows:
        batch.append(row)
        held.append(texts(row))
        size += sum(map(len, held[-1]))
        if size >= BATCH_CHARACTERS or len(batch) >= BATCH_ROWS:
            yield from zip(batch, index.judge(held), strict=True)
            batch, held, size = [], [], 0
    yield from zip(batch, index.judge(held), strict=True)


class _Batch:
    """Rows as one array of word numbers; a 0 behind each text keeps n-grams apart."""

    def __init__(self, index: EvaluationIndex, rows: Sequence[Sequence[str]]) -> None:
        self.flat: list[str] = []
        ends = []
        for texts in rows:
            for text in texts:
                words = words_of(text)
                if len(words) >= SHORT:
                    self.flat += words
                    self.flat.append("")
            ends.append(len(self.flat))
        self.ends = np.array(ends, np.int64)
        numbers = map(index._vocabulary.get, self.flat, repeat(0))
        self.words: Words = np.fromiter(numbers, np.int32, len(self.flat))
        self.keyed: Hashes = index._keys[self.words]

    def place(self, row: int) -> slice:
        return slice(int(self.ends[row - 1]) if row else 0, int(self.ends[row]))

    def sevens(self, row: int) -> int:
        """Distinct 7-grams of a row."""
        words = self.flat[self.place(row)]
        grams = set(zip(*(words[k:] for k in range(SHORT)), strict=False))
        return sum("" not in gram for gram in grams)

    def longest_run(self, at: Numbers) -> str:
        """The words under the longest run of consecutive 7-grams, of equal ones the first."""
        breaks = np.flatnonzero(np.diff(at) != 1) + 1
        begins, ends = np.concatenate(([0], breaks)), np.concatenate((breaks, [len(at)]))
        best = _largest(ends - begins)
        begin, count = int(at[begins[best]]), int(ends[best] - begins[best]) + SHORT - 1
        more = " …" if count > SHOWN_WORDS else ""
        return " ".join(self.flat[begin : begin + min(count, SHOWN_WORDS)]) + more


def _largest(values: Numbers | np.ndarray) -> int:
    return int(np.argmax(values))
