"""A tokenizer.json in the terms of llama.cpp: byte-level BPE under a known pre-tokenizer.

llama.cpp does not read the pre-tokenizer of a file: it knows some by name (`tokenizer.ggml.pre`),
each with regular expressions of its own. A tokenizer that splits text in another way than all of
them would be given other ids without a word, so it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.errors import ExportError
from align.export.model_folder import chat_template, read_object, stop_ids, without_marks

CONVERTER = "convert it with llama.cpp's convert_hf_to_gguf.py, which knows more"
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How tiktoken's cl100k, Llama 3 and phi-4 split text."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Types of tokens in a GGUF file."""


@dataclass(frozen=True, slots=True)
class GGUFTokenizer:
    """What a GGUF file holds of a tokenizer."""

    pre: str
    """A pre-tokenizer's name in llama.cpp."""
    tokens: tuple[str, ...]
    """By id, as many as the model has rows of embeddings."""
    types: tuple[int, ...]
    merges: tuple[str, ...]
    """The two parts with a blank between them, first merge first."""
    stops: tuple[int, ...]
    """Ids that end an answer, the end of a turn first."""
    special: Mapping[str, int]
    """Ids by their purpose: bos, unk, pad; those that there are."""
    add_bos: bool
    """Whether llama.cpp puts bos before a prompt: where the chat template does (a prompt that has
    it already gets no second one), or, without a template, where the tokenizer does."""
    chat_template: str | None


def read_tokenizer(folder: Path, rows: int) -> GGUFTokenizer:
    """Read a model folder's tokenizer.

    Args:
        rows: embeddings that the model has; ids without a token are filled up.

    Raises:
        ExportError: llama.cpp would cut text in another way, or it is damaged.
    """
    file = folder / "tokenizer.json"
    held = read_object(file)
    if not held:
        raise ExportError(f"{file}: not found; a GGUF file is made of a fast tokenizer")
    pre = pre_tokenizer(held, file)
    model = held["model"]
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [UNUSED] * rows
    marked = [(token, index, NORMAL) for token, index in model["vocab"].items()]
    for added in held.get("added_tokens", ()):
        if added.get("lstrip") or added.get("rstrip") or added.get("single_word"):
            raise ExportError(
                f"{file}: the added token {added['content']!r} takes in blanks beside it, which "
                "llama.cpp does not; set its lstrip, rstrip and single_word to false"
            )
        kind = CONTROL if added.get("special") else USER_DEFINED
        marked.append((added["content"], added["id"], kind))
    for token, index, kind in marked:
        if not 0 <= index < rows:
            raise ExportError(
                f"{file}: token {token!r} has the id {index}, but the model has {rows} embeddings"
            )
        tokens[index], types[index] = token, kind
    merges = (m if isinstance(m, str) else " ".join(m) for m in model["merges"])
    names = _special_names(folder)
    ids = {token: index for token, index, _ in marked}
    special = {use: ids[name] for use, name in names.items() if name in ids}
    template = chat_template(folder)
    return GGUFTokenizer(
        pre, tuple(tokens), tuple(types), tuple(merges), stop_ids(folder), special,
        _adds_bos(file, template, names.get("bos")),
        None if template is None else without_marks(template),
    )  # fmt: skip


def pre_tokenizer(held: Mapping[str, Any], file: Path) -> str:
    """llama.cpp's name for the way in which a tokenizer.json splits text.

    `gpt-2` is GPT-2's pattern, `smollm` the same with every digit alone, `llama-bpe` and `dbrx` are
    cl100k's with and without taking whole words as tokens before any merge.

    Raises:
        ExportError: it is none of these.
    """
    model = held.get("model") or {}
    plain = not held.get("normalizer") and not model.get("byte_fallback")
    if model.get("type") == "BPE" and plain and not model.get("dropout"):
        whole = bool(model.get("ignore_merges"))
        steps = _steps(held.get("pre_tokenizer") or {})
        if steps == ["bytes by words"] and not whole:
            return "gpt-2"
        if steps == ["digits", "bytes by words"] and not whole:
            return "smollm"
        if steps == ["cl100k", "bytes"]:
            return "llama-bpe" if whole else "dbrx"
    raise ExportError(
        f"{file}: its {model.get('type')} tokenizer splits text in a way that is not among "
        f"llama.cpp's pre-tokenizers gpt-2, smollm, llama-bpe and dbrx; {CONVERTER}"
    )


def _steps(pre: Mapping[str, Any]) -> list[str]:
    found = pre.get("pretokenizers", [pre])
    return [_step(step) for step in found]


def _step(step: Mapping[str, Any]) -> str:
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return "digits"
    if step.get("type") == "ByteLevel" and not step.get("add_prefix_space"):
        return "bytes by words" if step.get("use_regex", True) else "bytes"
    if step.get("type") == "Split" and step.get("pattern", {}).get("Regex") == CL100K:
        # The pattern matches all of a text, so that its matches are all there is either way.
        how = (step.get("behavior"), bool(step.get("invert")))
        if how in (("Isolated", False), ("Removed", True)):
            return "cl100k"
    return "other"


def _special_names(folder: Path) -> dict[str, str]:
    held = read_object(folder / "tokenizer_config.json")
    named = {use: held.get(f"{use}_token") for use in ("bos", "unk", "pad")}
    texts = {use: t.get("content") if isinstance(t, dict) else t for use, t in named.items()}
    return {use: text for use, text in texts.items() if isinstance(text, str)}


def _adds_bos(file: Path, template: str | None, bos: str | None) -> bool:
    if bos is None:
        return False
    if template is not None:
        return "bos_token" in template
    from tokenizers import Tokenizer

    return bool(Tokenizer.from_file(str(file)).encode("a").tokens[0] == bos)
