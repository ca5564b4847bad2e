"""Types of weights that llama.cpp alone can make, by its own program."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align.errors import ExportError
from align.export.gguf_file import TYPES, own_type, write_gguf

PROGRAM = "llama-quantize"
_KNOWN = re.compile(r"i?q\d(_[a-z0-9]{1,3}){1,2}")


def check_type(kind: str) -> None:
    """Raise ExportError for a type of weights that neither this package nor llama.cpp makes here,
    with the command that would."""
    if kind in TYPES:
        return
    if not _KNOWN.fullmatch(kind):
        raise ExportError(
            f"--quantize: {kind!r} is no type of weights; written here: {', '.join(TYPES)}; by "
            f"{PROGRAM}, where it is installed: q4_k_m, q5_k_m, q6_k and others"
        )
    if shutil.which(PROGRAM) is None:
        raise ExportError(
            f"--quantize: {kind!r} needs llama.cpp's program {PROGRAM}, which is not on the path; "
            f"install it, or export with --gguf and run elsewhere: {PROGRAM} "
            f"MODEL.gguf MODEL-{kind}.gguf {kind.upper()}"
        )


def write_quantized(
    folder: Path, file: Path, kind: str, name: str, sampling: Mapping[str, Any]
) -> None:
    """Write a model's folder as a GGUF file of any type that `check_type` lets through.

    Raises:
        ExportError: as `write_gguf`, or llama.cpp's program fails.
        MissingExtra: as `write_gguf`.
    """
    if kind in TYPES:
        write_gguf(folder, file, kind, name, sampling)
        return
    whole = file.with_name(f".{file.name}.whole")
    try:
        write_gguf(folder, whole, own_type(folder), name, sampling)
        command = [PROGRAM, str(whole), str(file), kind.upper()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            tail = " / ".join(done.stderr.strip().splitlines()[-2:])
            raise ExportError(f"--quantize: {PROGRAM} ended with {done.returncode}: {tail}")
    finally:
        whole.unlink(missing_ok=True)
