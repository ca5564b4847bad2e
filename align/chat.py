"""`align chat`: talk to a policy in the terminal, tokens shown as they come."""

from __future__ import annotations

from pathlib import Path

from align.errors import ManifestError
from align.run_folder import check_policies, read_manifest
from pts.errors import ConfigError, printable


def policy_folder(folder: Path) -> Path:
    """The folder itself if it holds a model, else the last policy of the run that it holds.

    Raises:
        ManifestError: neither, or the policy is gone.
    """
    if (folder / "config.json").is_file():
        return folder
    manifest = read_manifest(folder)
    stages = manifest["stages"].values()
    models: list[str] = [stage["model"] for stage in stages if stage.get("model")]
    if not models:
        raise ManifestError(f"{folder}: no stage of this run has made a model yet")
    policy = folder / models[-1]
    if not (policy / "config.json").is_file():
        raise ManifestError(f"{policy}: holds no config.json; restore it, or give another folder")
    check_policies(folder, manifest)
    return policy


def chat_loop(folder: Path, temperature: float, max_new_tokens: int) -> None:
    """Read a line, stream the answer, keep the conversation; an empty line leaves.

    Raises:
        ManifestError: as `policy_folder`.
        ConfigError: the model has no chat template.
    """
    policy = policy_folder(folder)
    print(f"{policy}: loading", flush=True)
    from transformers import TextStreamer

    from pts import load_model_and_tokenizer

    model, tokenizer = load_model_and_tokenizer(policy)
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{policy}: its tokenizer has no chat template, as is usual for a base model; "
            "give the folder of a run, or of a model that has learnt to chat"
        )

    class Escaped(TextStreamer):
        """Model text cannot steer the terminal."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            super().on_finalized_text(printable(text), stream_end)

    streamer = Escaped(tokenizer, skip_prompt=True, skip_special_tokens=True)
    sampling = {"do_sample": True, "temperature": temperature}
    if not temperature:  # many models come with a generation config that samples
        sampling = {"do_sample": False}
    messages: list[dict[str, str]] = []
    while line := _ask():
        messages.append({"role": "user", "content": line})
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(
            **inputs, streamer=streamer, max_new_tokens=max_new_tokens, **sampling
        )
        answer = output[0, inputs["input_ids"].shape[1] :]
        reply = tokenizer.decode(answer, skip_special_tokens=True)
        messages.append({"role": "assistant", "content": reply})


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""
