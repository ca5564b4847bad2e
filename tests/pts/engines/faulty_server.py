"""A server in this process whose model is a `TabularEngine`, and which fails as it is told to.

It speaks as much of vLLM's and of llama.cpp's API as `ServerEngine` uses. Prompts begin with the id
of a machine (`machine_id`); any other prompt is taken for machine 0 at its start.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pts.config import SamplingConfig
from pts.engines.base import SampleRequest
from pts.engines.tabular import CLOSING, STOP, Machine, TabularEngine
from pts.types import Ids, Problem, TokenDistribution

WORDS = 60
UNKNOWN = WORDS
MACHINES = 8
SIZE = WORDS + 1 + MACHINES
ORDER = ["temperature", "top_k", "top_p", "min_p"]
KEPT = 64


def machine_id(index: int) -> int:
    return UNKNOWN + 1 + index


def problems(machines: Sequence[Machine]) -> list[Problem]:
    return [Problem(f"tabular-{i}", f"m{i}", "right") for i in range(len(machines))]


def save_tokenizer(folder: Path) -> Path:
    """One word a token, as `TabularEngine` names them; m0, m1, … are the machines."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<stop>", "right", "wrong", *(f"t{i}" for i in range(3, WORDS)), "<unk>"]
    words += [f"m{i}" for i in range(MACHINES)]
    vocabulary = {word: i for i, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<stop>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


class FaultyServer:
    """`with FaultyServer(machines) as server: ... server.url`.

    `faults` maps a fault (a method name without `fault_`) to its probability for each completion
    request; it may change while the server runs, and `met` counts them. `logprobs` is vLLM's
    --logprobs-mode, `limit` its --max-logprobs; `dies_after` completion requests it shuts down.
    `metrics` is its page of that name, `questions` counts requests by the first id of their prompt.
    `unlisted` maps a machine's id to how often llama.cpp lists nothing for its rows, unless it is
    told which token to draw and is `forcible`.
    `seeds=False` ignores seeds, `sloppy` are settings that it samples by whatever is asked.
    """

    def __init__(
        self,
        machines: Sequence[Machine],
        *,
        faults: dict[str, float] | None = None,
        kind: str = "vllm",
        logprobs: str = "processed_logprobs",
        limit: int = SIZE,
        key: str = "",
        dies_after: float = math.inf,
        model: str = "tabular",
        seeds: bool = True,
        sloppy: dict[str, Any] | None = None,
        overrides: dict[str, Any] | None = None,
        root: str = "/models/tab",
        unlisted: dict[int, float] | None = None,
        metrics: str = "",
        forcible: bool = True,
    ) -> None:
        self.machines, self.faults = list(machines), faults or {}
        self.seeds, self.sloppy = seeds, sloppy or {}
        self.kind, self.logprobs, self.limit, self.key = kind, logprobs, limit, key
        self.dies_after, self.model, self.overrides = dies_after, model, overrides or {}
        self.root, self.unlisted = root, unlisted or {}
        self.metrics, self.forcible = metrics, forcible
        self.asked = self.seeded = 0
        self.questions: Counter[int] = Counter()
        self.met: Counter[str] = Counter()
        self.seen_keys: set[str] = set()
        self.open_requests = 0
        self.delay = 0.05
        self.gate = 0
        self._opened = asyncio.Event()
        self.most_open = 0
        self._rng = random.Random(0)
        self._engines: dict[SamplingConfig, TabularEngine] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> FaultyServer:
        self._thread.start()
        start = asyncio.start_server(self._connection, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    # HTTP/1.1, as little as will do

    async def _connection(self, read: asyncio.StreamReader, write: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await read.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in head[1:])
                }
                body = await read.readexactly(int(headers.get("content-length", 0)))
                self.open_requests += 1
                self.most_open = max(self.most_open, self.open_requests)
                try:
                    await self._answer(write, head[0].split()[1], headers, body)
                finally:
                    self.open_requests -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            write.close()

    async def _answer(
        self, write: asyncio.StreamWriter, path: str, headers: dict[str, str], body: bytes
    ) -> None:
        self.seen_keys.add(headers.get("authorization", ""))
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            text = json.dumps({"error": f"wrong key: {headers.get('authorization')}"})
            return await self._send(write, 401, text)
        asked = json.loads(body) if body else {}
        if not path.endswith(("/completions", "/completion")):
            return await self._send(write, *self._about(path, asked))
        self.asked += 1
        if self.asked > self.dies_after:
            self._server.close()
            raise ConnectionResetError
        status, reply = self.complete(asked)
        for name, share in self.faults.items():
            if self._rng.random() < share:
                self.met[name] += 1
                return await getattr(self, f"fault_{name}")(write, reply)
        return await self._send(write, status, json.dumps(reply))

    async def _send(
        self, write: asyncio.StreamWriter, status: int, text: str, headers: str = ""
    ) -> None:
        data = text.encode()
        head = f"HTTP/1.1 {status} x\r\ncontent-type: application/json\r\n{headers}"
        write.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        await write.drain()

    # Faults

    async def fault_drop(self, write: asyncio.StreamWriter, reply: Any) -> None:
        raise ConnectionResetError

    async def fault_half(self, write: asyncio.StreamWriter, reply: Any) -> None:
        write.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n" + json.dumps(reply).encode())
        await write.drain()
        raise ConnectionResetError

    async def fault_late(self, write: asyncio.StreamWriter, reply: Any) -> None:
        await asyncio.sleep(self._rng.uniform(0, self.delay))
        await self._send(write, 200, json.dumps(reply))

    async def fault_stall(self, write: asyncio.StreamWriter, reply: Any) -> None:
        await asyncio.sleep(3600)

    async def fault_drip(self, write: asyncio.StreamWriter, reply: Any) -> None:
        """Blanks without end, as gateways send them to keep a connection."""
        write.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            write.write(b"1\r\n \r\n")
            await write.drain()
            await asyncio.sleep(0.05)

    async def fault_gate(self, write: asyncio.StreamWriter, reply: Any) -> None:
        """No reply before `gate` requests are open at once; then in any order."""
        if self.open_requests >= self.gate:
            self._opened.set()
        await self._opened.wait()
        await self.fault_late(write, reply)

    async def fault_busy(self, write: asyncio.StreamWriter, reply: Any) -> None:
        await self._send(write, 429, '{"error": "later"}', "retry-after: 0.01\r\n")

    async def fault_much_later(self, write: asyncio.StreamWriter, reply: Any) -> None:
        await self._send(write, 429, '{"error": "tomorrow"}', "retry-after: 86400\r\n")

    async def fault_broken(self, write: asyncio.StreamWriter, reply: Any) -> None:
        await self._send(write, 500, '{"error": "the engine stumbled"}')

    async def fault_cut_json(self, write: asyncio.StreamWriter, reply: Any) -> None:
        text = json.dumps(reply)
        await self._send(write, 200, text[: len(text) // 2])

    async def fault_short_list(self, write: asyncio.StreamWriter, reply: Any) -> None:
        """Without its end, a list shows too little mass; completions are left alone."""
        for top in (reply["choices"][0].get("logprobs") or {}).get("top_logprobs", []):
            for name in list(top)[1:]:
                del top[name]
        await self._send(write, 200, json.dumps(reply))

    async def fault_names(self, write: asyncio.StreamWriter, reply: Any) -> None:
        """Tokens named by their text, as without return_tokens_as_token_ids."""
        text = json.dumps(reply).replace("token_id:", "word")
        await self._send(write, 200, text)

    async def fault_no_ids(self, write: asyncio.StreamWriter, reply: Any) -> None:
        del reply["choices"][0]["token_ids"]
        await self._send(write, 200, json.dumps(reply))

    async def fault_wrong_id(self, write: asyncio.StreamWriter, reply: Any) -> None:
        reply["choices"][0]["token_ids"][0] = SIZE + 7
        await self._send(write, 200, json.dumps(reply))

    async def fault_too_long(self, write: asyncio.StreamWriter, reply: Any) -> None:
        reply["choices"][0]["token_ids"] += [STOP] * 100
        await self._send(write, 200, json.dumps(reply))

    async def fault_early(self, write: asyncio.StreamWriter, reply: Any) -> None:
        reply["choices"][0].update(finish_reason="length")
        reply["choices"][0]["token_ids"][-1:] = []
        await self._send(write, 200, json.dumps(reply))

    async def fault_no_stop(self, write: asyncio.StreamWriter, reply: Any) -> None:
        reply["choices"][0].update(finish_reason="stop")
        reply["choices"][0]["token_ids"][-1] = 3
        await self._send(write, 200, json.dumps(reply))

    async def fault_other_prompt(self, write: asyncio.StreamWriter, reply: Any) -> None:
        reply["choices"][0]["prompt_token_ids"] = [1, 2, 3]
        await self._send(write, 200, json.dumps(reply))

    # The model

    def _about(self, path: str, asked: Any) -> tuple[int, str]:
        if path == "/v1/models":
            entry: dict[str, Any] = {"id": self.model, "owned_by": self.kind, "root": self.root}
            entry["max_model_len"] = 4096
            if self.kind == "llamacpp":
                entry["meta"] = {"n_vocab": SIZE, "n_ctx": 4096}
            return 200, json.dumps({"data": [entry]})
        if path == "/metrics" and self.metrics:
            return 200, self.metrics
        if path == "/props":
            return 200, json.dumps({"model_path": "/models/tab.gguf", "total_slots": 6})
        if path == "/tokenize":
            words = (asked.get("prompt") or asked.get("content")).split()
            return 200, json.dumps({"tokens": [UNKNOWN] * len(words)} | self.overrides)
        return 404, "no such path"

    def complete(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """The truth: one completion, and the row at its first position when asked for."""
        width = asked.get("logprobs", asked.get("n_probs", 0)) or 0
        if width > self.limit or (width == -1 and self.limit < SIZE):
            text = f"Requested sample logprobs of {width}, greater than max allowed: {self.limit}"
            return 400, {"error": {"message": text}}
        chosen = {name: asked[name] for name in ORDER}
        chosen["top_k"] = max(0, chosen["top_k"])
        engine = self._engine(SamplingConfig(**chosen))
        prompt, at = _place(asked["prompt"])
        limit = asked.get("max_tokens", asked.get("n_predict"))
        self.questions[asked["prompt"][0]] += 1
        self.seeded += asked.get("seed") is not None
        seed = asked.get("seed") if self.seeds else None
        request = SampleRequest(
            0, prompt, at, limit, (self._rng.getrandbits(60) if seed is None else seed,)
        )
        drawing = self._engine(SamplingConfig(**chosen | self.sloppy))
        ((_, (ids,)),) = drawing.sample(iter([request]))
        row = engine.score(prompt, _extended(engine, prompt, at))[-1] if width else None
        if self.kind == "llamacpp":
            return 200, self._llama_cpp(asked, ids, row, width)
        return 200, self._vllm(asked, ids, row, SIZE if width == -1 else width, (prompt, at))

    def _engine(self, sampling: SamplingConfig) -> TabularEngine:
        if sampling not in self._engines:
            self._engines[sampling] = TabularEngine(self.machines, sampling)
        return self._engines[sampling]

    def _vllm(
        self,
        asked: Any,
        ids: Ids,
        row: TokenDistribution | None,
        width: int,
        place: tuple[Ids, Ids],
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "token_ids": list(ids),
            "finish_reason": "stop" if ids[-1] == STOP else "length",
            "prompt_token_ids": asked["prompt"],
        }
        if row is not None:
            if self.logprobs.startswith("raw"):
                prompt, at = place
                plain = self._engine(SamplingConfig())
                row = plain.score(prompt, _extended(plain, prompt, at))[-1]
            choice["logprobs"] = {"top_logprobs": [self._top(row, width, ids[0])]}
        if asked.get("prompt_logprobs"):
            prompt, at = place
            rows = self._engine(SamplingConfig()).score(prompt, at)
            known = [r.prob(token) for r, token in zip(rows, at, strict=True)]
            choice["prompt_logprobs"] = [None] + [
                {"0": {"logprob": -9.0}, str(token): {"logprob": math.log(p) if p else -9999.0}}
                for token, p in zip(at, known, strict=True)
            ]
        return {"choices": [choice]}

    def _top(self, row: TokenDistribution, width: int, drawn: int) -> dict[str, float]:
        shift = 3.0 if self.logprobs.endswith("logits") else 0.0
        top = {
            f"token_id:{i}": math.log(p) + shift
            for i, p in zip(row.ids[:width].tolist(), row.probs[:width].tolist(), strict=True)
        }
        others = (i for i in range(SIZE) if row.prob(i) == 0)
        while len(top) < width:  # tokens without mass, as vLLM shows them
            top[f"token_id:{next(others)}"] = -9999.0
        top.setdefault(f"token_id:{drawn}", math.log(row.prob(drawn)) + shift)
        return top

    def _llama_cpp(
        self, asked: Any, ids: Ids, row: TokenDistribution | None, width: int
    ) -> dict[str, Any]:
        reply = {
            "tokens": list(ids),
            "stop_type": "eos" if ids[-1] == STOP else "limit",
            "tokens_evaluated": len(asked["prompt"]),
            "generation_settings": {"samplers": asked["samplers"]},
        }
        unlisted = self.unlisted.get(asked["prompt"][0], 0.0)
        if row is not None and asked["logit_bias"] and self.forcible:
            plain = self._engine(SamplingConfig())
            prompt, at = _place(asked["prompt"])
            row = plain.score(prompt, _extended(plain, prompt, at))[-1]
            named = zip(row.ids.tolist(), np.log(row.probs).tolist(), strict=True)
            top = [{"id": i, "logprob": logprob} for i, logprob in named]
            reply["completion_probabilities"] = [{"top_logprobs": top}]
        elif row is not None and self._rng.random() >= unlisted:
            pairs = zip(row.ids[:width].tolist(), row.probs[:width].tolist(), strict=True)
            top = [{"id": i, "prob": p} for i, p in pairs]
            reply["completion_probabilities"] = [{"top_probs": top}]
        return reply


def _place(prompt: list[int]) -> tuple[Ids, Ids]:
    index = prompt[0] - machine_id(0)
    return ((index,), tuple(prompt[1:])) if index >= 0 else ((0,), ())


def _extended(engine: TabularEngine, prompt: Ids, at: Ids) -> Ids:
    """The prefix and one token more, so that `score` has a row for the place after it."""
    state = engine._states(prompt, at)[-1]
    if state == CLOSING:
        return (*at, STOP)
    return (*at, engine.machines[prompt[0]].states[state][0].token)
