"""A judge that is scripted: a real HTTP server in a thread, with known scores and known vices.

A reply is scored by the text in it, `[acc=4 sty=3 det=5]`. A question may hold `[vice NAME …]`,
which plants what goes wrong with its calls. The server reads the prompt as a model would have to:
replies are what stands behind a bar under `# Replies`.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MARKS = re.compile(r"\[acc=(\d) sty=(\d) det=(\d)\]")
VICE = re.compile(r"\[vice ([\w ]+)\]")
LATE = 3.0
"""Seconds that a late reply takes: longer than the tests wait for one."""
REFUSAL = "I'm sorry, but I cannot score this."


def read_prompt(prompt: str) -> tuple[str, list[str]]:
    """The conversation and the replies that a prompt holds, without their bars."""
    parts = re.split(r"^# (\w+)$", prompt, flags=re.MULTILINE)
    assert parts[1::2] == ["Conversation", "Replies", "Guideline"], parts[1::2]
    replies = re.split(r"^Reply \d+:$", parts[4], flags=re.MULTILINE)[1:]
    return parts[2], ["\n".join(re.findall(r"^\| (.*)$", r, re.MULTILINE)) for r in replies]


class ScriptedJudge:
    """`with ScriptedJudge() as judge: ... judge.url`; `asked` counts calls, by conversation."""

    def __init__(self, key: str = "", usage: bool = True) -> None:
        self.key, self.usage, self.delay = key, usage, 0.0
        self.asked: Counter[str] = Counter()
        self.turned_away = 0
        self.most_open = self.open = 0
        self.bodies: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                body = json.loads(self.rfile.read(length))
                sent = self.headers.get("authorization", "")
                status, reply, headers = judge.answer(self.path, sent, body)
                data = json.dumps(reply).encode()
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("content-length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except ConnectionError:  # the client has gone: it was late
                    pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ScriptedJudge:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(
        self, path: str, sent: str, body: dict[str, Any]
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, JSON and headers for one request."""
        assert path == "/v1/chat/completions"
        if self.key and sent != f"Bearer {self.key}":
            return 401, {"error": f"wrong key {sent}"}, {}
        [message] = body["messages"]
        prompt = message["content"]
        conversation, replies = read_prompt(prompt)
        with self._lock:
            self.bodies.append(body)
            self.asked[prompt] += 1
            tries = self.asked[prompt]
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        try:
            time.sleep(self.delay)
            return self._say(prompt, conversation, replies, tries)
        finally:
            with self._lock:
                self.open -= 1

    def _say(
        self, prompt: str, conversation: str, replies: list[str], tries: int
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        vice, *more = (VICE.findall(conversation) or ["none"])[0].split()
        again = "An earlier answer of yours could not be read" in prompt
        lasting = more == ["always"]
        scores = [list(map(int, MARKS.findall(reply)[0])) for reply in replies]
        if vice == "position":
            scores = [[5, 5, 5], *([[1, 1, 1]] * (len(replies) - 1))]
        elif vice == "length":
            longest = max(map(len, replies))
            scores = [[5, 5, 5] if len(reply) == longest else [2, 2, 2] for reply in replies]
        if vice == "busy" and tries == 1:
            with self._lock:
                self.turned_away += 1
            return 429, {"error": "later"}, {"retry-after": "0.01"}
        if vice == "content":
            return 400, {"error": {"code": "content_filter"}}, {}
        text, end = json.dumps(reply_json(scores)), "stop"
        if vice == "range":
            text = text.replace('"accuracy": {"1": ', '"accuracy": {"1": 1')
        if not again or lasting:
            if vice == "malformed":
                text = text[:-1]
            elif vice == "refuse":
                text = REFUSAL
            elif vice == "cut":
                end = "length"
            elif vice == "late":
                time.sleep(LATE)
        if vice == "fence":
            text = f"Here are the scores.\n```json\n{text}\n```"
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": end}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(text)}
        return 200, {"choices": [choice], **({"usage": usage} if self.usage else {})}, {}


def reply_json(scores: list[list[int]]) -> dict[str, Any]:
    """What a judge that keeps to the form replies."""
    numbers = [str(k) for k in range(1, len(scores) + 1)]
    columns = zip(*scores, strict=True)
    named = zip(("accuracy", "style", "detail"), columns, strict=True)
    faults: dict[str, Any] = {k: [] for k in numbers}
    faults["1"] = [{"kind": "stylistic", "fault": "a, }"}]
    return {
        "faults": faults,
        **{name: dict(zip(numbers, column, strict=True)) for name, column in named},
    }
