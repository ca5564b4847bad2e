"""The records of an evaluation, and the two files that hold them.

    eval/STAGE/items.jsonl     one problem a line, so that later tests can pair problems
    eval/STAGE/summary.json    one row of the table, every number with its interval

`align.evaluation.evaluate` makes them; `align.evaluation.tables` and `align.report.page` read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from align.errors import StageError
from pts.files import replacing, write_json
from pts.types import Estimate


@dataclass(frozen=True, slots=True)
class Item:
    """One problem under one policy. Lengths are in tokens, the stop token included."""

    id: str
    family: str
    question: str
    reference: str
    greedy: bool
    greedy_length: int
    greedy_truncated: bool
    greedy_text: str
    samples: int
    passed: int
    truncated: int
    length: float
    """Mean over the samples."""
    best: float | None = None
    """Success rate at the best temperature."""


@dataclass(frozen=True, slots=True)
class BestTemperature:
    """The temperature that dev problems chose, and what it gives on the problems of the table."""

    temperature: float
    accuracy: Estimate
    dev: tuple[tuple[float, Estimate], ...]
    """Accuracy on the dev problems at every temperature of the grid."""


@dataclass(frozen=True, slots=True)
class FamilyScores:
    """Accuracy on one family of problems."""

    greedy: Estimate
    sampled: Estimate


@dataclass(frozen=True, slots=True)
class EvalSummary:
    """One row of the table. Every mean is over problems, every interval clusters by problem."""

    stage: str
    problems: int
    unscored: int
    """Problems left out because completions could not be judged."""
    samples: int
    """Completions a problem; the k of pass@k."""
    temperature: float
    greedy: Estimate
    sampled: Estimate
    pass_at_k: Estimate
    length: Estimate
    """Tokens of a sampled completion."""
    unfinished: Estimate
    """Share of sampled completions that the length limit cut (failures by definition)."""
    entropy: Estimate
    """Nats a token: mean over the policy's own sampled tokens of the entropy of softmax(logits /
    temperature) before truncation."""
    kl: Estimate | None
    """Nats a token: KL(policy || stage before) of those distributions, summed over the vocabulary
    at every token of the policy's own completions."""
    best: BestTemperature | None
    families: Mapping[str, FamilyScores]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A summary and the items that it was made of."""

    summary: EvalSummary
    items: tuple[Item, ...]


_SUMMARY = TypeAdapter(EvalSummary)
_ITEM = TypeAdapter(Item)


def write_evaluation(evaluation: Evaluation, folder: Path) -> tuple[Path, Path]:
    """Write items.jsonl and summary.json, both atomically; return their paths."""
    items, summary = folder / "items.jsonl", folder / "summary.json"
    with replacing(items) as file:
        for item in evaluation.items:
            file.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")
    write_json(summary, _SUMMARY.dump_python(evaluation.summary, mode="json"))
    return items, summary


def read_evaluation(folder: Path) -> Evaluation:
    """Read what `write_evaluation` wrote.

    Raises:
        StageError: a file is missing, or is not what an evaluation writes.
    """
    try:
        summary = _SUMMARY.validate_json((folder / "summary.json").read_bytes())
        lines = (folder / "items.jsonl").read_bytes().splitlines()
        items = tuple(_ITEM.validate_json(line) for line in lines)
    except FileNotFoundError as error:
        raise StageError(f"{error.filename}: not found; evaluate this stage first") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = f"{where}: {first['msg']}" if where else first["msg"]
        raise StageError(f"{folder}: {what}; evaluate this stage again") from None
    strange = [item.id for item in items if not 0 <= item.passed <= item.samples >= 1]
    if strange:
        raise StageError(
            f"{folder}/items.jsonl: {strange[0]!r} has more passes than samples, or none; evaluate "
            "this stage again"
        )
    return Evaluation(summary, items)
