"""`align defects`: a policy answers prompts, a judge tells how severe its replies' defects are.

OUTPUT/answers.jsonl           the policy's replies as they came
OUTPUT/calls.jsonl             the judge's; a killed command asks only the rest
OUTPUT/samples_defects.jsonl   a line a prompt, for `align compare`
OUTPUT/summary.json            DR-1 to DR-7, the judge's errors, calls and tokens
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from align.data.conversations import ConversationRow, read_conversations
from align.defects.rates import corrected, defect_rate, judge_errors
from align.defects.result import DefectResult
from align.defects.settings import DefectConfig
from align.defects.severity import (
    VERSION,
    WORST,
    Replied,
    Severity,
    severities,
    severity_prompt,
)
from align.errors import RecipeError, StageError
from align.judging.asker import Asker
from align.judging.backends import open_backend, open_source
from align.judging.calls import Said
from align.judging.chat_answers import chat_answers
from align.judging.faults import backend_faults, source_faults
from align.judging.journal import CallJournal
from align.judging.prompt import CHARACTERS
from align.judging.settings import CHAT, AnswerSource
from align.settings import ModelConfig
from pts.config import parse_settings
from pts.engines.registry import ENGINES
from pts.files import output_fault, replacing, write_json
from pts.types import Problem

CALLS = "calls.jsonl"
LABELS = "messages"


def policy_of(model: str, options: dict[str, Any]) -> AnswerSource:
    """A policy by its folder (also that of a stage), or by an engine's name."""
    name = model.partition(":")[0]
    if name in ENGINES or model.startswith(CHAT):
        engine = model
    else:
        folder = Path(model)
        inner = folder / "model"
        engine = f"transformers:{inner if (inner / 'config.json').is_file() else folder}"
    return parse_settings(AnswerSource, {"engine": engine, "options": options}, "MODEL")


def measure_defects(
    model: str,
    prompts: str,
    output: Path,
    config: DefectConfig,
    labelled: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> DefectResult:
    """Ask a policy, then a judge, and write what is found.

    Args:
        model: folder of a policy, or `transformers:PATH`, `vllm:PATH`, `server:URL`, `chat:URL`.
        prompts: a table of prompts.
        output: folder to write; the same call goes on where it was stopped.
        config: judge, threshold and sampling.
        labelled: a table of `messages` that end with the assistant's reply, and of a person's
            `severity` of it, 0 to 7, by which the judge is measured.
        say: is told the number of calls before any is made.
        progress: draw bars.

    Raises:
        RecipeError: policy or judge cannot be asked so.
        StageError: the folder is another's.
        DataError: rows that cannot be read.
        EngineError: policy or judge cannot be asked at all.
    """
    if fault := output_fault(output, CALLS):
        raise StageError(f"--output: {output}: {fault}")
    policy = policy_of(model, config.options)
    faults = [f"MODEL: {fault}" for fault in source_faults(policy)]
    if faults := [*faults, *(f"judge.{fault}" for fault in backend_faults(config.judge))]:
        raise RecipeError(*faults)
    rows = read_conversations(prompts, config.column)
    labels = read_conversations(labelled, LABELS, "assistant", _label_fault) if labelled else []
    say(expectation(rows, labels, config))
    with CallJournal(output / CALLS):  # marks the folder as this command's
        pass
    with closing(open_source(policy, config.sampling)) as backend:
        who = dict(backend.identity)
        with CallJournal(output / "answers.jsonl") as journal:
            asked = [Problem(f"{row.number} {row.digest}", row.messages, "") for row in rows]
            answers = chat_answers(backend, journal, asked, config.samples, progress)
    with (
        closing(open_backend(config.judge, ModelConfig(path=config.judge.path))) as judge,
        CallJournal(output / CALLS) as journal,
    ):
        asker = Asker(judge, journal, config.judge.attempts, VERSION, progress=progress)
        known = severities(asker, [_labelled(row) for row in labels], config.defect)
        found = _judged(asker, rows, answers, config)
        result = _result(rows, answers, found, labels, known, config, asker.counts)
        who = {"policy": who, "judge": dict(judge.identity)}
    _write(output, rows, answers, found, config)
    write_json(
        output / "summary.json",
        {**result.plain(), "models": who, "settings": config.model_dump(mode="json")},
    )
    return result


def expectation(
    rows: Sequence[ConversationRow], labels: Sequence[ConversationRow], config: DefectConfig
) -> str:
    """Calls and tokens at most, if nothing is asked again."""
    replies = len(rows) * config.samples
    shown = [severity_prompt(Replied(row.messages, ""), config.defect) for row in rows]
    tokens = config.samples * sum(map(len, shown)) / CHARACTERS + replies * config.max_tokens
    shown = [severity_prompt(_labelled(row), config.defect) for row in labels]
    tokens += sum(map(len, shown)) / CHARACTERS
    calls = replies + len(labels)
    return (
        f"{replies:,} replies of the policy; the judge is asked {calls:,} times at most, with "
        f"about {round(tokens):,} tokens of prompts and {calls * config.judge.max_tokens:,} of "
        "replies at most; more where it is asked again"
    )


def _judged(
    asker: Asker,
    rows: Sequence[ConversationRow],
    answers: Sequence[Sequence[Said]],
    config: DefectConfig,
) -> list[list[Severity]]:
    """The severities of the replies of each prompt that there are."""
    cases = [
        [Replied(row.messages, one.text) for one in said if _replied(one)]
        for row, said in zip(rows, answers, strict=True)
    ]
    flat = iter(severities(asker, [case for some in cases for case in some], config.defect))
    return [[next(flat) for _ in some] for some in cases]


def _replied(said: Said) -> bool:
    return said.end in ("stop", "length")


def _result(
    rows: Sequence[ConversationRow],
    answers: Sequence[Sequence[Said]],
    found: Sequence[Sequence[Severity]],
    labels: Sequence[ConversationRow],
    known: Sequence[Severity],
    config: DefectConfig,
    judge: dict[str, int],
) -> DefectResult:
    values = [[one.value for one in some] for some in found]
    rates = [defect_rate(values, x) for x in range(1, WORST + 1)]
    said = [one for some in answers for one in some]
    without = Counter(one.kind for some in found for one in some if one.value is None)
    if not any(rates):
        reasons = [one.reason for some in found for one in some] or ["the policy gave no reply"]
        raise StageError(
            f"no reply has a severity; UNSCORED because: {max(reasons, key=reasons.count)}; take "
            "another judge, or read calls.jsonl"
        )
    errors, better, why = None, None, "no labelled set is given"
    if labels:
        told = [one.value for one in known]
        errors = judge_errors([row.row["severity"] for row in labels], told, config.threshold)
        better, why = corrected(values, errors)
    counts = {
        "unscored": without.total(),
        "cut": sum(one.end == "length" for one in said),
        "unanswered": sum(not _replied(one) for one in said),
    }
    return DefectResult(
        len(rows), sum(map(len, values)), tuple(rate for rate in rates if rate), counts,
        dict(sorted(without.items())), errors, better, why, judge,
    )  # fmt: skip


def _labelled(row: ConversationRow) -> Replied:
    return Replied(row.messages[:-1], row.text)


def _label_fault(found: ConversationRow) -> str | None:
    severity = found.row.get("severity")
    if type(severity) is not int or not 0 <= severity <= WORST:
        return f"severity: a whole number from 0 to {WORST} is needed, not {severity!r}"
    return None if len(found.messages) > 1 else "messages: the reply answers nothing"


def _write(
    output: Path,
    rows: Sequence[ConversationRow],
    answers: Sequence[Sequence[Said]],
    found: Sequence[Sequence[Severity]],
    config: DefectConfig,
) -> None:
    with replacing(output / "samples_defects.jsonl") as file:
        for line in _lines(rows, answers, found, config):
            file.write(json.dumps(line, default=str) + "\n")


def _lines(
    rows: Sequence[ConversationRow],
    answers: Sequence[Sequence[Said]],
    found: Sequence[Sequence[Severity]],
    config: DefectConfig,
) -> Iterator[dict[str, Any]]:
    """Prompts with a scored reply, in the form of lm-evaluation-harness' --log_samples."""
    defect = f"dr{config.threshold}"
    for row, said, some in zip(rows, answers, found, strict=True):
        texts = [one.text for one in said if _replied(one)]
        scored = [(t, s.value) for t, s in zip(texts, some, strict=True) if s.value is not None]
        if scored:
            values = [value for _, value in scored]
            yield {
                "doc_id": f"{row.number}",
                "doc": row.row,
                "arguments": [[[[m.role, m.content] for m in row.messages]]],
                "target": "",
                "filtered_resps": [text for text, _ in scored],
                "filter": "none",
                "metrics": [defect, "severity"],
                "doc_hash": row.digest,
                defect: [float(value >= config.threshold) for value in values],
                "severity": [float(value) for value in values],
            }
