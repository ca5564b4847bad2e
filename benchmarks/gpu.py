"""What a GPU must show, in one script of a few minutes: `make test-gpu` on a machine that has one.

    python benchmarks/gpu.py                                  # one CUDA device
    python benchmarks/gpu.py --device cpu --small --output .  # tries the script itself

1. The conformance suite on `TransformersEngine`, in float32 and bfloat16.
2. Sampled tokens a second of the engine and of `generate`, on the same prefixes.
3. The chain of phi-nano, all stages on the device; token DPO must start at a gain of 0.
4. Peak memory of the device in each of these.

Nothing but PyTorch, transformers and what the project installs is needed, and no network: on a
machine without one, fetch wheels before (`pip download -d wheels -c constraints.txt .`) and set
PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels. Findings are printed, and written to `gpu.json`; the exit
status is 1 if something is not as it must be. Not run by us on a GPU so far.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from real_servers import NANO, PROBLEMS, SETTINGS
from rich.console import Console
from rollout_throughput import build_model, build_requests, by_engine, by_generate

from align.pipeline.recipe import load_recipe
from align.pipeline.run import run
from align.run_folder import read_manifest
from pts.config import SamplingConfig
from pts.engines.transformers.engine import TransformersEngine
from pts.testing import check_engine

TOLERANCE = {"float32": 0.0, "bfloat16": 0.02}
"""Share of draws that rounding may move out of a nucleus. In bfloat16 a row depends on those
beside it, so what is found there is told and not demanded."""
FULL = ["evaluate.problems=100"]
SMALL = [
    *("rejection_sft.num_problems=24", "pts.num_problems=16"),
    *("pts.search.confirm_rollouts=32", "pts.search.fdr=0.9", "token_dpo.max_steps=2"),
    *("full_dpo.num_problems=16", "full_dpo.max_steps=2", "evaluate.problems=20"),
]


def conformance(device: str, dtype: str) -> dict[str, Any]:
    """The suite's report."""

    def make(sampling: SamplingConfig) -> TransformersEngine:
        return TransformersEngine.load(NANO, sampling, device=device, dtype=getattr(torch, dtype))

    report = check_engine(make, PROBLEMS, samplings=SETTINGS, tolerance=TOLERANCE[dtype])
    return {"ok": bool(report.ok) or dtype == "bfloat16", "report": str(report)}


def throughput(device: str, small: bool) -> dict[str, Any]:
    """Sampled tokens a second, the better of two turns each; the first also warms up."""
    model: Any = build_model()
    model = model.to(device)
    requests = build_requests(*((4, 4, 8) if small else (32, 16, 32)))
    contenders = {"engine": by_engine(model, 512), "generate": by_generate(model, 512)}
    rates: dict[str, float] = dict.fromkeys(contenders, 0.0)
    for _ in range(2):
        for name, draw in contenders.items():
            start = time.perf_counter()
            sampled = draw(requests)
            rates[name] = max(rates[name], sampled / (time.perf_counter() - start))
    return {"ok": True, "tokens_a_second": rates, "ratio": rates["engine"] / rates["generate"]}


def chain(device: str, folder: Path, small: bool) -> dict[str, Any]:
    """Seconds of the stages, accuracies, and the gain with which token DPO starts."""
    recipe = load_recipe("phi-nano", [f"model.device={device}", *(SMALL if small else FULL)])
    run(recipe, folder, Console(stderr=True), progress=False, parallel=False)
    made = read_manifest(folder)["stages"]
    first = (folder / "token_dpo" / "metrics.jsonl").read_text().splitlines()[0]
    gain = json.loads(first)["gain"]
    sampled = {name: one["metrics"]["sampled"] for name, one in made.items() if name[:4] == "eval"}
    return {
        "ok": abs(gain) < 1e-4,
        "gain_at_start": gain,
        "seconds": {name: round(one["seconds"], 1) for name, one in made.items()},
        "sampled": sampled,
    }


def main() -> int:
    """Run all parts; one that fails does not keep the others from running."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny numbers")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    told = parser.parse_args()
    if told.device == "cuda" and not torch.cuda.is_available():
        print(f"no CUDA device: PyTorch {torch.__version__} finds none here", file=sys.stderr)
        return 2
    told.output.mkdir(parents=True, exist_ok=True)
    folder = told.output / "gpu-chain"
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "conformance float32": lambda: conformance(told.device, "float32"),
        "conformance bfloat16": lambda: conformance(told.device, "bfloat16"),
        "throughput": lambda: throughput(told.device, told.small),
        "chain": lambda: chain(told.device, folder, told.small),
    }
    cuda = told.device == "cuda"
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    for name, part in parts.items():
        start = time.monotonic()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        try:
            found[name] = part()
        except Exception as error:  # told with the other findings
            found[name] = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        if cuda:
            found[name]["peak_bytes"] = torch.cuda.max_memory_allocated()
        found[name]["wall_seconds"] = round(time.monotonic() - start, 1)
        print(f"== {name}\n{json.dumps(found[name], indent=1)}", flush=True)
        (told.output / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0 if all(found[name]["ok"] for name in parts) else 1


if __name__ == "__main__":
    sys.exit(main())
