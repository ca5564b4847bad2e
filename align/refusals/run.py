"""`align refusals`: the answers of `align benchmark` as data that teach when to refuse.

OUTPUT/sft.jsonl      chats, a source of `sft`
OUTPUT/pairs.jsonl    pairs, a source of `full_dpo` (with `first_tokens: 5`)
OUTPUT/summary.json   counts, settings, and whose answers they were made of
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from align.errors import RecipeError, StageError
from align.refusals.rows import Knowledge, RefusalCounts, refusal_rows
from align.refusals.settings import RefusalConfig
from pts.files import dumps, output_fault, replacing, write_json

SCORES = ("correct", "incorrect", "not_attempted")
SUMMARY = "summary.json"
SHOWN = 20
"""Faults listed at most in one message."""
_JINJA = SandboxedEnvironment(undefined=jinja2.StrictUndefined)


@dataclass(frozen=True, slots=True)
class RefusalResult:
    """What was made, and of what."""

    counts: RefusalCounts
    chats: int
    pairs: int
    samples: int
    """Answers a question."""


def make_refusals(results: Path, output: Path, config: RefusalConfig) -> RefusalResult:
    """Write the rows that a model's answers ask for.

    Args:
        results: what `align benchmark` wrote for one benchmark with `score: simpleqa` and several
            `samples`: its folder, or the samples file in it.
        output: folder to write.
        config: which rows, and their texts.

    Raises:
        RecipeError: a template is wrong, or does not fit a row.
        StageError: the results cannot be read, or are not of this kind.
    """
    if fault := output_fault(output, SUMMARY):
        raise StageError(f"--output: {output}: {fault}")
    file = _samples_file(results)
    known = list(_knowledge(file, config))
    chats, pairs, counts = refusal_rows(known, config)
    output.mkdir(parents=True, exist_ok=True)
    for name, rows in (("sft", chats), ("pairs", pairs)):
        with replacing(output / f"{name}.jsonl") as out:
            out.writelines(dumps(row) + "\n" for row in rows)
    task = file.parent / "task.json"
    about = json.loads(task.read_text(encoding="utf-8")) if task.is_file() else {}
    write_json(
        output / SUMMARY,
        {
            **counts.plain(),
            "sft_rows": len(chats),
            "pairs": len(pairs),
            "settings": config.model_dump(mode="json"),
            "answers": str(file),
            "policy_digest": about.get("policy_digest"),
        },
    )
    return RefusalResult(counts, len(chats), len(pairs), known[0].samples)


def summary_text(result: RefusalResult) -> str:
    """For a terminal."""
    c = result.counts
    lines = [
        f"{c.questions:,} questions, {result.samples} answers each: usually right "
        f"{c.usually_right:,}, usually wrong {c.usually_wrong:,}, neither {c.neither:,}",
        f"SFT rows: {result.chats:,} ({c.usually_right:,} right replies, "
        f"{c.usually_wrong:,} refusals, {c.bogus:,} refusals of bogus questions)",
        f"Pairs: {result.pairs:,} ({c.right_over_refusal:,} right reply over refusal, "
        f"{c.refusal_over_wrong:,} refusal over wrong answer)",
    ]
    if c.identical:
        lines.append(f"Dropped: {c.identical:,} pairs with two equal sides")
    return "\n".join(lines)


def _samples_file(results: Path) -> Path:
    if results.is_file():
        return results
    found = sorted(results.glob("samples_*.jsonl")) if results.is_dir() else []
    if len(found) != 1:
        held = f"holds {len(found)} files samples_*.jsonl" if results.is_dir() else "does not exist"
        raise StageError(
            f"{results}: {held}; name the folder that align benchmark wrote for one benchmark"
        )
    return found[0]


def _knowledge(file: Path, config: RefusalConfig) -> Iterator[Knowledge]:
    templates, faults, count = _templates(config), list[str](), 0
    for count, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        place = f"{file}, line {count}"
        answered = _answered(line, place)
        try:
            yield _of_row(answered, templates)
        except ValueError as error:
            faults.append(f"{place}: {error}")
    if not count:
        raise StageError(f"{file}: holds no answers")
    if faults:
        more = [f"… and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise RecipeError(*faults[:SHOWN], *more)


def _answered(line: str, place: str) -> dict[str, Any]:
    """A line of the samples file, its scores as lists."""
    try:
        row: dict[str, Any] = json.loads(line)
        answers, _, _ = row["filtered_resps"], row["doc_id"], row["doc"]
        for name in SCORES:
            row[name] = row[name] if isinstance(row[name], list) else [row[name]]
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(
            f"{place}: no answers of a benchmark with score: simpleqa ({error!r})"
        ) from None
    if not all(len(answers) == len(row[name]) > 1 for name in SCORES):
        raise StageError(
            f"{place}: {len(answers)} answer to a question tells little of what a model knows; "
            "align benchmark … --set samples=8 --set temperature=0.7"
        )
    return row


def _templates(config: RefusalConfig) -> dict[str, jinja2.Template]:
    found, faults = {}, []
    for key in ("question", "reply", "correct", "refusal", "bogus", "bogus_refusal"):
        try:
            found[key] = _JINJA.from_string(getattr(config, key))
        except jinja2.TemplateSyntaxError as error:
            faults.append(f"{key}: {error.message}")
    if faults:
        raise RecipeError(*faults)
    return found


def _of_row(row: Mapping[str, Any], templates: Mapping[str, jinja2.Template]) -> Knowledge:
    """Raises ValueError where a template does not fit the row."""

    def text(key: str, **more: str) -> str:
        try:
            return templates[key].render(row["doc"], **more).strip()
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{key}: {error}") from None

    def replies(score: str) -> tuple[str, ...]:
        pairs = zip(row["filtered_resps"], row[score], strict=True)
        said = [answer.strip() for answer, holds in pairs if holds]
        return tuple(text("reply", answer=answer) for answer in said if answer)

    named = ("question", "correct", "refusal", "bogus", "bogus_refusal")
    own = {key: text(key) for key in named}
    if not own["question"]:
        raise ValueError("question: the template gives nothing")
    right, wrong = replies("correct"), replies("incorrect")
    return Knowledge(
        str(row["doc_id"]), right=right, wrong=wrong, samples=len(row["correct"]), **own
    )
