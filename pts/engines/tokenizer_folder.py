"""The tokenizer side of a model whose weights are elsewhere: in a server, or in vLLM."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pts.engines.text import stop_ids_of
from pts.errors import EngineError
from pts.types import Ids


def load_tokenizer(folder: Path, stop_ids: Iterable[int] | None) -> tuple[Any, frozenset[int], int]:
    """A local folder's tokenizer, its stop ids, and a bound of the ids: the vocabulary's size.

    Stop ids default to those of generation_config.json and the tokenizer's eos; the size is the
    larger of the tokenizer's and config.json's (models pad theirs). Raises EngineError for a folder
    without a tokenizer.
    """
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        raise EngineError(
            f"{folder}: no tokenizer here (tokenizer_config.json); give a local folder that holds "
            "the model's tokenizer files"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot load a tokenizer from {folder}: {error}") from error
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    model.generation_config.eos_token_id = _read(folder / "generation_config.json", "eos_token_id")
    stops = frozenset(stop_ids) if stop_ids else stop_ids_of(model, tokenizer)
    padded = _read(folder / "config.json", "vocab_size")
    return tokenizer, stops, max(len(tokenizer), padded if isinstance(padded, int) else 0)


def decode_completion(tokenizer: Any, ids: Ids, stop_ids: frozenset[int]) -> str:
    """Text of completion ids without stop ids and special tokens."""
    kept = [i for i in ids if i not in stop_ids]
    text: str = tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def _read(file: Path, key: str) -> Any:
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8")).get(key)
    except (ValueError, AttributeError) as error:
        raise EngineError(f"{file}: not a JSON object: {error}") from None
