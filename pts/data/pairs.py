"""Files of token pairs, and pairs as a Hugging Face dataset."""

from __future__ import annotations

import codecs
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from pts.errors import did_you_mean
from pts.files import JsonLines, dumps, replacing
from pts.plain_text import read_json
from pts.types import Estimate, TokenPair

if TYPE_CHECKING:
    from datasets import Dataset

_PAIR = TypeAdapter(TokenPair)

ROUNDING = 1e-6
"""By so much a probability may lie above 1."""


def pair_line(pair: TokenPair) -> str:
    """A pair as one line of JSON, without the newline. ValueError on NaN."""
    return dumps(_PAIR.dump_python(pair, mode="json"))


def write_pairs(path: Path, pairs: Iterable[TokenPair]) -> None:
    """Write token pairs as JSONL, atomically."""
    with replacing(path) as file:
        file.writelines(pair_line(pair) + "\n" for pair in pairs)


def read_pairs(path: Path | str) -> list[TokenPair]:
    """Read token pairs. Raises DataError with the line number."""
    return list(stream_pairs(path))


def stream_pairs(path: Path | str) -> JsonLines[TokenPair]:
    """Token pairs, lazily. Iterating raises DataError (with the line number)."""
    return JsonLines(path, _read)


def _read(line: bytes) -> TokenPair:
    """The pair on a line. Raises ValueError for one that is none, or can be none."""
    line = line.removeprefix(codecs.BOM_UTF8)
    pair = _PAIR.validate_json(line, strict=True)
    if faults := [*_unknown(read_json(line), dataclasses.asdict(pair)), *_faults(pair)]:
        raise ValueError("; ".join(faults))
    return pair


def _unknown(told: Mapping[str, Any], known: Mapping[str, Any], within: str = "") -> Iterator[str]:
    for key, value in told.items():
        if key not in known:
            yield f"{within}{key}: no such key{did_you_mean(key, known)}"
        elif isinstance(value, dict):
            yield from _unknown(value, known[key], f"{key}.")


def _faults(pair: TokenPair) -> Iterator[str]:
    """What is wrong with values that have the right types."""
    if not pair.prompt_ids:
        yield "prompt_ids: got []; the ids of a prompt are needed"
    for name, ids in (
        ("prompt_ids", pair.prompt_ids), ("chosen", (pair.chosen,)), ("rejected", (pair.rejected,))
    ):  # fmt: skip
        if wrong := [token for token in ids if not 0 <= token < 2**63]:
            yield f"{name}: got {wrong[0]}; token ids are whole numbers from 0, below 2^63"
    if pair.chosen == pair.rejected:
        yield f"chosen, rejected: both are token {pair.chosen}; a pair has two"
    for name in ("chosen_prob", "rejected_prob", "pvalue"):
        value = getattr(pair, name)
        if not 0 <= value <= 1 + ROUNDING:
            yield f"{name}: got {value}; a number from 0 to 1 is needed"
    numbers = {"expected_gain": pair.expected_gain}
    for name in ("p_chosen", "p_rejected", "gap"):
        estimate: Estimate = getattr(pair, name)
        numbers |= {f"{name}.{end}": getattr(estimate, end) for end in ("mean", "low", "high")}
    for name, value in numbers.items():
        if not math.isfinite(value):
            yield f"{name}: got {value}; a finite number is needed"


def pairs_dataset(pairs: Iterable[TokenPair]) -> Dataset:
    """The pairs as a Hugging Face dataset, tokenised: no text is involved, nothing to retokenise.

    Columns `prompt_ids`, `chosen_ids`, `rejected_ids` (int64 lists; the last two of length 1), as
    TRL's DPOTrainer names them after its own tokenisation (stock TRL 1.16 tokenises again, so its
    trainer must be told to skip that step), and `problem_id`, `gap`, `expected_gain`, `criterion`.
    """
    from datasets import Dataset, Features, List, Value

    pairs = list(pairs)
    ids, number, text = List(Value("int64")), Value("float64"), Value("string")
    columns = {
        "prompt_ids": (ids, [list(pair.prompt_ids) for pair in pairs]),
        "chosen_ids": (ids, [[pair.chosen] for pair in pairs]),
        "rejected_ids": (ids, [[pair.rejected] for pair in pairs]),
        "problem_id": (text, [pair.problem_id for pair in pairs]),
        "criterion": (text, [pair.criterion for pair in pairs]),
        "gap": (number, [pair.gap.mean for pair in pairs]),
        "expected_gain": (number, [pair.expected_gain for pair in pairs]),
    }
    features = Features({name: kind for name, (kind, _) in columns.items()})
    return Dataset.from_dict({n: values for n, (_, values) in columns.items()}, features=features)
