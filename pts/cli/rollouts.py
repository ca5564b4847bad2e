"""`pts rollouts`: what a search kept, as JSON lines of token ids."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pts.data.rollouts import PURPOSES, QuestionRollouts, read_rollouts
from pts.errors import ConfigError, DataError, did_you_mean
from pts.files import dumps, file_fault, replacing
from pts.types import Purpose

What: TypeAlias = Literal["right", "wrong", "pairs", "values", "all"]
Rows: TypeAlias = Iterator[dict[str, Any]]

ROW = (
    r'\{"problem_id":"([^"\\]|\\.)*","prompt_ids":\[[\d,]*\],'
    r'"(completion_ids|chosen_ids|prefix_ids|purpose)":'
)
"""How a row begins: neither as a line of a run's rollouts.jsonl nor as a pair."""


def write_rows(
    source: Path, what: What, purposes: Sequence[str] | None, output: Path | None
) -> int:
    """Write rows of a run folder or a rollouts.jsonl, a question at a time; return their number.

    Each has `problem_id` and `prompt_ids`. Raises ConfigError for an unknown purpose and an
    `output` that cannot be written, DataError for a source that cannot be read or lacks what is
    asked for.
    """
    chosen = [purpose for purpose in PURPOSES if not purposes or purpose in purposes]
    for name in purposes or ():
        if name not in PURPOSES:
            raise ConfigError(
                f"--purpose: no purpose {name!r}"
                f"{did_you_mean(name, PURPOSES) or '; known: ' + ', '.join(PURPOSES)}"
            )
    if not source.exists():
        raise DataError(f"{source}: no such run folder or file")
    questions = read_rollouts(source)
    if output is not None:
        _check_file(output)
        output.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with nullcontext(sys.stdout) if output is None else replacing(output) as file:
        for question in questions:
            about = {"problem_id": question.problem_id, "prompt_ids": question.prompt_ids}
            for row in ROWS[what](question, chosen):
                file.write(dumps({**about, **row}) + "\n")
                written += 1
    return written


def _check_file(output: Path) -> None:
    """Raise ConfigError for a file that cannot be written, or holds something else."""
    if fault := file_fault(output, ROW, "rows of rollouts"):
        raise ConfigError(f"--output: {output}: {fault}")


def _answers(right: bool) -> Callable[[QuestionRollouts, Collection[Purpose]], Rows]:
    def rows(question: QuestionRollouts, purposes: Collection[Purpose]) -> Rows:
        return ({"completion_ids": ids} for ids in question.answers(right, purposes))

    return rows


def _pairs(question: QuestionRollouts, purposes: Collection[Purpose]) -> Rows:
    for pair in question.pairs(purposes):
        yield {
            "prompt_ids": question.prompt_ids + pair.prefix,
            "chosen_ids": pair.chosen,
            "rejected_ids": pair.rejected,
        }


def _values(question: QuestionRollouts, purposes: Collection[Purpose]) -> Rows:
    for value in question.values(purposes):
        yield {
            "prefix_ids": value.prefix,
            "token": value.token,
            "passed": value.passed,
            "drawn": value.drawn,
        }


def _all(question: QuestionRollouts, purposes: Collection[Purpose]) -> Rows:
    for kept in question.rollouts:
        if kept.purpose in purposes:
            told = kept.rollout
            yield {
                "purpose": kept.purpose,
                "prefix_ids": kept.prefix,
                "ids": told.ids,
                "length": told.length,
                "verdict": told.verdict,
                "truncated": told.truncated,
            }


ROWS: dict[What, Callable[[QuestionRollouts, Collection[Purpose]], Rows]] = {
    "right": _answers(True),
    "wrong": _answers(False),
    "pairs": _pairs,
    "values": _values,
    "all": _all,
}
