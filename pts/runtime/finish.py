"""The end of a run: its totals, its pairs under one error rate, and the files of both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from pts.algorithm.selection import Selection
from pts.config import SearchConfig
from pts.data.pairs import write_pairs
from pts.data.rollouts import ROLLOUTS
from pts.files import write_json
from pts.runtime.results import read_records
from pts.runtime.summary import Records, RunSummary, Totals
from pts.types import TokenPair


def select(
    records: Records, config: SearchConfig, policy_digest: str
) -> tuple[Totals, Iterable[TokenPair]]:
    """Totals of the records, and their pairs under one error rate. The pairs are made and counted
    as they are iterated, for which the records are read a second time."""
    totals, selection = Totals(), Selection(config, policy_digest)
    for record in records:
        totals.add(record)
        selection.see(record.result)
    return totals, totals.confirmed(selection.pick(record.result for record in records))


def write_end(
    folder: Path,
    config: SearchConfig,
    policy_digest: str,
    token_texts: Callable[[set[int]], Mapping[int, str]],
    seconds: float,
    missing_shards: Sequence[str] = (),
) -> RunSummary:
    """Write the token texts, the pairs and at last the summary of a folder's results.

    `token_texts` gives the texts of these tokens.
    """
    totals, pairs = select(read_records(folder / "results.jsonl"), config, policy_digest)
    write_token_texts(folder, token_texts(totals.ids))
    write_pairs(folder / "pairs.jsonl", pairs)
    kept = folder / ROLLOUTS
    size = kept.stat().st_size if config.keep != "none" else 0
    summary = totals.summary(seconds, size)
    summary = dataclasses.replace(summary, missing_shards=list(missing_shards))
    write_json(folder / "summary.json", dataclasses.asdict(summary))
    return summary


def write_token_texts(folder: Path, texts: Mapping[int, str]) -> None:
    """Write token_texts.json."""
    write_json(folder / "token_texts.json", {str(i): texts[i] for i in sorted(texts)})
