"""Between problems, token ids and text, for engines that hold a Hugging Face tokenizer.

`TokenizerEngine` is what such engines have in common; `load_tokenizer` loads the tokenizer of a
model whose weights are elsewhere: in a server, or in vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pts.engines.base import SampleRequest
from pts.errors import EngineError, PromptError
from pts.types import Ids, Message, Problem

TRIED = "1"
"""Encoded to see that a loaded tokenizer works."""


def encode_problem(tokenizer: Any, problem: Problem, chat_template: str | None = None) -> Ids:
    """The prompt's ids, the assistant's turn opened.

    Messages go through the chat template (`chat_template`, or else the tokenizer's own), which
    alone decides on a bos token. A plain text is encoded as it stands, without special tokens; a
    bos goes in front exactly when the tokenizer puts one before an empty text (Gemma does).
    Raises PromptError when messages end with the assistant's turn or hold a special token as text,
    and EngineError when they meet no template, or when nothing is left to encode.
    """
    if isinstance(problem.prompt, str):
        ids = tokenizer(problem.prompt, add_special_tokens=False)["input_ids"]
        bos = tokenizer.bos_token_id
        if bos is not None and tokenizer("", add_special_tokens=True)["input_ids"][:1] == [bos]:
            ids = [bos, *ids]
    else:
        if not (chat_template or tokenizer.chat_template):
            raise EngineError(
                f"problem {problem.id!r} is a chat, but the tokenizer has no chat template; "
                "put a chat_template.jinja beside it, pass chat_template, or use a text prompt"
            )
        faults = special_token_faults(tokenizer, problem.prompt)
        if problem.prompt and problem.prompt[-1].role == "assistant":
            faults.append("the prompt ends with the assistant's turn, which is sampled")
        if faults:
            raise PromptError(f"problem {problem.id!r}: {faults[0]}; take it out")
        turns = [{"role": m.role, "content": m.content} for m in problem.prompt]
        try:
            ids = tokenizer.apply_chat_template(
                turns,
                chat_template=chat_template,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
        except Exception as error:  # what a template raises: it is broken, or refuses a role
            raise EngineError(
                f"problem {problem.id!r}: the chat template fails ({type(error).__name__}: "
                f"{error}); roles here: {', '.join(m.role for m in problem.prompt)}"
            ) from error
    if not ids:
        raise EngineError(f"problem {problem.id!r} encodes to no tokens; give it a prompt")
    return tuple(int(i) for i in ids)


def special_token_faults(tokenizer: Any, messages: Sequence[Message]) -> list[str]:
    """A fault for each special token that a text holds: it would be encoded as that token."""
    specials = sorted(set(tokenizer.all_special_tokens))
    return [
        f"the {message.role}'s text holds the special token {token}"
        for message in messages
        for token in specials
        if token in message.content
    ]


def stop_ids_of(model: Any, tokenizer: Any) -> frozenset[int]:
    """Eos ids of the generation config and the tokenizer. Raises EngineError when there is none."""
    config = getattr(model, "generation_config", None)
    found = getattr(config, "eos_token_id", None)
    several = list(found) if isinstance(found, list | tuple) else [found]
    strange = [i for i in several if i is not None and type(i) is not int]
    if strange:
        raise EngineError(
            f"generation config: eos_token_id holds {str(strange[0])[:40]!r}, which is no token "
            "id; mend generation_config.json, or pass stop_ids"
        )
    stops = frozenset(int(i) for i in [*several, tokenizer.eos_token_id] if i is not None)
    if not stops:
        raise EngineError(
            "neither the generation config nor the tokenizer names an eos token; pass stop_ids"
        )
    return stops


def _piece(tokenizer: Any, token: int, name: str | None) -> str:
    if name is not None and "\u2581" in name:
        return name.replace("\u2581", " ")
    text: str = tokenizer.decode(
        [token], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    if "\ufffd" not in text or name is None:
        return text
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    # The printable stand-ins of byte-level BPE, inverted (Radford et al. 2019, GPT-2).
    stand_ins = bytes_to_unicode()  # type: ignore[no-untyped-call]
    table = {char: byte for byte, char in stand_ins.items()}
    if any(c not in table for c in name):
        return name
    raw = bytes(table[c] for c in name)
    return raw.decode("utf-8", errors="backslashreplace")


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
        tokenizer(TRIED, add_special_tokens=False)
    except Exception as error:  # of transformers, tokenizers and json
        raise EngineError(f"cannot load a tokenizer from {folder}: {error}") from error
    eos = json_value(folder / "generation_config.json", "eos_token_id")
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=eos))
    stops = frozenset(stop_ids) if stop_ids else stop_ids_of(model, tokenizer)
    padded = json_value(folder / "config.json", "vocab_size")
    return tokenizer, stops, max(len(tokenizer), padded if isinstance(padded, int) else 0)


def json_value(file: Path, key: str) -> Any:
    """A value of a JSON object in a file, None without it. Raises EngineError for other content."""
    if not file.is_file():
        return None
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EngineError(f"{file}: not JSON ({error}); restore it") from None
    if not isinstance(held, dict):
        raise EngineError(f"{file}: not a JSON object, but {type(held).__name__}; restore it")
    return held.get(key)


class TokenizerEngine:
    """What engines with a tokenizer have in common: all of the protocol but `score` and `sample`,
    and what both of these refuse.
    """

    tokenizer: Any
    chat_template: str | None
    stop_ids: frozenset[int]

    max_model_len: int | None
    """Tokens that a prompt and its completion may have together, None without a bound."""
    _too_long: str
    """For messages: what bounds the length, and what to do about it."""

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
        """Text of each token by itself, special tokens shown.

        A token that holds only part of a UTF-8 character is shown by its bytes, as \\xNN.
        """
        names = self.tokenizer.convert_ids_to_tokens(list(ids))
        return [_piece(self.tokenizer, i, name) for i, name in zip(ids, names, strict=True)]

    def _path(self, prompt: Ids, completion: Ids) -> Ids:
        """The ids that are scored. Raises EngineError for an empty prompt or too many of them."""
        if not prompt:
            raise EngineError("score needs at least one prompt token before the completion")
        ids = prompt + completion
        self._check_length(len(ids), f"a path of {len(ids)} tokens")
        return ids

    def _scored(self, pair: tuple[Ids, Ids]) -> tuple[Ids, int]:
        """The ids of a prompt and a completion that a request for one more token has room for, and
        where the completion begins. The prompt loses its beginning; EngineError if that is all.
        """
        prompt, completion = pair
        if self.max_model_len is not None:
            self._check_length(len(completion) + 2, f"a completion of {len(completion)} tokens")
            prompt = prompt[-(self.max_model_len - len(completion) - 1) :]
        return self._path(prompt, completion), len(prompt)

    def _check_request(self, request: SampleRequest) -> None:
        """Raise EngineError for a request whose rollouts could outgrow `max_model_len`.

        An empty prefix and a negative limit are refused too.
        """
        tokens = len(request.prompt) + len(request.prefix)
        total = tokens + request.max_tokens
        self._check_length(total, f"request {request.key}: a rollout of up to {total} tokens")
        if not tokens or request.max_tokens < 0:
            raise EngineError(
                f"request {request.key}: {tokens} prefix tokens and limit {request.max_tokens}; "
                "a rollout continues at least one token and its limit is not negative"
            )

    def _check_length(self, length: int, what: str) -> None:
        if self.max_model_len is not None and length > self.max_model_len:
            raise EngineError(f"{what} exceeds {self._too_long}")
