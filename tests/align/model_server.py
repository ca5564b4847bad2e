"""A server of a model's folder for tests, in a process of its own: vLLM's API over transformers.

    python tests/align/model_server.py FOLDER --port 8000

It speaks as much of vLLM's API as `ServerEngine` uses, and chat completions for judges. Requests
of one sampling policy share a continuous batch. In this process it may also be a thread that
`light_server.py` passes requests to.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, islice
from typing import Any

from pts.config import SamplingConfig
from pts.engines.base import SampleRequest
from pts.engines.transformers.engine import TransformersEngine
from pts.types import Ids, TokenDistribution


class Batches:
    """One model, a thread and a live queue for each sampling policy."""

    def __init__(self, folder: str) -> None:
        self._first = TransformersEngine.load(folder, SamplingConfig())
        self._queues: dict[tuple[SamplingConfig, frozenset[int]], queue.Queue[Any]] = {}
        self._engines: dict[tuple[SamplingConfig, frozenset[int]], TransformersEngine] = {}
        self._lock, self._model = threading.Lock(), threading.Lock()
        self._keys = count()
        self.tokenizer, self.stops = self._first.tokenizer, self._first.stop_ids
        self.digest = self._first.policy_digest
        self.context: int = self._first.model.config.max_position_embeddings

    def rollout(
        self, sampling: SamplingConfig, stops: frozenset[int], prompt: Ids, limit: int, seed: int
    ) -> Ids:
        """One completion."""
        with self._lock:
            key = sampling, stops
            if key not in self._queues:
                waiting: queue.Queue[Any] = queue.Queue()
                self._queues[key] = waiting
                arguments = (self._engine(sampling, stops), waiting)
                threading.Thread(target=self._run, args=arguments, daemon=True).start()
        answer: queue.Queue[Ids] = queue.Queue()
        self._queues[key].put((prompt, limit, seed, answer))
        return answer.get()

    def row(
        self, sampling: SamplingConfig, stops: frozenset[int], prompt: Ids
    ) -> TokenDistribution:
        """The distribution after a prompt."""
        with self._model:
            return self._engine(sampling, stops).score(prompt, (0,))[0]

    def known(self, prompt: Ids) -> list[float]:
        """The model's own log-probability of each token but the first."""
        with self._model:
            rows = self._engine(SamplingConfig(), self.stops).score(prompt[:1], prompt[1:])
        return [math.log(row.prob(i)) for row, i in zip(rows, prompt[1:], strict=True)]

    def _engine(self, sampling: SamplingConfig, stops: frozenset[int]) -> TransformersEngine:
        key = sampling, stops
        if key not in self._engines:
            self._engines[key] = TransformersEngine(
                self._first.model, self.tokenizer, sampling, stop_ids=stops, max_rows=64,
                policy_digest=self.digest,
            )  # fmt: skip
        return self._engines[key]

    def _run(self, engine: TransformersEngine, waiting: queue.Queue[Any]) -> None:
        asked: dict[int, queue.Queue[Ids]] = {}

        def requests() -> Iterator[SampleRequest | None]:
            while True:
                try:
                    prompt, limit, seed, answer = waiting.get(block=not asked)
                except queue.Empty:
                    yield None
                    continue
                key = next(self._keys)
                asked[key] = answer
                yield SampleRequest(key, prompt, (), limit, (seed,))

        for request, (ids,) in engine.sample(requests()):
            asked.pop(request.key).put(ids)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    loaded: dict[str, Batches] = {}
    folder = ""
    lock = threading.Lock()

    def log_message(self, *_: Any) -> None:
        pass

    @property
    def asked_for(self) -> str:
        """The folder of the model: another process may name it."""
        return self.headers.get("x-model", self.folder)

    @property
    def batches(self) -> Batches:
        with self.lock:
            if self.asked_for not in self.loaded:
                self.loaded[self.asked_for] = Batches(self.asked_for)
            return self.loaded[self.asked_for]

    def do_GET(self) -> None:
        entry = {"id": "served", "owned_by": "vllm", "root": self.asked_for, "max_model_len": 1024}
        self._send({"data": [entry]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/tokenize":
            text = asked["prompt"]
            ids = self.batches.tokenizer(text, add_special_tokens=False)["input_ids"]
            return self._send({"tokens": ids})
        if self.path == "/v1/chat/completions":
            return self._chat(asked)
        return self._send({"choices": [self._complete(asked)]})

    def _chat(self, asked: dict[str, Any]) -> None:
        batches, limit = self.batches, asked["max_tokens"]
        ids = batches.tokenizer.apply_chat_template(
            asked["messages"], add_generation_prompt=True, return_dict=False
        )
        if len(ids) + limit > batches.context:
            return self._send({"error": f"longer than {batches.context} tokens"}, 400)
        sampling = SamplingConfig(temperature=asked["temperature"])
        said = batches.rollout(sampling, batches.stops, tuple(ids), limit, 0)
        text = batches.tokenizer.decode(said, skip_special_tokens=True)
        end = "stop" if said[-1] in batches.stops else "length"
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": end}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(said)}
        return self._send({"choices": [choice], "usage": usage})

    def _complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        names = ("temperature", "top_p", "min_p")
        kept = {name: asked[name] for name in names}
        sampling = SamplingConfig(top_k=max(0, asked["top_k"]), **kept)
        prompt, stops = tuple(asked["prompt"]), frozenset(asked["stop_token_ids"])
        seed = asked["seed"] if asked["seed"] is not None else int.from_bytes(os.urandom(7), "big")
        ids = self.batches.rollout(sampling, stops, prompt, asked["max_tokens"], seed)
        choice: dict[str, Any] = {
            "token_ids": list(ids),
            "finish_reason": "stop" if ids[-1] in stops else "length",
            "prompt_token_ids": asked["prompt"],
        }
        if asked.get("prompt_logprobs"):
            known = self.batches.known(prompt)
            choice["prompt_logprobs"] = [
                None, *({str(i): {"logprob": lp}} for i, lp in zip(prompt[1:], known, strict=True))
            ]  # fmt: skip
        if asked.get("logprobs"):
            row = self.batches.row(sampling, stops, prompt)
            size = len(self.batches.tokenizer)
            width = size if asked["logprobs"] == -1 else asked["logprobs"]
            top = dict(zip(row.ids[:width].tolist(), row.probs[:width].tolist(), strict=True))
            others = (i for i in range(size) if row.prob(i) == 0)
            listed = {f"token_id:{i}": math.log(p) for i, p in top.items()}
            listed |= {f"token_id:{i}": -9999.0 for i in islice(others, width - len(top))}
            listed.setdefault(f"token_id:{ids[0]}", math.log(row.prob(ids[0])))
            choice["logprobs"] = {"top_logprobs": [listed]}
        return choice

    def _send(self, reply: Any, status: int = 200) -> None:
        data = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *_: Any) -> None:
        """Whoever asked is gone: nobody is to be told."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    Handler.folder = args.folder
    print("serving", args.folder, flush=True)
    Server(("127.0.0.1", args.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
