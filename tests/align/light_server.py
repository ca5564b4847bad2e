"""A process that serves a model's folder for tests, whose model runs in the tests' own process.

    python tests/align/light_server.py FOLDER --port 8001 --backend http://127.0.0.1:8000

It starts at once, as it imports nothing heavy: it passes requests on to a `model_server.Server`.
`--dies FILE:N` ends it without a word after N requests, once: the file then tells that it did.
`--child FILE` starts another process and writes both ids.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    backend: str
    folder: str
    dies: tuple[Path, int] | None
    served = count(1)

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._pass_on(None)

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["content-length"]))
        if self.dies and not self.dies[0].exists() and next(self.served) > self.dies[1]:
            self.dies[0].write_text("died")
            print("out of luck", flush=True)
            os._exit(3)
        self._pass_on(asked)

    def _pass_on(self, asked: bytes | None) -> None:
        request = urllib.request.Request(self.backend + self.path, asked, {"x-model": self.folder})
        with urllib.request.urlopen(request) as reply:
            data = reply.read()
        self.send_response(200)
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
    parser.add_argument("--backend", required=True)
    parser.add_argument("--dies", default="")
    parser.add_argument("--child", default="")
    args = parser.parse_args()
    if args.child:
        child = subprocess.Popen(["sleep", "600"])
        Path(args.child).write_text(f"{os.getpid()} {child.pid}")
    place, _, limit = args.dies.rpartition(":")
    Handler.dies = (Path(place), int(limit)) if args.dies else None
    Handler.backend, Handler.folder = args.backend, args.folder
    print("serving", args.folder, flush=True)
    Server(("127.0.0.1", args.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
