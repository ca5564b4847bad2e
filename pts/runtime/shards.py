"""Shards: parts of a run that are searched apart, each in a folder of its own, and merged later.

A question belongs to a shard by the hash of its id alone. So that the merge can put all questions
into the order of the problems, and knows that all shards were given the same ones, a finished shard
has `shard.json` beside its results (`ShardManifest`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from pts.errors import ConfigError, DataError
from pts.files import asked_digest, dumps, hash64, write_json
from pts.packing import pack_numbers, unpack_numbers
from pts.types import Problem

MANIFEST = "shard.json"


def shard_of(question: str, count: int) -> int:
    """Which of `count` shards, from 1, the question of this id belongs to; BLAKE2b of the id
    decides."""
    return hash64(question) % count + 1


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `index` of `count` of a run's questions, counted from 1; written 2/4.

    Raises ConfigError for an index outside of 1 to count.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ConfigError(
                f"shard: got {self}; shards are counted from 1 to their number, as in 1/4 to 4/4 "
                "(in Slurm: --array=1-4)"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that is written so. Raises ConfigError for anything else."""
        if not re.fullmatch(r"[0-9]+/[0-9]+", text):
            raise ConfigError(
                f"shard: got {text!r}; give its number and how many there are, as in 2/4"
            )
        index, count = text.split("/")
        return cls(int(index), int(count))

    def holds(self, question: str) -> bool:
        """Whether the question of this id belongs to the shard."""
        return shard_of(question, self.count) == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True, slots=True)
class ShardManifest:
    """What a finished shard knows of all questions: shard.json."""

    shard: str
    questions: int
    """Of the whole run."""
    digest: str
    """Stands for all of them: ids, prompts, references, metadata and completions, in order."""
    positions: str
    """Of the shard's own ones among all, from 0 and ascending, packed (`pts.packing`)."""
    ids: str
    """Digest of the own ones' ids in this order, which is that of results.jsonl."""


_MANIFEST = TypeAdapter(ShardManifest)


def read_manifest(folder: Path) -> ShardManifest | None:
    """The manifest of a shard, None while it is not finished. DataError for a damaged one."""
    path = folder / MANIFEST
    try:
        manifest = _MANIFEST.validate_json(path.read_bytes())
        unpack_numbers(manifest.positions)
        return manifest
    except FileNotFoundError:
        return None
    except ValueError:
        raise DataError(
            f"{path}: damaged; delete it, and the search of this shard writes it again"
        ) from None


class IdsDigest:
    """A digest of ids in a row."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=12)

    def add(self, *texts: str) -> None:
        self._hash.update(f"{dumps(texts)}\n".encode("utf-8", "surrogatepass"))

    def __str__(self) -> str:
        return self._hash.hexdigest()


class QuestionList:
    """A run's questions as they pass: those of the shard, and what its manifest tells of all."""

    def __init__(self, shard: Shard | None) -> None:
        self.total = 0
        """Questions that have passed, those of other shards included."""
        self._shard = shard
        self._all, self._own = IdsDigest(), IdsDigest()
        self._positions = array("Q")

    def holds(self, question: str) -> bool:
        """Whether the question of this id is one of the shard, or of the run if it has none."""
        return self._shard is None or self._shard.holds(question)

    def own(self, problems: Iterable[Problem]) -> Iterator[Problem]:
        """Those of the shard; all, if there is none."""
        for position, problem in enumerate(problems):
            self.total += 1
            if self._shard is not None:
                self._all.add(problem.id, asked_digest(problem))
                if not self._shard.holds(problem.id):
                    continue
                self._positions.append(position)
                self._own.add(problem.id)
            yield problem

    def write(self, folder: Path) -> None:
        """Write the manifest of a shard, once all questions have passed."""
        if self._shard is not None:
            positions = pack_numbers(self._positions)
            told = (str(self._shard), self.total, str(self._all), positions, str(self._own))
            write_json(folder / MANIFEST, dataclasses.asdict(ShardManifest(*told)))
