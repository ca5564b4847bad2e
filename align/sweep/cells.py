"""Cells: what is left of an arm under one seed when its run folder is gone.

    cells/ARM-seedN.json           counts of every problem, costs, and all that they depend on
    cells/ARM-seedN-pointK.json    the same for a point of random search

A cell is a few ten kilobytes of text, made to be committed. It is written once, atomically, and
never changed. Its file is what says that it is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from align.errors import SweepError
from align.evaluation.records import Evaluation, Item
from align.ledger import Ledger
from align.run_folder import differences
from pts.files import dumps, replacing

if TYPE_CHECKING:
    from align.evaluation.tables import Measure
    from align.sweep.plan import CellKey

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Items:
    """Verdicts of one policy, problem by problem: lists of one length."""

    id: tuple[str, ...]
    greedy: tuple[int, ...]
    """1 where the greedy answer is right."""
    passed: tuple[int, ...]
    """Right ones among the sampled answers."""
    samples: tuple[int, ...]
    """Sampled answers."""
    best: tuple[float, ...] = ()
    """Success rate at the best temperature; empty where none was sought."""

    @classmethod
    def of(cls, items: Iterable[Item]) -> Items:
        """The counts of an evaluation."""
        listed = list(items)
        best = [item.best for item in listed if item.best is not None]
        return cls(
            tuple(item.id for item in listed),
            tuple(int(item.greedy) for item in listed),
            tuple(item.passed for item in listed),
            tuple(item.samples for item in listed),
            tuple(best) if len(best) == len(listed) else (),
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """A policy on one set of problems."""

    metrics: Mapping[str, float]
    """Means over the problems."""
    items: Items

    @classmethod
    def of(cls, evaluation: Evaluation) -> Measured:
        """What a cell keeps of an evaluation."""
        summary = evaluation.summary
        metrics = {
            "greedy": summary.greedy.mean,
            "sampled": summary.sampled.mean,
            "pass_at_k": summary.pass_at_k.mean,
            "length": summary.length.mean,
            "unfinished": summary.unfinished.mean,
            "entropy": summary.entropy.mean,
        }
        if summary.kl:
            metrics["kl"] = summary.kl.mean
        if summary.best:
            metrics["best"] = summary.best.accuracy.mean
            metrics["best_temperature"] = summary.best.temperature
        return cls(metrics, Items.of(evaluation.items))


@dataclass(frozen=True, slots=True)
class Cell:
    """An arm under one seed."""

    arm: str
    seed: int
    point: int | None
    stage: str
    """The stage whose policy was measured."""
    ledger: Ledger
    """Of all stages that the policy is made of."""
    stages: Mapping[str, Mapping[str, int | float]]
    """Of each of them: seconds, and what it counted."""
    settings: Mapping[str, Any]
    """All that decides the cell, apart from the seed and the source."""
    source: str
    """Digest of the code."""
    made: Mapping[str, Any]
    """Commit and versions, for the record."""
    measured: Measured
    also: Mapping[str, Measured]
    """On further sets of problems, by name."""
    format: int = field(default=FORMAT)


_CELL = TypeAdapter(Cell)


def write_cell(path: Path, cell: Cell) -> None:
    """Write a cell, one key a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = _CELL.dump_python(cell, mode="json")
    with replacing(path) as file:
        file.write("{\n" + ",\n".join(f'"{key}": {dumps(data[key])}' for key in data) + "\n}\n")


def read_cell(path: Path) -> Cell:
    """Read what `write_cell` wrote.

    Raises:
        SweepError: the file is damaged, or of another format.
    """
    try:
        data = json.loads(path.read_bytes())
        if isinstance(data, dict) and data.get("format", FORMAT) != FORMAT:
            raise SweepError(
                f"{path}: has format {data['format']}, and this version reads {FORMAT}; "
                "take the version that wrote it, or delete the file to make the cell again"
            )
        cell = _CELL.validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise SweepError(f"{path}: {where}: {first['msg']}; restore it or delete it") from None
    except OSError as error:
        raise SweepError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SweepError(f"{path}: not valid JSON ({error}); restore it or delete it") from None
    if not all(_fits(one.items) for one in (cell.measured, *cell.also.values())):
        raise SweepError(f"{path}: its counts do not fit together; restore it or delete it")
    return cell


def _fits(items: Items) -> bool:
    """Whether the lists are of one length, and the counts possible."""
    lengths = {len(column) for column in (items.id, items.greedy, items.passed, items.samples)}
    if len(lengths) != 1 or len(items.best) not in (0, len(items.id)):
        return False
    return all(0 <= k <= n >= 1 for k, n in zip(items.passed, items.samples, strict=True))


def cell_of(
    about: Mapping[str, Any],
    evaluation: Evaluation,
    also: Mapping[str, Evaluation],
    records: Mapping[str, Mapping[str, Any]],
) -> Cell:
    """A cell from its evaluations, and the manifest's records of its stages (by name).

    Args:
        about: the fields that say what it is: arm, seed, point, stage, settings, source, made.
        records: of the stages that the policy is made of, and of its evaluation; each may have
            `source`, the name under which its problems are drawn.
    """
    stages = {
        name: {"seconds": record["seconds"], **_numbers(record["metrics"])}
        for name, record in records.items()
    }
    return Cell(
        **about,
        ledger=total(records.values()),
        stages=stages,
        measured=Measured.of(evaluation),
        also={name: Measured.of(other) for name, other in also.items()},
    )


def best_points(
    cells: Mapping[CellKey, Cell], measure: Measure, number: int
) -> Mapping[str, set[int | None]]:
    """Of every arm, the points with the highest accuracy, the lower number where two are equal."""
    arms: dict[str, list[tuple[float, int]]] = {}
    for key, cell in cells.items():
        assert key.point is not None
        arms.setdefault(key.arm, []).append((-cell.measured.metrics[measure], key.point))
    return {arm: {point for _, point in sorted(found)[:number]} for arm, found in arms.items()}


def total(records: Iterable[Mapping[str, Any]]) -> Ledger:
    """The ledger of several stages; questions that stages share are counted once."""
    spent, questions = Ledger(), dict[str, int]()
    for k, record in enumerate(records):
        one = Ledger.of(record["metrics"])
        spent += one
        source = record.get("source", str(k))
        questions[source] = max(questions.get(source, 0), one.distinct_questions)
    return Ledger(**{**asdict(spent), "distinct_questions": sum(questions.values())})


def _numbers(metrics: Mapping[str, Any]) -> dict[str, int | float]:
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def check_cell(
    path: Path, cell: Cell, settings: Mapping[str, Any], source: str, other_source: bool
) -> None:
    """Raise SweepError for a cell that was made with other settings, or from another source.

    Args:
        other_source: allow another source.
    """
    wanted = json.loads(json.dumps(settings))
    if cell.settings != wanted:
        raise SweepError(
            f"{path}: made with other settings: {differences(cell.settings, wanted)}; "
            "give another --output, or delete the file to make the cell again"
        )
    if cell.source != source and not other_source:
        raise SweepError(
            f"{path}: made by other code (source {cell.source}, commit "
            f"{cell.made.get('commit')}; now {source}); take that version, give another --output, "
            "or, if results cannot differ, --allow-other-source"
        )
