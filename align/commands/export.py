"""`align export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from align.commands.interruption import interruptible
from align.errors import ExportError
from pts.cli.output import AsJson, show


def export(
    run_folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    stage: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Stage whose policy is meant; the last one if not given."),
    ] = None,
    gguf: Annotated[bool, typer.Option("--gguf", help="A GGUF file for llama.cpp, too.")] = False,
    quantize: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Weights of the GGUF file: f32, f16, bf16, q8_0, or one of llama.cpp's."),
    ] = None,
    ollama: Annotated[
        bool, typer.Option("--ollama", help="A GGUF file and a Modelfile, too.")
    ] = False,
    push: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="OWNER/NAME on the Hugging Face hub to upload it to; private."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Push to a public repository.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a policy of a run as a folder to take away; the same command again changes nothing."""
    from align.export.hub import check_push
    from align.export.hub import push as push_folder
    from align.export.run import OWN, ExportConfig
    from align.export.run import export as write

    kind = quantize.lower() if quantize else OWN if gguf or ollama else None
    if public and push is None:
        raise ExportError("--public: nothing is pushed; give --push OWNER/NAME, or leave it out")
    if push is not None:
        check_push(push)
    with interruptible():
        new = write(run_folder, output, ExportConfig(stage, kind, ollama))
    sizes = {str(path): path.stat().st_size for path in sorted(output.iterdir())}
    lines = [f"{path}: {size:,} bytes" for path, size in sizes.items()]
    if not new:
        lines.append("Nothing to do: this export was there already.")
    pushed = push_folder(output, push, public) if push is not None else None
    if pushed:
        lines.append(f"Pushed: {pushed}")
    show({"files": sizes, "new": new, "pushed": pushed}, "\n".join(lines), as_json)
