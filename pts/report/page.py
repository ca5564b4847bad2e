"""One self-contained HTML page about a run: curves, tokens, siblings and pairs of each question.

    write_report("runs/first")          # -> runs/first/report.html

The page holds its data as JSON and draws it with a small script that sets text only, so model text
cannot become markup; it loads nothing from the network (a content security policy forbids it). It
reads the run folder alone, no model is needed, and works for runs that are not finished.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from pts.errors import ConfigError
from pts.files import file_fault, replacing
from pts.report.text import PairKey, pair_key, selected_pairs
from pts.report.words import PURPOSES, RunCounts, explanations
from pts.runtime.results import RolloutCost
from pts.runtime.run_folder import RunFolder
from pts.types import (
    CandidatePair,
    CompletionResult,
    Estimate,
    PivotalStep,
    PivotalToken,
    QuestionResult,
    TokenPair,
)

QUESTIONS = 2000
BYTES = 24 << 20
"""Questions on one page at most, and of their data; the page says so when there are more."""
KEPT = ("rollouts_bytes", "bytes_per_rollout")
"""Totals of a finished run on the rollouts that it kept."""


def write_report(run_dir: Path | str, output: Path | str | None = None) -> Path:
    """Write the page of a run (report.html in its folder unless `output` says otherwise).

    Returns the page's path. Raises DataError or JournalError for a folder that holds no run,
    ConfigError for an `output` that cannot be written.
    """
    folder = RunFolder(run_dir)
    target = Path(output) if output is not None else folder.path / "report.html"
    if fault := file_fault(target):
        raise ConfigError(f"--output: {target}: {fault}")
    names = ("template.html", "style.css", "answer.js", "script.js")
    page, style, *scripts = (
        files("pts.report").joinpath(name).read_text(encoding="utf-8") for name in names
    )
    page = page.replace("{{style}}", style).replace("{{script}}", "".join(scripts))
    before, _, after = page.partition("{{data}}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as file:
        file.write(before + script_json(report_data(folder)) + after)
    return target


def script_json(value: object) -> str:
    """JSON that may stand inside a <script> element, whatever its strings hold."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def report_data(folder: RunFolder) -> dict[str, Any]:
    """What the page shows, as plain values: totals of the run, and its first questions.

    Those are at most QUESTIONS of them and BYTES of data, and at least one.
    """
    first = {record.result.problem_id for record in islice(folder.records, QUESTIONS)}
    selected = selected_pairs(folder, first)
    questions, left = [], BYTES
    for record in islice(folder.records, QUESTIONS):
        question = _question(folder, record.result, selected)
        size = len(script_json(question))
        if size > left < BYTES:
            break
        questions.append(question)
        left -= size
    return {"run": _run(folder), "questions": questions}


def _run(folder: RunFolder) -> dict[str, Any]:
    status: Counter[str] = Counter()
    spent: dict[str, RolloutCost] = {}
    proposed: Counter[str] = Counter()
    for record in folder.records:
        status[record.result.status] += 1
        proposed.update(pair.criterion for path in record.result.paths for pair in path.pairs)
        for purpose, tally in record.spent.items():
            spent[purpose] = spent.get(purpose, RolloutCost()) + tally
    finished = folder.summary is not None
    confirmed: Counter[str] = Counter(pair.criterion for pair in folder.each_pair)
    counts = RunCounts(finished, status, proposed, confirmed)
    settings: list[tuple[str, str]] = []
    for name, value in folder.fingerprint.items():
        if isinstance(value, dict):
            settings += [(f"{name}.{key}", json.dumps(inner)) for key, inner in value.items()]
        else:
            settings.append((name, str(value)))
    if lacking := (folder.summary or {}).get("missing_shards"):
        settings.append(("missing shards", ", ".join(map(str, lacking))))
    return {
        "name": folder.path.resolve().name,
        "finished": finished,
        "status": status,
        "spent": {
            purpose: {"for": text, **dataclasses.asdict(spent[purpose])}
            for purpose, text in PURPOSES.items()
            if purpose in spent
        },
        "kept": {key: (folder.summary or {}).get(key, 0) for key in KEPT},
        "total": dataclasses.asdict(sum(spent.values(), RolloutCost())),
        "proposed": proposed.total(),
        "confirmed": confirmed.total(),
        "gap": folder.config.p_gap,
        "unit": folder.config.unit,
        "words": explanations(folder.config, folder.fingerprint["sampling"], counts),
        "settings": settings,
    }


def _question(
    folder: RunFolder, result: QuestionResult, selected: Mapping[PairKey, TokenPair]
) -> dict[str, Any]:
    return {
        "id": result.problem_id,
        "status": result.status,
        "solved": _estimate(result.solved),
        "filter_stopped": result.filtered.stopped,
        "prompt": folder.text(result.prompt_ids),
        "redrawn": result.redrawn,
        "rollouts": sum(cost.rollouts for cost in result.cost.values()),
        "tokens": sum(cost.tokens for cost in result.cost.values()),
        "paths": [_path(folder, result, path, selected) for path in result.paths],
    }


def _path(
    folder: RunFolder,
    result: QuestionResult,
    path: CompletionResult,
    selected: Mapping[PairKey, TokenPair],
) -> dict[str, Any]:
    return {
        "verdict": path.verdict.value,
        "stopped": path.stopped,
        "tokens": [
            (folder.token_text(token), round(q, 4))
            for token, q in zip(path.ids, path.probs, strict=True)
        ],
        "curve": [
            (at, *_estimate(estimate))
            for at, estimate in zip(path.curve_at, path.curve, strict=True)
        ],
        "pivots": _pivots(path.tokens),
        "undecided": _pivots(p for p in path.undecided if isinstance(p, PivotalToken)),
        "steps": [
            {
                "start": step.start,
                "end": step.end,
                "prob": round(step.prob, 4),
                "delta": (*_estimate(step.delta), step.decided, step.delta.method),
                "reported": step in path.steps,
            }
            for step in (*path.steps, *path.undecided)
            if isinstance(step, PivotalStep)
        ],
        "siblings": {
            str(position): [(folder.token_text(t), round(q, 4), s, n) for t, q, s, n in rows]
            for position, rows in path.siblings.items()
        },
        "pairs": [
            _pair(folder, pair, selected.get(pair_key(result, path, pair))) for pair in path.pairs
        ],
    }


def _pivots(tokens: Iterable[PivotalToken]) -> dict[str, tuple[float | int | bool | str, ...]]:
    """By position: mean, low, high, rollouts of Δ; whether it is decided; the interval's name."""
    return {
        str(token.position): (*_estimate(token.delta), token.decided, token.delta.method)
        for token in tokens
    }


def _pair(folder: RunFolder, pair: CandidatePair, kept: TokenPair | None) -> dict[str, Any]:
    """A confirmed pair as it is published, any other one by its raw difference."""
    chosen, rejected = pair.confirm_chosen, pair.confirm_rejected
    chosen_text, rejected_text = folder.token_text(pair.chosen), folder.token_text(pair.rejected)
    return {
        "at": pair.position,
        "criterion": pair.criterion,
        "chosen": [chosen_text, pair.chosen_prob, chosen.successes, chosen.n],
        "rejected": [rejected_text, pair.rejected_prob, rejected.successes, rejected.n],
        "gap": _estimate(kept.gap) if kept else [round(pair.gap, 4)],
        "expected_gain": kept.expected_gain if kept else pair.expected_gain,
        "pvalue": pair.pvalue,
        "confirmed": kept is not None,
    }


def _estimate(estimate: Estimate) -> tuple[float, float, float, int]:
    mean, low, high = (round(p, 4) for p in (estimate.mean, estimate.low, estimate.high))
    return mean, low, high, estimate.n
