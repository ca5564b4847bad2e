"""Between problems, token ids and text, for engines that hold a Hugging Face tokenizer."""

from __future__ import annotations

from typing import Any

from pts.errors import EngineError
from pts.types import Ids, Problem


def encode_problem(tokenizer: Any, problem: Problem, chat_template: str | None = None) -> Ids:
    """The prompt's ids, the assistant's turn opened.

    Messages go through the chat template (`chat_template`, or else the tokenizer's own), which
    alone decides on a bos token. A plain text is encoded as it stands, without special tokens; a
    bos goes in front exactly when the tokenizer puts one before an empty text (Gemma does).
    Raises EngineError when messages meet no template, or when nothing is left to encode.
    """
    if isinstance(problem.prompt, str):
        ids = _with_bos(tokenizer, tokenizer(problem.prompt, add_special_tokens=False)["input_ids"])
    else:
        if not (chat_template or tokenizer.chat_template):
            raise EngineError(
                f"problem {problem.id!r} is a chat, but the tokenizer has no chat template; "
                "pass chat_template or use a text prompt"
            )
        turns = [{"role": m.role, "content": m.content} for m in problem.prompt]
        ids = tokenizer.apply_chat_template(
            turns,
            chat_template=chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
    if not ids:
        raise EngineError(f"problem {problem.id!r} encodes to no tokens; give it a prompt")
    return tuple(int(i) for i in ids)


def _with_bos(tokenizer: Any, ids: list[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    wanted = bos is not None and tokenizer("", add_special_tokens=True)["input_ids"][:1] == [bos]
    return [bos, *ids] if wanted else ids


def stop_ids_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """Eos ids of the generation config and the tokenizer. Raises EngineError when there is none."""
    config = getattr(model, "generation_config", None)
    found = getattr(config, "eos_token_id", None)
    several = list(found) if isinstance(found, list | tuple) else [found]
    stops = frozenset(int(i) for i in [*several, tokenizer.eos_token_id] if i is not None)
    if not stops:
        raise EngineError(
            "neither the generation config nor the tokenizer names an eos token; pass stop_ids"
        )
    return stops


def texts_of_tokens(tokenizer: Any, ids: Ids) -> list[str]:
    """Text of each token by itself, special tokens shown.

    A token that holds only part of a UTF-8 character is shown by its bytes, as \\xNN.
    """
    names = tokenizer.convert_ids_to_tokens(list(ids))
    return [_piece(tokenizer, i, name) for i, name in zip(ids, names, strict=True)]


def _piece(tokenizer: Any, token: int, name: str | None) -> str:
    if name is not None and "\u2581" in name:
        return name.replace("\u2581", " ")
    text: str = tokenizer.decode(
        [token], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    if "\ufffd" not in text or name is None:
        return text
    table = _byte_of_char()
    if any(c not in table for c in name):
        return name
    raw = bytes(table[c] for c in name)
    return raw.decode("utf-8", errors="backslashreplace")


def _byte_of_char() -> dict[str, int]:
    """The printable stand-ins of byte-level BPE, inverted (Radford et al. 2019, GPT-2)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    table = {chr(b): b for b in shown}
    table.update({chr(256 + i): b for i, b in enumerate(hidden)})
    return table
