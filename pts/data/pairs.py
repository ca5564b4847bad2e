"""Files of token pairs, and pairs as a Hugging Face dataset."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from pts.files import JsonLines, dumps, replacing
from pts.types import TokenPair

if TYPE_CHECKING:
    from datasets import Dataset

_PAIR = TypeAdapter(TokenPair)


def pair_line(pair: TokenPair) -> str:
    """A pair as one line of JSON, without the newline. ValueError on NaN."""
    return dumps(_PAIR.dump_python(pair, mode="json"))


def write_pairs(path: Path, pairs: Iterable[TokenPair]) -> None:
    """Write token pairs as JSONL, atomically."""
    with replacing(path) as file:
        file.writelines(pair_line(pair) + "\n" for pair in pairs)


def read_pairs(path: Path) -> list[TokenPair]:
    """Read token pairs. Raises DataError with the line number."""
    return list(stream_pairs(path))


def stream_pairs(path: Path) -> JsonLines[TokenPair]:
    """Token pairs, lazily. Iterating raises DataError (with the line number)."""
    return JsonLines(path, _PAIR.validate_json)


def pairs_dataset(pairs: Iterable[TokenPair]) -> Dataset:
    """The pairs as a Hugging Face dataset, tokenised: no text is involved, nothing to retokenise.

    Columns `prompt_ids`, `chosen_ids`, `rejected_ids` (int64 lists; the last two of length 1), as
    TRL's DPOTrainer names them after its own tokenisation (stock TRL 1.16 tokenises again, so its
    trainer must be told to skip that step), and `problem_id`, `gap`, `expected_gain`, `criterion`.
    """
    from datasets import Dataset, Features, List, Value

    ids, number, text = List(Value("int64")), Value("float64"), Value("string")
    features = {"prompt_ids": ids, "chosen_ids": ids, "rejected_ids": ids, "problem_id": text}
    features |= {"criterion": text, "gap": number, "expected_gain": number}
    rows = [_row(pair) for pair in pairs]
    columns = {name: [row[name] for row in rows] for name in features}
    return Dataset.from_dict(columns, features=Features(features))


def _row(pair: TokenPair) -> dict[str, Any]:
    return {
        "prompt_ids": list(pair.prompt_ids),
        "chosen_ids": [pair.chosen],
        "rejected_ids": [pair.rejected],
        "problem_id": pair.problem_id,
        "criterion": pair.criterion,
        "gap": pair.gap.mean,
        "expected_gain": pair.expected_gain,
    }
