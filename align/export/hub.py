"""An exported folder on the Hugging Face hub, private unless it is asked otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.errors import ExportError
from align.models.load import HUB_NAME


def check_push(repo: str) -> None:
    """Raise ExportError, before anything is written, where a push cannot work."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if "/" not in repo or not HUB_NAME.fullmatch(repo):
        raise ExportError(f"--push: {repo!r} is no OWNER/NAME of the hub, as in ann/phi-nano")
    if HF_HUB_OFFLINE:
        raise ExportError(
            "--push: HF_HUB_OFFLINE is set, so the hub is out of reach; unset it, or export "
            f"without --push and run later: hf upload {repo} FOLDER"
        )
    if get_token() is None:
        raise ExportError("--push: no token of the hub; run: hf auth login (or set HF_TOKEN)")


def push(folder: Path, repo: str, public: bool = False) -> str:
    """Upload a folder as a model repository, made if it is not there; returns its address.

    Raises:
        ExportError: the hub refuses or does not answer, or the repository is public and `public`
            was not asked for.
    """
    from huggingface_hub import HfApi

    api: Any = HfApi()
    try:
        api.create_repo(repo, repo_type="model", private=not public, exist_ok=True)
        is_private = bool(api.repo_info(repo, repo_type="model").private)
        if is_private or public:
            message = "Upload by align export"
            api.upload_folder(
                folder_path=folder, repo_id=repo, repo_type="model", commit_message=message
            )
    except Exception as error:  # what the network's library raises is its own affair
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ExportError(
            f"--push: the hub does not take {repo} ({reason}); the folder is complete, so try "
            f"again, or run: hf upload {repo} {folder}"
        ) from None
    if not (is_private or public):
        raise ExportError(
            f"--push: {repo} is public already; give --public if that is meant, or another name"
        )
    return f"https://huggingface.co/{repo}"
