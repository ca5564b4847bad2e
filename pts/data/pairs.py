"""Files of token pairs, and pairs as a Hugging Face dataset."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

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


def read_pairs(path: Path | str) -> list[TokenPair]:
    """Read token pairs. Raises DataError with the line number."""
    return list(stream_pairs(path))


def stream_pairs(path: Path | str) -> JsonLines[TokenPair]:
    """Token pairs, lazily. Iterating raises DataError (with the line number)."""
    return JsonLines(path, _PAIR.validate_json)


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
