"""What a search returns: its results, its pairs and its totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

from pydantic import TypeAdapter, ValidationError

from pts.data.pairs import read_pairs
from pts.files import JsonLines
from pts.runtime.results import Record, RolloutCost
from pts.types import Purpose, QuestionResult, TokenPair


@dataclass(frozen=True, slots=True)
class RunSummary:
    """Totals of a run. With an output folder they cover all of it, earlier sessions included."""

    questions: Mapping[str, int]
    """By status."""
    spent: Mapping[Purpose, RolloutCost]
    """Sampled rollouts and tokens, by purpose."""
    proposed: Mapping[str, int]
    """Pairs that were confirmed by fresh rollouts or refuted by them, by criterion."""
    confirmed: Mapping[str, int]
    """Pairs that were selected, by criterion."""
    truncated_share: float
    """Share of the rollouts that the length limit cut; a large one says it is too low."""
    redrawn: int
    """UNSCORED rollouts that were drawn again."""
    seconds: float
    """Wall time of the session that finished the run; of merged shards, that of the longest."""
    paths: Mapping[str, int] = field(default_factory=dict)
    """Paths by what ended their search; "impossible" ones the policy cannot sample."""
    pivotal: int = 0
    """Tokens, or steps, that were decided to be pivotal."""
    rollouts_bytes: int = field(default=0, compare=False)
    """Size of rollouts.jsonl; 0 where no rollouts are kept. Not compared: it is no result."""
    bytes_per_rollout: float = field(default=0.0, compare=False)
    """That size by the rollouts that were drawn, unscored ones apart."""
    filter_stopped: int = 0
    """Questions that equal verdicts set aside before all their filter rollouts were drawn."""
    missing_shards: list[str] = field(default_factory=list)
    """Those that a merge was to do without, as in 3/4."""


_SUMMARY = TypeAdapter(RunSummary)


def read_summary(folder: Path) -> RunSummary | None:
    """The totals of a finished run, from its folder; None if they are not there, or damaged."""
    try:
        return _SUMMARY.validate_json((folder / "summary.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


Records: TypeAlias = list[Record] | JsonLines[Record]
"""Results with their costs: iterable again and again, from memory or from a file."""


@dataclass(frozen=True)
class SearchRun:
    """What `search` returns. With an output folder everything is read from it when asked for."""

    records: Records
    summary: RunSummary
    output: Path | None
    sampled: int
    """Tokens that this call has generated; the summary counts those of earlier sessions too."""
    selected: list[TokenPair] = field(default_factory=list, repr=False)
    """The pairs of a run without a folder."""

    @property
    def results(self) -> Iterator[QuestionResult]:
        """The questions' results, in the order of the problems."""
        return (record.result for record in self.records)

    @cached_property
    def pairs(self) -> list[TokenPair]:
        """The confirmed pairs, in the order of the problems."""
        return read_pairs(self.output / "pairs.jsonl") if self.output else self.selected


class Totals:
    """Adds up results and selected pairs, one at a time."""

    def __init__(self) -> None:
        self.ids: set[int] = set()
        """Every token id that a report of the results shows."""
        self._status: Counter[str] = Counter()
        self._proposed: Counter[str] = Counter()
        self._confirmed: Counter[str] = Counter()
        self._stopped: Counter[str] = Counter()
        self._spent: dict[Purpose, RolloutCost] = {}
        self._pivotal = 0
        self._filter_stopped = 0

    def add(self, record: Record) -> None:
        result = record.result
        self._status[result.status] += 1
        self._filter_stopped += result.filtered.stopped
        self._stopped.update(path.stopped for path in result.paths)
        self._proposed.update(pair.criterion for path in result.paths for pair in path.pairs)
        for path in result.paths:
            self._pivotal += sum(found.decided for found in path.tokens or path.steps)
        for purpose, tally in record.spent.items():
            self._spent[purpose] = self._spent.get(purpose, RolloutCost()) + tally
        self.ids |= used_ids(result)

    def confirmed(self, pairs: Iterable[TokenPair]) -> Iterable[TokenPair]:
        """The pairs themselves, counted as they pass."""
        for pair in pairs:
            self._confirmed[pair.criterion] += 1
            yield pair

    def summary(self, seconds: float, rollouts_bytes: int = 0) -> RunSummary:
        """The totals; `rollouts_bytes` is the size of the file of rollouts, if there is one."""
        total = sum(self._spent.values(), RolloutCost())
        judged = total.rollouts - total.unscored
        return RunSummary(
            questions=dict(sorted(self._status.items())),
            spent=self._spent,
            proposed=dict(sorted(self._proposed.items())),
            confirmed=dict(sorted(self._confirmed.items())),
            truncated_share=total.truncated / total.rollouts if total.rollouts else 0.0,
            redrawn=total.unscored,
            seconds=round(seconds, 3),
            paths=dict(sorted(self._stopped.items())),
            pivotal=self._pivotal,
            rollouts_bytes=rollouts_bytes,
            bytes_per_rollout=round(rollouts_bytes / judged, 1) if judged else 0.0,
            filter_stopped=self._filter_stopped,
        )


def used_ids(result: QuestionResult) -> set[int]:
    """Every token id that a report of this result shows."""
    ids = set(result.prompt_ids)
    for path in result.paths:
        ids.update(path.ids)
        ids.update(sibling[0] for drawn in path.siblings.values() for sibling in drawn)
        ids.update(token for pair in path.pairs for token in (pair.chosen, pair.rejected))
    return ids
