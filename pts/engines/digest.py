"""One name for the model in a folder, whichever engine samples it: a digest of its files.

Weights count by tensor: name, type, shape and bytes of each, in order of names. A checkpoint keeps
its digest when it is split into other files, and nothing is loaded: the files are read once, as
fast as SHA-256 goes. With them count the tokenizer and what the configuration says of the model,
without the keys that only tell who wrote it. How the model is run (its type in memory, the device,
the engine, a chat template) is no part of it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import IO, Any

from pts.engines.text import json_value
from pts.errors import EngineError

WRITTEN_BY = frozenset(
    {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
)
"""Keys of config.json that do not tell one model from another; types stand with the tensors."""
OF_ADAPTER = frozenset(
    {"base_model_name_or_path", "inference_mode", "revision", "peft_version", "task_type"}
)
"""The same of adapter_config.json; the base model counts by its own digest."""
TOKENIZER = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"),
    "added_tokens.json",
)
PICKLED = ("*.bin", "*.gguf")
"""Weights whose tensors are not read here: they count by file."""
CHUNK = 2**20


def model_digest(folder: str | Path, base: str | Path | None = None) -> str:
    """SHA-256, in hexadecimal, of the model in a folder, or of one file in GGUF.

    A folder may also be the name of a model in the hub's cache. Of a LoRA adapter the digest is
    that of its own files and of its base model: `base`, or the one that it names.

    Raises:
        EngineError: there are no weights, or they are cut off or damaged.
    """
    path, digest = local_files(folder), hashlib.sha256()
    if path.is_file():
        digest.update(f"file {_file_digest(path)}\n".encode())
        return digest.hexdigest()
    for line in _weights(path):
        digest.update(f"{line}\n".encode())
    for name, known in (("config.json", WRITTEN_BY), ("adapter_config.json", OF_ADAPTER)):
        if (path / name).is_file():
            digest.update(f"{name} {_settings(path / name, known)}\n".encode())
    for name in TOKENIZER:
        if (path / name).is_file():
            digest.update(f"{name} {_file_digest(path / name)}\n".encode())
    if base is not None or (path / "adapter_config.json").is_file():
        digest.update(f"base {model_digest(base or base_of(path))}\n".encode())
    return digest.hexdigest()


def local_files(path: str | Path) -> Path:
    """The path itself if it is here, else the folder of the hub's cache that holds that model."""
    if Path(path).exists():
        return Path(path)
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(str(path), "config.json")
    except ValueError:  # no name that the hub could know
        found = None
    return Path(found).parent if isinstance(found, str) else Path(path)


def base_of(adapter: Path) -> Path:
    """The base model that an adapter directory names; a relative one is looked up beside it.

    Raises:
        EngineError: it names none.
    """
    base = json_value(adapter / "adapter_config.json", "base_model_name_or_path")
    if not base:
        raise EngineError(f"{adapter}/adapter_config.json names no base model; pass it as path")
    if not isinstance(base, str):
        raise EngineError(
            f"{adapter}/adapter_config.json: base_model_name_or_path is {str(base)[:40]}; give the "
            "folder of the base model as text"
        )
    beside = adapter.parent / base
    return beside if not Path(base).exists() and beside.exists() else Path(base)


def _weights(folder: Path) -> list[str]:
    """A line for each tensor, in order of names; for each file where tensors cannot be read."""
    tensors: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= _tensors(file)
    lines = [f"{name} {tensors[name]}" for name in sorted(tensors)]
    if not lines:
        files = sorted(file for pattern in PICKLED for file in folder.glob(pattern))
        lines = [f"{file.name} {_file_digest(file)}" for file in files]
    if not lines:
        raise EngineError(f"{folder}: no weights here (*.safetensors); give a local model folder")
    return lines


def _tensors(file: Path) -> dict[str, str]:
    """Type, shape and digest of each tensor of a safetensors file.

    Eight bytes hold the length of a JSON header, which tells where the bytes of a tensor stand:
    https://github.com/huggingface/safetensors#format
    """
    with file.open("rb") as stream:
        try:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            return {
                name: f"{told['dtype']} {told['shape']} {_part(stream, 8 + length, told)}"
                for name, told in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise EngineError(
                f"{file}: no sound safetensors file ({error}); fetch or copy it again"
            ) from None


def _part(stream: IO[bytes], start: int, told: dict[str, Any]) -> str:
    """Digest of the bytes of one tensor."""
    first, end = told["data_offsets"]
    digest, left = hashlib.sha256(), end - first
    stream.seek(start + first)
    while left:
        chunk = stream.read(min(left, CHUNK))
        if not chunk:
            raise ValueError("it is cut off")
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest()


def _settings(file: Path, left_out: frozenset[str]) -> str:
    """The settings of a JSON file that count, in order of keys."""
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EngineError(f"{file}: not JSON ({error}); restore it") from None
    kept = {k: v for k, v in held.items() if k not in left_out} if isinstance(held, dict) else held
    return json.dumps(kept, sort_keys=True)


def _file_digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
