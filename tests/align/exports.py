"""A run folder whose policies are tiny random models, for tests of exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.context import StageResult
from align.pipeline.recipe import load_recipe
from align.run_folder import Manifest
from tests.align import tiny
from tests.align.evaluations import store

METRICS: dict[str, dict[str, Any]] = {
    "sft": {"rows": 3000, "final_loss": 0.25},
    "pts": {"pairs": 212, "truncated_share": 0.001, "sources": {"maths": {"kept": 30}}},
}
STAGES = ("sft", "pts", "token_dpo", "full_dpo")
RIGHT = {"base": 2, "sft": 24, "token_dpo": 32, "full_dpo": 34}
"""Greedy answers that are right, of 40."""
SECRETS = {
    "chats": "/home/ann/private/chats.jsonl",
    "judge": "http://ann:hunter2@judge:8000/v1",
    "command": "/home/ann/venv/bin/vllm serve --api-key sk-0123456789abcdef0123",
}


def write_policy(folder: Path, seed: int = 0, tied: bool = False) -> Path:
    """A model folder as a stage leaves it: the chat template, two stop ids, no sampling policy."""
    made = tiny.tokenizer()
    made.eos_token = "<|im_end|>"
    model = tiny.model(len(made), seed, tied)
    ends = [made.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def write_run(folder: Path, evaluated: bool = True) -> Path:
    """A finished run of SFT, PTS and both DPO stages."""
    recipe = load_recipe("phi-nano", [f"stages=[{','.join(STAGES)}]"])
    with Manifest.open(folder, recipe) as manifest:
        manifest.data["recipe"]["private"] = SECRETS
        for seed, name in enumerate(STAGES):
            outputs: tuple[Path, ...] = ()
            if name != "pts":
                outputs = (write_policy(folder / name / "model", seed),)
            model = outputs[0] if outputs else None
            manifest.add(name, {}, StageResult(model, METRICS.get(name, {}), outputs), 1.0)
        for shift, (name, right) in enumerate(RIGHT.items() if evaluated else ()):
            greedy = [int((k - 2 * shift) % 40 < right) for k in range(40)]
            store(folder, name, greedy, [6 * g + 1 for g in greedy])
            manifest.add(f"eval/{name}", {}, StageResult(None), 1.0)
    return folder
