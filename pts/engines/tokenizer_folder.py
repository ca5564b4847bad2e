"""The tokenizer side of a model whose weights are elsewhere: in a server, or in vLLM."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pts.engines.text import encode_problem, stop_ids_of, texts_of_tokens
from pts.errors import EngineError
from pts.types import Ids, Problem


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


class TokenizerSide:
    """What an engine does with its tokenizer: all of the protocol but `score` and `sample`."""

    tokenizer: Any
    chat_template: str | None
    stop_ids: frozenset[int]

    def encode(self, problem: Problem) -> Ids:
        """See `pts.engines.text.encode_problem`."""
        return encode_problem(self.tokenizer, problem, self.chat_template)

    def encode_text(self, text: str) -> Ids:
        """Ids of a completion given as text; names of special tokens in it become those tokens."""
        return tuple(int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Ids) -> str:
        """Text of completion ids without stop ids and special tokens."""
        kept = [i for i in ids if i not in self.stop_ids]
        text: str = self.tokenizer.decode(
            kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def token_texts(self, ids: Ids) -> list[str]:
        """Text of each token by itself; bytes of a broken character as \\xNN."""
        return texts_of_tokens(self.tokenizer, ids)


def _read(file: Path, key: str) -> Any:
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8")).get(key)
    except (ValueError, AttributeError) as error:
        raise EngineError(f"{file}: not a JSON object: {error}") from None
