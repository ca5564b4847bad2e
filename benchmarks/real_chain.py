"""phi-nano's chain in miniature through real vLLM: served, and in the process of its stages.

    python benchmarks/real_chain.py --vllm .venv-servers/vllm/bin/python

All stages run with tiny numbers, once with transformers and once with each way of vLLM. The SFT
policy, for which nothing is sampled, must have the same weights to the byte; pairs must carry the
digest of the policy that was searched; the SFT policy must be as good through either engine, within
sampling error. The exit status is 1 if anything was found. `make test-servers` runs it after the
conformance suites. In process, the environment of vLLM needs what align needs to train (trl, peft,
datasets, accelerate).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from align.pipeline.recipe import load_recipe
from align.pipeline.run import run
from align.run_folder import read_manifest
from pts.data.pairs import read_pairs
from pts.engines.digest import model_digest

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = 512
SMALL = [
    *("rejection_sft.num_problems=32", "rejection_sft.samples=4", "pts.num_problems=24"),
    *("pts.search.confirm_rollouts=32", "pts.search.fdr=0.5"),
    *("token_dpo.max_steps=2", "full_dpo.num_problems=24", "full_dpo.max_steps=2"),
    *("evaluate.problems=60", "evaluate.samples=4"),
    'evaluate.skip=["base", "rejection_sft", "token_dpo"]',
]
FLAGS = (
    "--host 127.0.0.1 --dtype float32 --enforce-eager --max-num-seqs 64 --max-logprobs -1 "
    "--logprobs-mode processed_logprobs --generation-config vllm --no-enable-chunked-prefill "
    f"--max-model-len {CONTEXT} --max-num-batched-tokens {64 * CONTEXT}"
)
IN_PROCESS: dict[str, Any] = {
    "enforce_eager": True, "max_model_len": CONTEXT, "max_num_seqs": 64,
    "enable_chunked_prefill": False, "max_num_batched_tokens": 64 * CONTEXT,
}  # fmt: skip
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}  # fmt: skip


def chain(folder: Path, engine: dict[str, Any]) -> None:
    """Run all stages, and say how long it took."""
    start = time.monotonic()
    recipe = load_recipe("phi-nano", [*SMALL, f"engine={json.dumps(engine)}"])
    run(recipe, folder, Console(), progress=False, parallel=False)
    print(f"== {engine['kind']}: {time.monotonic() - start:.0f} s", flush=True)


def faults(folder: Path, usual: Path) -> list[str]:
    """What is not as it is in the run of transformers."""
    found = []
    one, two = (read_manifest(place)["stages"] for place in (folder, usual))
    # Not the folder: its configuration names the version of transformers, and vLLM has its own.
    weights = [place / "sft" / "model" / "model.safetensors" for place in (folder, usual)]
    if weights[0].read_bytes() != weights[1].read_bytes():
        found.append("the weights of the SFT policy are others")
    policy = model_digest(folder / "rejection_sft" / "model")
    digests = {pair.policy_digest for pair in read_pairs(folder / "pts" / "pairs.jsonl")}
    if digests - {policy}:
        found.append("pairs carry another digest than the policy that was searched")
    for name in ("greedy", "sampled"):
        a, b = (stages["eval/sft"]["metrics"][name] for stages in (one, two))
        print(f"SFT policy, {name}: {a:.3f} here, {b:.3f} with transformers", flush=True)
        if abs(a - b) > 4 * (2 * 0.25 / 60) ** 0.5:
            found.append(f"{name} of the SFT policy is {a:.3f}, not {b:.3f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", required=True, help="Python of an environment with vLLM")
    parser.add_argument("--usual", type=Path, help="a run of transformers to compare with")
    parser.add_argument("--in-process", action="store_true", help="only in this process")
    args = parser.parse_args()
    os.environ |= ENVIRONMENT
    with tempfile.TemporaryDirectory() as place:
        usual = args.usual or Path(place) / "transformers"
        if args.usual is None:
            chain(usual, {"kind": "transformers"})
        folder, engine = Path(place) / "vllm", {"kind": "vllm", "options": IN_PROCESS}
        if not args.in_process:
            serve = f"{args.vllm} -m vllm.entrypoints.openai.api_server --model {{model}}"
            engine = {"kind": "server", "command": f"{serve} --port {{port}} {FLAGS}"}
        chain(folder, engine)
        found = faults(folder, usual)
        print("\n".join(found) or "as it should be", flush=True)
        good = not found
        if not args.in_process:
            again = [args.vllm, __file__, "--vllm", args.vllm, "--in-process", "--usual", usual]
            env = {**os.environ, "PYTHONPATH": str(ROOT)}
            good &= subprocess.run(again, env=env, check=False).returncode == 0
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
