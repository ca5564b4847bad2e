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
        f"SFT rows: {result.chats:,} ({c.usually_right - c.no_right_reply:,} right replies, "
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
    templates = _templates(config)
    faults = list[str]()
    count = 0
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        place = f"{file}, line {number}"
        try:
            row = json.loads(line)
            answers, scores = row["filtered_resps"], [_scores(row, name) for name in SCORES]
            doc = row["doc"]
        except (ValueError, KeyError, TypeError) as error:
            raise StageError(
                f"{place}: no answers of a benchmark with score: simpleqa ({error!r})"
            ) from None
        if not all(len(answers) == len(values) > 1 for values in scores):
            raise StageError(
                f"{place}: {len(answers)} answer to a question tells little of what a model knows; "
                "align benchmark … --set samples=8 --set temperature=0.7"
            )
        count += 1
        texts, wrong = _texts(templates, doc, place)
        if wrong:
            faults += wrong
            continue
        right, bad, _ = scores
        yield Knowledge(
            id=str(row["doc_id"]),
            right=tuple(text for text, value in zip(answers, right, strict=True) if value),
            wrong=tuple(text for text, value in zip(answers, bad, strict=True) if value),
            refused=sum(map(bool, scores[2])),
            **texts,
        )
    if not count:
        raise StageError(f"{file}: holds no answers")
    if faults:
        more = [f"… and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise RecipeError(*faults[:SHOWN], *more)


def _scores(row: Mapping[str, Any], name: str) -> list[float]:
    value = row[name]
    return list(value) if isinstance(value, list) else [float(value)]


def _templates(config: RefusalConfig) -> Mapping[str, jinja2.Template]:
    found, faults = {}, []
    for key in ("question", "correct", "refusal", "bogus"):
        try:
            found[key] = _JINJA.from_string(getattr(config, key))
        except jinja2.TemplateSyntaxError as error:
            faults.append(f"{key}: {error.message}")
    if faults:
        raise RecipeError(*faults)
    return found


def _texts(
    templates: Mapping[str, jinja2.Template], doc: Any, place: str
) -> tuple[dict[str, str], list[str]]:
    """The rendered texts of a question's row, and what is wrong with them."""
    texts, faults = dict[str, str](), list[str]()
    for key, template in templates.items():
        try:
            texts[key] = template.render(doc).strip()
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            faults.append(f"{place}: {key}: {error}")
    if not faults and not texts["question"]:
        faults.append(f"{place}: question: the template gives nothing")
    return texts, faults
