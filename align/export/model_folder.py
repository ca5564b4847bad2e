"""The files of a policy as every program reads them: nothing of this machine, no training marks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.errors import ExportError
from pts.files import write_json

COPIED = ("*.safetensors", "*.safetensors.index.json", "*.model", "*.txt", "tokenizer.json",
          "special_tokens_map.json", "added_tokens.json", "vocab.json")  # fmt: skip
"""Files of a model that are taken as they are."""
OF_THIS_MACHINE = ("_name_or_path", "_model_name_or_path", "name_or_path", "is_local",
                   "local_files_only")  # fmt: skip
"""Keys that transformers writes to a configuration and that say where it was loaded from."""
_MARK = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")


def without_marks(template: str) -> str:
    """A chat template whose `{% generation %}` marks, which transformers alone knows, are gone.

    They become a condition that is always true, which keeps what their dashes do to whitespace, so
    that the template writes the same text.
    """
    return _MARK.sub(lambda m: f"{{%{m[1]} {'endif' if m[2] else 'if true'} {m[3]}%}}", template)


def generation_config(held: Mapping[str, Any], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Stop ids of the model and the recipe's sampling policy, as transformers and vLLM read them.

    Args:
        held: the policy's own generation_config.json.
        sampling: the recipe's `sampling`; empty adds nothing.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version")
    found = {name: held[name] for name in names if held.get(name) is not None}
    if not sampling:
        return found
    found["max_new_tokens"] = sampling["max_new_tokens"]
    found["do_sample"] = sampling["temperature"] > 0
    if found["do_sample"]:
        # 0 turns top-k off: without the key, transformers before version 5 takes 50.
        found |= {name: sampling[name] for name in ("temperature", "top_p", "top_k")}
        found |= {"min_p": sampling["min_p"]} if sampling.get("min_p") else {}
    return found


def write_model(source: Path, target: Path, sampling: Mapping[str, Any]) -> None:
    """Copy a policy's weights and tokenizer; write its configurations and chat template.

    Raises:
        ExportError: there are no safetensors, or a configuration is damaged.
    """
    if not any(source.glob("*.safetensors")):
        raise ExportError(f"{source}: holds no .safetensors; restore the policy's weights")
    for path in sorted({path for pattern in COPIED for path in source.glob(pattern)}):
        shutil.copyfile(path, target / path.name)
    for name in ("config.json", "tokenizer_config.json"):
        held = read_object(source / name)
        kept = {key: value for key, value in held.items() if key not in OF_THIS_MACHINE}
        if isinstance(kept.get("chat_template"), str):
            kept["chat_template"] = without_marks(kept["chat_template"])
        if kept:
            write_json(target / name, kept)
    held = read_object(source / "generation_config.json")
    write_json(target / "generation_config.json", generation_config(held, sampling))
    template = chat_template(source)
    if template is not None:
        (target / "chat_template.jinja").write_text(without_marks(template), encoding="utf-8")


def chat_template(folder: Path) -> str | None:
    """The chat template of a model's folder; None where it has none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    held = read_object(folder / "tokenizer_config.json").get("chat_template")
    return held if isinstance(held, str) else None


def stop_ids(folder: Path) -> tuple[int, ...]:
    """Ids at which generation ends, the end of a turn first.

    Raises:
        ExportError: there is none.
    """
    held = read_object(folder / "generation_config.json").get("eos_token_id")
    found = held if isinstance(held, list) else [held]
    ids = tuple(i for i in found if type(i) is int)
    if not ids:
        raise ExportError(
            f"{folder}/generation_config.json: names no eos_token_id; add the id of the token that "
            "ends an answer"
        )
    return ids


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty without the file. Raises ExportError for other content."""
    if not path.is_file():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportError(f"{path}: not JSON ({error}); restore it") from None
    if not isinstance(held, dict):
        raise ExportError(f"{path}: not a JSON object; restore it")
    return held
