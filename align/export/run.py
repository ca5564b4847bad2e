"""`align export`: one folder, written whole or not at all.

    export(Path("runs/phi-nano-seed0"), Path("exported"), ExportConfig(gguf="f32", ollama=True))

The folder is made under another name beside its place and renamed when it is complete. export.json
in it tells what was asked for and the digest of every file: the same command again does nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from align.errors import ExportError
from align.export.card import model_card
from align.export.gguf_file import own_type
from align.export.model_folder import read_object, write_model
from align.export.ollama import modelfile
from align.export.policy import Policy, find_policy
from align.export.quantize import check_type, write_quantized
from pts.files import folder_fault, write_json

RECORD = "export.json"
FORMAT = 1
"""Of export.json."""
OWN = "own"
"""As type of a GGUF file: that of the model's weights."""


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """What is exported."""

    stage: str | None = None
    """Stage whose policy is meant; None: the last one."""
    gguf: str | None = None
    """Type of the weights in a GGUF file beside the safetensors (`OWN`, f32, f16, bf16, q8_0, or
    one of llama.cpp's); None writes none."""
    ollama: bool = False
    """Write a Modelfile, too."""


def export(run: Path, output: Path, config: ExportConfig) -> bool:
    """Write a policy of a run as a folder; False where it is there already.

    Raises:
        ManifestError: the folder holds no run, or the policy was changed.
        ExportError: the policy cannot be exported so, or the place holds something else.
        MissingExtra: a GGUF file is asked for without the package gguf.
    """
    policy = find_policy(run, config.stage)
    kind = own_type(policy.folder) if config.gguf == OWN else config.gguf
    if kind is not None:
        check_type(kind)
    asked = {
        **asdict(config), "stage": policy.stage, "gguf": kind, "policy": policy.digest,
        "run": policy.name,
    }  # fmt: skip
    output = output.absolute()
    if _is_there(output, asked):
        return False
    with _draft(output) as draft:
        _write(policy, draft, kind, config.ollama)
        files = {path.name: _digest(path) for path in sorted(draft.iterdir())}
        write_json(draft / RECORD, {"format": FORMAT, "asked": asked, "files": files})
    return True


def _write(policy: Policy, draft: Path, kind: str | None, ollama: bool) -> None:
    sampling = policy.recipe.get("sampling", {})
    write_model(policy.folder, draft, sampling)
    contents = []
    if kind is not None:
        file = draft / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', policy.name)}-{kind}.gguf"
        write_quantized(policy.folder, file, kind, policy.name, sampling)
        contents.append(f"`{file.name}` is the same model for llama.cpp ({kind}).")
        if ollama:
            text = modelfile(policy.folder, file.name, sampling)
            (draft / "Modelfile").write_text(text, encoding="utf-8")
            contents.append("`ollama create NAME -f Modelfile` takes it into Ollama.")
    weights = (*draft.glob("*.safetensors"), *draft.glob("*.gguf"))
    digests = {path.name: _digest(path) for path in sorted(weights)}
    card = model_card(policy, digests, " ".join(contents))
    (draft / "README.md").write_text(card, encoding="utf-8")


def _is_there(output: Path, asked: dict[str, Any]) -> bool:
    """Whether a folder holds this export already; raises ExportError if it holds something else."""
    if fault := folder_fault(output):
        raise ExportError(f"--output: {fault}")
    if not output.exists() or not any(output.iterdir()):
        return False
    record = read_object(output / RECORD)
    if record.get("format") != FORMAT:
        names = sorted(path.name for path in output.iterdir())
        more = ", …" if len(names) > 3 else ""
        raise ExportError(
            f"--output: {output} holds {', '.join(names[:3])}{more} and no {RECORD} of this "
            "command; give a new or an empty folder"
        )
    held = record.get("asked", {})
    other = [f"{key} {held.get(key)!r}, not {asked[key]!r}" for key in asked
             if held.get(key) != asked[key]]  # fmt: skip
    if other:
        raise ExportError(
            f"--output: {output} holds another export ({'; '.join(other)}); give another folder"
        )
    for name, digest in record.get("files", {}).items():
        if not (output / name).is_file() or _digest(output / name) != digest:
            raise ExportError(
                f"{output / name}: is gone or was changed since it was exported; delete the "
                "folder, or give another --output"
            )
    return True


@contextmanager
def _draft(output: Path) -> Iterator[Path]:
    """An empty folder that becomes `output` when the block ends without error.

    What an export left that was killed is deleted; one that is still under way is told.
    """
    draft = output.with_name(f".{output.name}.partial")
    draft.mkdir(parents=True, exist_ok=True)
    handle = os.open(draft, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportError(
                f"--output: another export to {output} is under way; wait for it"
            ) from None
        for path in draft.iterdir():
            path.unlink()
        try:
            yield draft
            os.replace(draft, output)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
