"""Engines against the real thing: vLLM's and llama.cpp's servers, and vLLM in process.

    make test-servers

sets up an environment for each of them and runs this: start the server on a CPU, connect, run the
conformance suite under several settings, then a small search twice into one folder (the second time
nothing may be drawn again), and print what was found with tokens per second. The exit status is 1
if anything was found. vLLM serves phi-nano's base model, llama.cpp the SmolLM2 of `make smollm2`,
which is 150 times as large and so is asked for fewer draws.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from align.models.smollm2 import convert, gguf_file
from pts.config import SamplingConfig, SearchConfig
from pts.engines.base import Engine, SampleRequest
from pts.runtime.search import search
from pts.testing import check_engine
from pts.types import Grade, Problem, Verdict

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "recipes" / "phi-nano" / "base"
CONTEXT = 256
SETTINGS = {
    "plain": SamplingConfig(max_new_tokens=24),
    "together": SamplingConfig(temperature=0.8, top_k=12, top_p=0.9, max_new_tokens=24),
    "greedy": SamplingConfig(temperature=0, max_new_tokens=24),
}
PROBLEMS = [
    Problem("apples", "Question: Tom has 12 apples and buys 5 more.", "17"),
    Problem("pens", "Question: Anna gives away 3 of", "4"),
]
SEARCH = SearchConfig(
    filter_rollouts=8, max_rollouts=64, confirm_rollouts=16, p_min=0.05, p_max=0.95
)
VLLM_OPTIONS: dict[str, Any] = {
    "dtype": "float32", "enforce_eager": True, "max_model_len": CONTEXT, "max_num_seqs": 64,
    "enable_chunked_prefill": False, "max_num_batched_tokens": 64 * CONTEXT,
}  # fmt: skip
LLAMA = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_parallel, params.n_ctx, params.warmup = 16, 16 * int(sys.argv[3]), False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(sys.argv[4])
server = xllamacpp.Server(params)
while True:
    time.sleep(1)
"""


def even_words(problem: Problem, text: str) -> Grade:
    """Uncertain for every model: PASS if the number of words is even."""
    return Grade(Verdict.PASS if len(text.split()) % 2 == 0 else Verdict.FAIL)


@contextmanager
def running(command: list[str], port: int, seconds: float) -> Iterator[str]:
    """A server's URL once it answers; the process ends with the block."""
    url, env = f"http://127.0.0.1:{port}", {**os.environ, **ENVIRONMENT}
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
        try:
            start = time.monotonic()
            while not _answers(url):
                if process.poll() is not None or time.monotonic() - start > seconds:
                    tail = Path(log.name).read_text(errors="replace")[-3000:]
                    raise SystemExit(f"{command[0]} does not serve:\n{tail}")
                time.sleep(1)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=60)


ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}  # fmt: skip


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=5) as reply:
            return bool(json.load(reply)["data"])
    except (OSError, ValueError):
        return False


def checked(name: str, make: Any, rollouts: int) -> bool:
    """Print the conformance report of an engine, its speed and its search; True if all is well."""
    start = time.monotonic()
    report = check_engine(
        make, PROBLEMS, samplings=SETTINGS, rollouts=rollouts, whole=4, tolerance=0.001
    )
    print(f"== {name} ({time.monotonic() - start:.0f} s)\n{report}", flush=True)
    engine: Engine = make(SETTINGS["together"])
    print(f"speed: {_speed(engine)}", flush=True)
    return bool(report.ok) and _likelihoods_agree(make(SETTINGS["plain"])) and _searched(engine)


def _likelihoods_agree(engine: Any) -> bool:
    """Log-likelihoods against the rows of a policy that is the model itself."""
    prompt = engine.encode(PROBLEMS[0])
    ((_, drawn),) = engine.sample(iter([SampleRequest(0, prompt, (), 6, (1, 2, 3))]))
    rows = [zip(engine.score(prompt, ids), ids, strict=True) for ids in drawn]
    wanted = [sum(math.log(row.prob(token)) for row, token in some) for some in rows]
    found = engine.loglikelihoods([(prompt, ids) for ids in drawn])
    gap = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
    print(f"log-likelihoods: {len(drawn)} of up to 6 tokens, apart by {gap:.6f}", flush=True)
    return gap < 0.01


def _speed(engine: Engine, rollouts: int = 128) -> str:
    prompt = engine.encode(PROBLEMS[0])
    requests = [
        SampleRequest(k, prompt, (), 24, tuple(range(8 * k, 8 * k + 8)))
        for k in range(rollouts // 8)
    ]
    start = time.monotonic()
    tokens = sum(len(ids) for _, drawn in engine.sample(iter(requests)) for ids in drawn)
    seconds = time.monotonic() - start
    return f"{tokens} tokens of {rollouts} rollouts in {seconds:.1f} s, {tokens / seconds:.0f}/s"


def _searched(engine: Engine) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            search(PROBLEMS, engine, even_words, SEARCH, output=folder, progress=False)
            for _ in range(2)
        ]
        pairs = [run.pairs for run in runs]
    spent = sum(tally.rollouts for tally in runs[0].summary.spent.values())
    same = runs[0].summary.spent == runs[1].summary.spent and pairs[0] == pairs[1]
    print(
        f"search: {runs[0].summary.questions}, {spent} rollouts, {len(pairs[0])} pairs in "
        f"{runs[0].summary.seconds:.1f} s; again from the journal: {same}",
        flush=True,
    )
    return same and spent > 0


def vllm_server(python: str, rollouts: int) -> bool:
    """`vllm serve` as documented, on a CPU."""
    from pts.engines.server.engine import ServerEngine

    flags = {"--max-model-len": CONTEXT, "--max-num-seqs": 64, "--dtype": "float32"}
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(NANO),
        "--host", "127.0.0.1", "--port", "8811", "--enforce-eager", "--max-logprobs", "-1",
        "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm",
        "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(64 * CONTEXT),
        *(str(part) for flag in flags.items() for part in flag),
    ]  # fmt: skip
    with running(command, 8811, 900) as url:
        return checked("vLLM server", lambda s: ServerEngine.connect(url, None, NANO, s), rollouts)


def llama_cpp_server(python: str, gguf: Path, rollouts: int, threads: int) -> bool:
    """llama.cpp's server from the xllamacpp wheel."""
    from pts.engines.server.engine import ServerEngine

    tokenizer = convert()
    command = [python, "-c", LLAMA, str(gguf), "8822", str(CONTEXT), str(threads)]
    with running(command, 8822, 300) as url:
        return checked(
            "llama.cpp server", lambda s: ServerEngine.connect(url, None, tokenizer, s), rollouts
        )


def vllm_in_process(rollouts: int) -> bool:
    """`VLLMEngine`: one LLM, an engine for every setting."""
    from pts.engines.vllm import VLLMEngine

    os.environ |= ENVIRONMENT
    first = VLLMEngine.load(NANO, SETTINGS["plain"], **VLLM_OPTIONS)
    return checked("vLLM in process", lambda s: VLLMEngine(first.llm, NANO, s), rollouts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", help="Python of an environment with vLLM")
    parser.add_argument("--llama-cpp", help="Python of an environment with xllamacpp")
    parser.add_argument("--gguf", type=Path, help="the SmolLM2 file; by default the wheel's")
    parser.add_argument("--rollouts", type=int, default=200, help="draws at each place, vLLM")
    parser.add_argument("--llama-rollouts", type=int, default=50, help="the same, llama.cpp")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--in-process", action="store_true", help="run vLLM in this process")
    args = parser.parse_args()
    good = []
    if args.in_process:
        good.append(vllm_in_process(args.rollouts))
    if args.llama_cpp:
        gguf = args.gguf or gguf_file()
        good.append(llama_cpp_server(args.llama_cpp, gguf, args.llama_rollouts, args.threads))
    if args.vllm:
        good.append(vllm_server(args.vllm, args.rollouts))
        again = [args.vllm, __file__, "--in-process", "--rollouts", str(args.rollouts)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        good.append(subprocess.run(again, env=env, check=False).returncode == 0)
    if not good:
        parser.error("give --vllm, --llama-cpp or both")
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
