"""Rollouts a second: this project's engine against `generate` and `generate_batch`.

    python benchmarks/rollout_throughput.py            # two minutes on two idle cores

Workload: a random-init Phi-3 of 0.9 M parameters (the shape of phi-nano), questions of 40 prompt
tokens, several completion prefixes of 0-40 tokens a question, n rollouts a prefix of at most 40
tokens, temperature 0.7. A few per cent of the vocabulary stop a rollout, so lengths differ as they
do in a trained model. All contenders draw the same number of rollouts from the same prefixes in
the same process, in turns; figures are medians over the turns. The engine's time includes scoring
each question's path, which is where its prefixes' KV comes from.

`tokens` counts sampled tokens up to and with the stop. Figures are given per second of wall time
and per second of CPU time over all threads; on a machine that others use too, the latter is the
fairer one. `matmul_share` is the arithmetic of the linear layers over all tokens the engine fed,
over what a large square matmul did in the same CPU time, measured before and after.

Results go to benchmarks/results/rollout_throughput.json. What is not measured: trained weights,
other devices, models whose forward dwarfs the Python around it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    Phi3Config,
    Phi3ForCausalLM,
)

from pts.config import SamplingConfig
from pts.engines.base import SampleRequest
from pts.engines.transformers.engine import TransformersEngine
from pts.types import Ids

VOCABULARY, PROMPT, PREFIX, NEW = 1024, 40, 40, 40
STOPS = tuple(range(2, 30))
TEMPERATURE = 0.7
PAGED_ROWS = 64
"""Rows of `generate_batch`: the fastest of 16, 32, 64, 128 and 512 here (its attention on a CPU is
one masked product of all queries with all keys)."""
OUT = Path(__file__).parent / "results" / "rollout_throughput.json"

Contender = Callable[[list[SampleRequest]], int]
"""Draws every request's rollouts and returns the number of sampled tokens."""


class NoText:
    """Stands in for a tokenizer: ids go in and out."""

    eos_token_id = STOPS[0]


def build_model() -> Phi3ForCausalLM:
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=1, intermediate_size=384, max_position_embeddings=256,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=STOPS[0],
    )  # fmt: skip
    return Phi3ForCausalLM(config).eval()


def build_requests(questions: int, prefixes: int, n: int) -> list[SampleRequest]:
    """`prefixes` requests on each question's path, at random depths."""
    rng = np.random.default_rng(0)
    requests: list[SampleRequest] = []
    for _ in range(questions):
        tokens = rng.integers(max(STOPS) + 1, VOCABULARY, PROMPT + PREFIX).tolist()
        prompt, path = tuple(tokens[:PROMPT]), tuple(tokens[PROMPT:])
        for depth in rng.integers(0, PREFIX + 1, prefixes).tolist():
            seeds = tuple(int(s) for s in rng.integers(0, 2**63, n))
            requests.append(SampleRequest(len(requests), prompt, path[:depth], NEW, seeds))
    return requests


def until_stop(ids: list[int]) -> int:
    """Tokens up to and with the first stop."""
    return next((i + 1 for i, token in enumerate(ids) if token in STOPS), len(ids))


def by_engine(model: Any, max_rows: int) -> Contender:
    sampling = SamplingConfig(temperature=TEMPERATURE, max_new_tokens=NEW)

    def draw(requests: list[SampleRequest]) -> int:
        engine = TransformersEngine(
            model, NoText(), sampling, stop_ids=STOPS, max_rows=max_rows, policy_digest="random"
        )
        longest: dict[Ids, Ids] = {}
        for request in requests:
            longest[request.prompt] = max(longest.get(request.prompt, ()), request.prefix, key=len)
        for prompt, path in longest.items():
            engine.score(prompt, path)
        return sum(len(ids) for _, outputs in engine.sample(iter(requests)) for ids in outputs)

    return draw


def by_generate(model: Any, rows: int) -> Contender:
    """`generate` over left-padded prefixes, `rows` sequences at a time."""

    def draw(requests: list[SampleRequest]) -> int:
        n, total = len(requests[0].seeds), 0
        for start in range(0, len(requests), max(1, rows // n)):
            batch = [w.prompt + w.prefix for w in requests[start : start + max(1, rows // n)]]
            width = max(map(len, batch))
            rows_of_ids = [(0,) * (width - len(b)) + b for b in batch]
            ids = torch.tensor(rows_of_ids, device=model.device)
            masks = [[0] * (width - len(b)) + [1] * len(b) for b in batch]
            mask = torch.tensor(masks, device=model.device)
            out = model.generate(
                ids, attention_mask=mask, do_sample=True, temperature=TEMPERATURE, top_k=0,
                max_new_tokens=NEW, num_return_sequences=n, eos_token_id=list(STOPS),
            )  # fmt: skip
            total += sum(until_stop(row) for row in out[:, width:].tolist())
        return total

    return draw


def by_generate_batch(model: Any, rows: int) -> Contender:
    """The continuous batching of `transformers`, with blocks small enough to share prefixes."""

    def draw(requests: list[SampleRequest]) -> int:
        page = 32
        blocks = rows * -(-(PROMPT + PREFIX + NEW + page) // page)
        out = model.generate_batch(
            [list(w.prompt + w.prefix) for w in requests],
            GenerationConfig(
                do_sample=True, temperature=TEMPERATURE, top_k=0, max_new_tokens=NEW,
                num_return_sequences=len(requests[0].seeds),
                eos_token_id=list(STOPS), pad_token_id=0,
            ),
            ContinuousBatchingConfig(
                page_size=page, num_blocks=blocks, max_batch_tokens=2 * rows,
                max_requests_per_batch=rows, seed=0,
            ),
        )  # fmt: skip
        return sum(until_stop(list(o.generated_tokens)) for o in out.values())

    return draw


def matmul_rate(seconds: float = 0.5) -> float:
    """FLOP per CPU-second of a 1024 x 1024 float32 matmul with the current number of threads."""
    a = torch.randn(1024, 1024)
    a @ a
    count, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        a @ a
        count += 1
    return count * 2 * 1024**3 / (time.process_time() - start)


def linear_flops(model: Any, requests: list[SampleRequest], sampled: int) -> float:
    """Multiply-adds of the linear layers for the tokens that the engine feeds, times two.

    Every sampled token is one step with a head; every path is scored once, with a head.
    """
    body = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    )
    scored = len({w.prompt for w in requests}) * (PROMPT + PREFIX)
    return 2.0 * (body + model.lm_head.weight.numel()) * (sampled + scored)


def measure(
    contenders: dict[str, Contender], requests: list[SampleRequest], turns: int
) -> dict[str, Any]:
    """Medians over `turns`, the contenders taking turns."""
    seen: dict[str, list[tuple[int, float, float]]] = {name: [] for name in contenders}
    for draw in contenders.values():
        draw(requests[: max(1, len(requests) // 32)])
    for _ in range(turns):
        for name, draw in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = draw(requests)
            seen[name].append((tokens, time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {
            "tokens": runs[0][0],
            "tokens_per_second": statistics.median(t / wall for t, wall, _ in runs),
            "tokens_per_cpu_second": statistics.median(t / cpu for t, _, cpu in runs),
        }
        for name, runs in seen.items()
    }


def run(threads: int, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(threads)
    model = build_model()
    requests = build_requests(arguments.questions, arguments.prefixes, arguments.n)
    rows = arguments.rows
    contenders = {
        "engine": by_engine(model, rows),
        "generate": by_generate(model, rows),
        "generate_batch": by_generate_batch(model, min(rows, PAGED_ROWS)),
    }
    before = matmul_rate()
    figures = measure(contenders, requests, arguments.turns)
    peak = (before + matmul_rate()) / 2
    mine = figures["engine"]
    flops = linear_flops(model, requests, mine["tokens"]) / mine["tokens"]
    for name, other in figures.items():
        for unit in ("tokens_per_second", "tokens_per_cpu_second"):
            other[f"engine_ratio_of_{unit}"] = mine[unit] / other[unit]
        print(f"{threads} thread(s) {name:15s}", {k: round(v, 2) for k, v in other.items()})
    share = flops * mine["tokens_per_cpu_second"] / peak
    print(f"{threads} thread(s) matmul {peak / 1e9:.0f} GFLOP/CPU-s, engine uses {share:.0%}")
    return {
        "contenders": figures,
        "matmul_gflop_per_cpu_second": peak / 1e9,
        "matmul_share": share,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--prefixes", type=int, default=6, help="requests a question")
    parser.add_argument("--n", type=int, default=8, help="rollouts a request")
    parser.add_argument("--rows", type=int, default=512, help="batch (generate_batch: 64)")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "workload": {
            k: getattr(arguments, k) for k in ("questions", "prefixes", "n", "rows", "turns")
        },
        "parameters": sum(p.numel() for p in build_model().parameters()),
        "machine": {"processor": platform.processor() or platform.machine()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "threads": {},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for threads in arguments.threads:
        record["threads"][str(threads)] = run(threads, arguments)
        arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
