"""Requests in flight that servers are given: found out while they work, or fixed.

    python benchmarks/server_concurrency.py --output benchmarks/results/server_concurrency

The servers are stand-ins, two processes that compute nothing: each has slots, takes a time for a
step of its batch, queues what is too much, reads a prompt that it has not cached in so many steps
more, and says as vLLM does how many requests wait. One is slow. The client is the one that searches
use. All arms run in turn, several times, on the same rollouts; a turn ends with its last rollout,
so that what is left at the slow server at the end counts. It is a model of servers, not a
measurement of one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pts.engines.server.http import Client


@dataclass(frozen=True)
class Capacity:
    """What a stand-in can do."""

    slots: int
    step: float
    """Seconds for a token of everything in the batch."""
    prefill: int = 10
    """Steps for a prompt that is not cached."""
    cached: int = 12
    """Prompts that the cache holds."""

    @property
    def rate(self) -> float:
        """Tokens a second with every slot filled and every prompt cached."""
        return self.slots / self.step


SERVERS = {"fast": Capacity(32, 0.1), "slow": Capacity(8, 0.25)}
ARMS: dict[str, tuple[int | None, bool]] = {
    "adaptive": (None, True),
    "adaptive, any server": (None, False),
    "fixed 512": (512, True),
    "fixed 64": (64, True),
    "fixed 16": (16, True),
}
"""Requests in flight (None: found out), and whether a question stays with a server."""


class StandIn:
    """A server whose batch advances with the clock."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.batch: list[list[Any]] = []
        """Of each request in the batch: steps left, and the future of its reply."""
        self.waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self.cache: OrderedDict[int, None] = OrderedDict()
        self.hits = self.asked = 0

    async def run(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(self.capacity.step / 2)
            for _ in range(int((time.monotonic() - last) / self.capacity.step)):
                last += self.capacity.step
                self.advance()

    def advance(self) -> None:
        while self.waiting and len(self.batch) < self.capacity.slots:
            question, tokens, reply = self.waiting.pop(0)
            hit = question in self.cache
            self.hits, self.asked = self.hits + hit, self.asked + 1
            self.cache[question] = None
            self.cache.move_to_end(question)
            while len(self.cache) > self.capacity.cached:
                self.cache.popitem(last=False)
            self.batch.append([tokens + (0 if hit else self.capacity.prefill), reply])
        for one in self.batch:
            one[0] -= 1
            if one[0] == 0 and not one[1].done():
                one[1].set_result(None)
        self.batch = [one for one in self.batch if one[0] > 0]

    async def connection(self, read: asyncio.StreamReader, write: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await read.readuntil(b"\r\n\r\n")).decode()
                lengths = [line for line in head.split("\r\n") if "content-length" in line.lower()]
                size = int(lengths[0].split(":")[1]) if lengths else 0
                asked = json.loads(await read.readexactly(size) if size else b"{}")
                text = await self.answer(head.split()[1], asked)
                write.write(f"HTTP/1.1 200 x\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())
                await write.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            write.close()

    async def answer(self, path: str, asked: dict[str, Any]) -> str:
        if path == "/metrics":
            return f"vllm:num_requests_waiting {len(self.waiting)}\n"
        if path == "/cache":
            hits, self.hits, number, self.asked = self.hits, 0, self.asked, 0
            self.cache.clear()
            return json.dumps([hits, number])
        reply = asyncio.get_running_loop().create_future()
        self.waiting.append((asked["question"], asked["tokens"], reply))
        await reply
        return json.dumps(asked["tokens"])


def serve(capacity: Capacity, port: Any) -> None:
    """A stand-in in this process, for ever; its port goes into a queue."""

    async def forever() -> None:
        stand_in = StandIn(capacity)
        server = await asyncio.start_server(stand_in.connection, "127.0.0.1", 0)
        port.put(server.sockets[0].getsockname()[1])
        await stand_in.run()

    asyncio.run(forever())


def turn(urls: list[str], arm: str, rollouts: list[tuple[int, int]]) -> dict[str, Any]:
    """The rollouts (question, tokens) once, all asked for at the start."""
    in_flight, sticky = ARMS[arm]
    client = Client(urls, in_flight=in_flight)
    start = time.monotonic()

    async def ask(question: int, tokens: int) -> int:
        return await client.post(
            "/v1/completions", {"question": question, "tokens": tokens}, int,
            question=question if sticky else None, size=int,
        )  # fmt: skip

    async def every() -> None:
        await asyncio.gather(*(ask(*one) for one in rollouts))

    try:
        client.wait(every())
        seconds = time.monotonic() - start
        counts = [client.wait(client.ask(e, "/cache"))[1] for e in client.endpoints]
        limits = [e.rule.limit if e.rule else None for e in client.endpoints]
    finally:
        client.close()
    return {
        "arm": arm,
        "seconds": round(seconds, 1),
        "rate": round(sum(tokens for _, tokens in rollouts) / seconds, 1),
        "cached": round(sum(hits for hits, _ in counts) / sum(n for _, n in counts), 3),
        "asked": [n for _, n in counts],
        "limits": limits,
    }


def table(turns: list[dict[str, Any]]) -> str:
    """A line an arm; ratios to the adaptive arm of the same repeat."""
    best = sum(capacity.rate for capacity in SERVERS.values())
    lines = [
        "| in flight | tokens/s | of capacity | against adaptive | prompts cached "
        "| to the slow one | limits at the end, fast / slow |",
        "|---|---|---|---|---|---|---|",
    ]
    base = [one["rate"] for one in turns if one["arm"] == "adaptive"]
    for arm, (in_flight, _) in ARMS.items():
        own = [one for one in turns if one["arm"] == arm]
        rate = statistics.median(one["rate"] for one in own)
        ratios = [one["rate"] / other for one, other in zip(own, base, strict=True)]
        limits = "; ".join(" / ".join(map(str, one["limits"])) for one in own if in_flight is None)
        cached = statistics.median(one["cached"] for one in own)
        slow = statistics.median(one["asked"][1] / sum(one["asked"]) for one in own)
        lines.append(
            f"| {arm} | {rate:.0f} | {rate / best:.0%} | {min(ratios):.2f} to {max(ratios):.2f} | "
            f"{cached:.0%} | {slow:.0%} | {limits or 'shared'} |"
        )
    return "\n".join(lines)


def page(turns: list[dict[str, Any]], rollouts: int, questions: int) -> str:
    """The results as a page."""
    command, told = __doc__.split("\n\n")[1:3]
    servers = "; ".join(
        f"{name}: {c.slots} slots, {c.step:g} s a step, {c.rate:.0f} tokens/s at most"
        for name, c in SERVERS.items()
    )
    first = next(iter(SERVERS.values()))
    return (
        f"# Requests in flight\n\n`{command.strip()}`: {' '.join(told.split())}\n\n"
        f"{servers}. A prompt that is not cached costs {first.prefill} steps; each caches "
        f"{first.cached}. {rollouts} rollouts of {questions} questions, all asked for at the "
        f"start; repeats with the arms in turn: {len(turns) // len(ARMS)}; ratios within a repeat, "
        f"the least and the greatest.\n\n{table(turns)}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="writes OUTPUT.json and OUTPUT.md")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--rollouts", type=int, default=24, help="of each question")
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    lengths = 1 + rng.gamma(4.0, 7.5, size=args.questions * args.rollouts).astype(int)
    # Rounds, as a search has them: a few rollouts of each question at a time.
    order = [q for _ in range(args.rollouts // 8) for q in range(args.questions) for _ in range(8)]
    rollouts = list(zip(order, lengths.tolist(), strict=False))
    context, ports = multiprocessing.get_context("spawn"), []
    processes = []
    for capacity in SERVERS.values():
        port = context.Queue()
        processes.append(context.Process(target=serve, args=(capacity, port), daemon=True))
        processes[-1].start()
        ports.append(port.get())
    urls, turns = [f"http://127.0.0.1:{port}" for port in ports], []
    for _ in range(args.repeats):
        for arm in ARMS:
            turns.append(turn(urls, arm, rollouts))
            print(turns[-1], flush=True)
    for process in processes:
        process.terminate()
    print(table(turns))
    if args.output:
        servers = {name: asdict(capacity) for name, capacity in SERVERS.items()}
        text = json.dumps({"servers": servers, "rollouts": len(rollouts), "turns": turns})
        args.output.with_suffix(".json").write_text(text + "\n")
        args.output.with_suffix(".md").write_text(page(turns, len(rollouts), args.questions))


if __name__ == "__main__":
    main()
