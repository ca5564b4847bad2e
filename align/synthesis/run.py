"""`align synthesize`: rows that a model makes of the rows of sources.

OUTPUT/calls.jsonl    every reply as it came; a killed command asks only the rest
OUTPUT/*.jsonl        the new rows: problems, prompts, sft, pairs or rows, by the step
OUTPUT/summary.json   settings, the model, fates, calls and tokens
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from align.data.conversations import ConversationRow, read_conversations
from align.errors import RecipeError, StageError
from align.judging.backends import open_source
from align.judging.faults import source_faults
from align.judging.journal import CallJournal
from align.judging.prompt import CHARACTERS, holds_markup
from align.synthesis.agreement import answer_reader
from align.synthesis.settings import SynthesisConfig
from align.synthesis.steps import STEPS, Model
from pts.data.rows import missing
from pts.files import dumps, output_fault, replacing, write_json

CALLS = "calls.jsonl"
OVERHEAD = 150
"""Tokens, about, of a prompt without the text that it quotes."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a step will take at most, if nothing is asked again."""

    calls: int
    prompt_tokens: int
    reply_tokens: int

    def text(self) -> str:
        """For a terminal."""
        return (
            f"{self.calls:,} calls at most, with about {self.prompt_tokens:,} tokens of prompts "
            f"and {self.reply_tokens:,} of replies at most; more where a reply cannot be read"
        )


@dataclass(frozen=True, slots=True)
class SynthesisResult:
    """What was made."""

    rows: int
    """Of the sources, each text once."""
    fates: dict[str, int]
    written: dict[str, int]
    """Rows by file."""
    took: dict[str, int]


def synthesize(
    sources: Sequence[str],
    output: Path,
    config: SynthesisConfig,
    say: Callable[[str], None] = lambda line: None,
    progress: bool = False,
) -> SynthesisResult:
    """Ask a model about the rows of sources, and write what it makes of them.

    Args:
        sources: tables, as `pts.load_problems` reads them.
        output: folder to write; the same call goes on where it was stopped.
        config: step and model.
        say: is told the estimate before anything is asked.
        progress: draw bars.

    Raises:
        RecipeError: the model cannot be asked so.
        StageError: the folder is another's.
        DataError: rows that cannot be read.
        EngineError: the model cannot be asked at all.
    """
    if fault := output_fault(output, CALLS):
        raise StageError(f"--output: {output}: {fault}")
    if faults := source_faults(config):
        raise RecipeError(*(f"engine: {fault}" for fault in faults))
    if config.answer:
        answer_reader(config.answer)
    found = [row for source in sources for row in _rows(source, config)]
    sound = [row for row in found if not any(holds_markup(m.content) for m in row.messages)]
    rows = list({row.digest: row for row in reversed(sound)}.values())[::-1]
    expected = estimate(rows, config)
    say(f"{len(rows):,} texts: {expected.text()}")
    backend = open_source(config, config.sampling)
    identity = json.dumps(backend.identity, sort_keys=True)
    name = f"{config.engine} {hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()}"
    with closing(backend), CallJournal(output / CALLS) as journal:
        model = Model(backend, journal, config, name, progress)
        made = STEPS[config.step](rows, model)
    for file, its in made.files.items():
        with replacing(output / f"{file}.jsonl") as out:
            out.writelines(dumps(row) + "\n" for row in its)
    fates = {**made.fates, "repeated": len(sound) - len(rows)}
    fates["with_markup"] = len(found) - len(sound)
    written = {f"{file}.jsonl": len(its) for file, its in made.files.items()}
    write_json(
        output / "summary.json",
        {
            "settings": config.model_dump(mode="json"),
            "sources": list(sources),
            "texts": len(rows),
            "model": {"name": name, **backend.identity},
            "fates": fates,
            "rows": written,
            "expected": {
                "calls": expected.calls,
                "prompt_tokens": expected.prompt_tokens,
                "reply_tokens": expected.reply_tokens,
            },
            "took": dict(model.took),
        },
    )
    return SynthesisResult(len(rows), fates, written, dict(model.took))


def estimate(rows: Sequence[ConversationRow], config: SynthesisConfig) -> Estimate:
    """Calls and tokens of a step, from the lengths of its texts."""
    text = sum(len(m.content) for row in rows for m in row.messages) / CHARACTERS
    n, limit = len(rows), config.max_tokens
    samples = 1 if config.step == "refusal" else config.samples
    asks, quoted = 1, 0
    if config.step in ("rewrite", "reverse", "bogus", "refusal"):
        quoted = n * OVERHEAD
        asks += bool(config.fidelity)
    elif config.step == "revise":
        judged = 0 if config.reference else 2
        asks, quoted = 2 + judged, n * (1 + judged) * (2 * OVERHEAD) + n * (1 + 2 * judged) * limit
    calls = n * samples * asks
    return Estimate(calls, round(samples * (asks * text + quoted)), calls * limit)


def summary_text(result: SynthesisResult) -> str:
    """For a terminal."""
    took = result.took
    fates = ", ".join(f"{fate.replace('_', ' ')} {n:,}" for fate, n in result.fates.items())
    tokens = f"{took['prompt_tokens']:,} tokens of prompts and {took['reply_tokens']:,} of replies"
    lines = [f"{result.rows:,} texts: {fates}", f"{took['calls']:,} calls, {tokens}"]
    if took["calls_without_usage"]:
        lines[-1] += f" ({took['calls_without_usage']:,} calls tell none)"
    return "\n".join(lines)


def _rows(source: str, config: SynthesisConfig) -> list[ConversationRow]:
    def check(found: ConversationRow) -> str | None:
        if config.reference and found.row.get(config.reference) in (None, ""):
            return missing(config.reference, found.row, " (the reference)")
        return None

    return read_conversations(source, config.column, check=check)
