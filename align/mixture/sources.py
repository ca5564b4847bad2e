"""The sources of a stage, opened and checked; their rows in a fixed order, one at a time.

    mixture = open_mixture(config, "sft", seed=7)       # reads every row once: all faults at once
    for example in mixture.examples(): ...              # the rows that were drawn

`examples` is the one place where rows of sources come from: what filters rows, filters these.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from align.context import seed_of
from align.data.formats import FIELDS, Content, Kind, RowFormat
from align.decontamination.sources import evaluation_texts
from align.errors import RecipeError
from align.mixture.draw import quotas, times_drawn
from align.mixture.losses import SourceCounts
from align.settings import MixtureConfig, SourceConfig
from pts.data.rows import SHOWN, Faults
from pts.data.sources import open_table
from pts.data.tables import Table
from pts.errors import DataError, did_you_mean


@dataclass(frozen=True, slots=True)
class Example:
    """A row of a source that was drawn."""

    source: str
    place: str
    """Where it stands, for messages: file and line."""
    content: Content


@dataclass
class Source:
    """A source whose rows were all read once."""

    name: str
    config: SourceConfig
    table: Table
    reader: RowFormat
    sound: int = 0
    """Rows that can be read."""
    faulty: int = 0
    """Rows that cannot, where those are dropped."""

    def contents(self) -> Iterator[tuple[str, Content]]:
        """Places and contents of the sound rows.

        Raises:
            DataError: the source has changed since it was checked, and is wrong now.
        """
        for number, row in self.table:
            content = self.reader.read(row)
            place = f"{self.table.place}, {self.table.unit} {number}"
            if not isinstance(content, str):
                yield place, content
            elif self.config.faulty == "refuse":
                raise DataError(f"{place}: {content}")


@dataclass
class Mixture:
    """Sound sources, and how many rows are drawn of each."""

    sources: list[Source]
    config: MixtureConfig
    seed: int
    drawn: dict[str, int] = field(default_factory=dict)
    """Rows of each source, those included that are drawn again."""

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Rows of each source that may be drawn."""
        return {s.name: min(s.config.limit or s.sound, s.sound) for s in self.sources}

    def examples(self) -> Iterator[Example]:
        """The rows that are drawn, in the order of the recipe and of each source.

        Raises:
            DataError: a source has changed since it was checked.
        """
        for source in self.sources:
            seed = seed_of(self.seed, "rows", source.name)
            quota = self.drawn[source.name]
            times = times_drawn(source.sound, source.config.limit, quota, seed)
            contents = source.contents()
            for number, (place, content) in enumerate(contents):
                if number >= len(times):
                    raise DataError(f"{place}: was added while the stage read its rows")
                for _ in range(times[number]):
                    yield Example(source.name, place, content)

    def counts(self) -> dict[str, SourceCounts]:
        """What is counted before any row is encoded. Rows that cannot be read count as drawn in
        the share in which their source was."""
        found = {}
        for source in self.sources:
            share = self.drawn[source.name] / max(1, source.sound)
            faulty = round(source.faulty * share)
            found[source.name] = SourceCounts(
                rows=source.sound + source.faulty,
                drawn=self.drawn[source.name] + faulty,
                faulty=faulty,
            )
        return found


def open_mixture(config: MixtureConfig, stage: str, kind: Kind, seed: int) -> Mixture:
    """Open the sources of a stage and read every row once; no row is kept.

    Args:
        config: its settings.
        stage: its name, for messages.
        kind: what its rows must be.
        seed: decides which rows are drawn.

    Raises:
        RecipeError: every fault of every source.
    """
    found, faults = [], []
    last_turn = getattr(config, "train_on", "all") == "last"
    for number, source in enumerate(config.sources):
        try:
            found.append(_opened(source, f"{stage}.sources.{number}", kind, last_turn))
        except DataError as error:
            faults += str(error).splitlines()
    for path in config.against:
        try:
            for _ in evaluation_texts([os.path.expanduser(path)]):
                pass  # the rows are read again when the stage's are held against them
        except DataError as error:
            faults.append(f"{stage}.against: {error}")
    if faults:
        raise RecipeError(*faults)
    mixture = Mixture(found, config, seed)
    weights = [source.config.weight for source in found]
    shares = [
        mixture.sizes[source.name] if weight is None else weight
        for source, weight in zip(found, weights, strict=True)
    ]
    repeat = config.when_short == "repeat"
    drawn = quotas([*mixture.sizes.values()], shares, config.num_rows, repeat)
    mixture.drawn = dict(zip(mixture.sizes, drawn, strict=True))
    if not any(drawn):
        raise RecipeError(f"{stage}.sources: the weights leave no row to draw; change them")
    return mixture


def _opened(config: SourceConfig, place: str, kind: Kind, last_turn: bool) -> Source:
    unknown = [name for name in config.columns if name not in FIELDS]
    if unknown:
        raise DataError(
            "\n".join(f"{place}.columns: no field {n!r}{did_you_mean(n, FIELDS)}" for n in unknown)
        )
    if (config.format == "preference") > (kind == "pairs") or (
        kind == "pairs" and config.format not in ("auto", "preference", "ids")
    ):
        raise DataError(f"{place}.format: {config.format!r} is no form of {kind}")
    if config.first_tokens and kind == "chats":
        raise DataError(f"{place}.first_tokens: cuts the sides of pairs; chats have none")
    form = None if config.format == "auto" else config.format
    path = config.path
    table = open_table(path if path.startswith("hf:") else os.path.expanduser(path))
    reader = RowFormat(kind, form, config.columns, config.ignore, last_turn)
    source = Source(config.name or config.path, config, table, reader)
    faults = Faults(table)
    for number, row in table:
        content = reader.read(row)
        if not isinstance(content, str):
            source.sound += 1
        elif config.faulty == "drop":
            source.faulty += 1
            if source.faulty <= SHOWN:
                faults.add(number, content)
        else:
            faults.add(number, content)
    if config.faulty == "refuse" or not source.sound:
        faults.raise_all()
    if not source.sound:
        raise DataError(f"{table.place}: holds no rows")
    return source
