"""An Ollama Modelfile: the GGUF file, the chat template in Go's language, stops and sampling.

Ollama does not read the jinja of a GGUF file. `chat_templates/` holds each of the shipped templates
a second time as NAME.gotmpl; a model's template is recognised by its text, and one that is not
among them is refused: a template that is nearly right asks the model what it has not learnt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from align.errors import ExportError, RecipeError
from align.export.model_folder import chat_template, read_object, stop_ids, without_marks
from align.models.load import FROM_TRL, published_text, template_text
from align.settings import data_folder

SAME_WHEN_PUBLISHED = ("llama3", "qwen2.5", "gemma", "gemma3")
"""Templates of TRL that write what the published ones write (qwen3's keeps all thoughts)."""


def go_template(name: str) -> str:
    """The Go text of a shipped template. It writes a chat whose last message is the user's with an
    opened turn, and one whose last message is the assistant's without its end, to be continued."""
    path = data_folder("chat_templates") / f"{name}.gotmpl"
    return path.read_text(encoding="utf-8").removesuffix("\n")


def template_name(jinja: str) -> str | None:
    """The name of a shipped template with this text, generation marks aside; None for another."""
    files = data_folder("chat_templates").glob("*.gotmpl")
    for name in sorted(path.stem for path in files):
        if without_marks(jinja).strip() in {without_marks(text).strip() for text in _texts(name)}:
            return name
    return None


def _texts(name: str) -> Iterator[str]:
    try:
        yield template_text(name)
        if name in FROM_TRL and name in SAME_WHEN_PUBLISHED:
            yield published_text(name)
    except RecipeError:  # the installed TRL does not ship it
        return


def modelfile(folder: Path, gguf_file: str, sampling: Mapping[str, Any]) -> str:
    """The text of a Modelfile.

    Args:
        folder: the model's, for its template and its stop tokens.
        gguf_file: name of the GGUF file beside the Modelfile.
        sampling: the recipe's `sampling`.

    Raises:
        ExportError: the chat template is none, or none that is known in Go's language.
    """
    jinja = chat_template(folder)
    name = template_name(jinja) if jinja is not None else None
    if name is None:
        known = sorted(path.stem for path in data_folder("chat_templates").glob("*.gotmpl"))
        raise ExportError(
            f"{folder}: its chat template is none of those that are known in Ollama's language "
            f"({', '.join(known)}); export without --ollama and write TEMPLATE by hand"
        )
    tokens = _tokens(folder)
    text = go_template(name).replace("</s>", tokens[stop_ids(folder)[0]])
    stops = [tokens[i] for i in stop_ids(folder) if i in tokens]
    lines = [
        f"FROM ./{gguf_file}",
        f'TEMPLATE """{text}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        *(f"PARAMETER {key} {value}" for key, value in _sampling(sampling)),
    ]
    return "\n".join(lines) + "\n"


def _tokens(folder: Path) -> dict[int, str]:
    held = read_object(folder / "tokenizer.json")
    found = {i: token for token, i in held.get("model", {}).get("vocab", {}).items()}
    return found | {added["id"]: added["content"] for added in held.get("added_tokens", ())}


def _sampling(sampling: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All that Ollama would else set by its own defaults (temperature 0.8, top-k 40, top-p 0.9)."""
    if not sampling:
        return
    yield from ((key, sampling[key]) for key in ("temperature", "top_k", "top_p", "min_p"))
    yield "repeat_penalty", 1.0
    yield "num_predict", sampling["max_new_tokens"]
