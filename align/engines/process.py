"""A server that runs while it is needed: started, waited for, watched, ended.

    with running("vllm serve {model} --port {port}", folder, Path("server.log"), 600) as server:
        server.url

It ends with the block, whatever ends that, and with this process: a supervisor holds it by a pipe
(`align.engines.supervisor`), which is closed even when this process is killed.
"""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from align.engines import supervisor
from pts.errors import EngineError

SHOWN = 12
"""Last lines of the log that an error shows."""
LONGEST = 400
"""Characters of such a line."""


class ServerProcess:
    """A server's process and its URL."""

    def __init__(self, command: str, model: Path, log: Path) -> None:
        self.command, self.log, port = command, log, _free_port()
        self.url = f"http://127.0.0.1:{port}"
        values = {"{model}": str(model), "{port}": str(port)}
        words = [_filled(word, values) for word in shlex.split(command)]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ {shlex.join(words)}\n".encode())
            file.flush()
            self._start = file.tell()
            self._process = subprocess.Popen(
                [sys.executable, supervisor.__file__, *words],
                stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def ended(self) -> EngineError | None:
        """The error to raise if the server is gone; None while it runs."""
        status = self._process.poll()
        if status is None:
            return None
        how = f"was ended by signal {status - 128}" if status > 128 else f"exited with {status}"
        return self._error(f"the server {how}, though it is needed; the same command continues")

    def _error(self, what: str) -> EngineError:
        error = EngineError(f"{self.command!r}: {what}; see {self.log}")
        with self.log.open("rb") as file:
            file.seek(self._start)
            lines = file.read().decode(errors="replace").split("\n")
        for line in [line for line in lines if line.strip()][-SHOWN:]:
            error.add_note(f"| {line[:LONGEST]}")
        return error

    def wait(self, seconds: float, progress: bool) -> None:
        """Return once the server answers.

        Raises:
            EngineError: it ended before it did, or takes too long; with the end of its log.
        """
        start, shown = time.monotonic(), f"waiting for {self.command!r}"
        line: Any = Console(stderr=True).status(shown) if progress else nullcontext()
        with line as status:
            while not self._answers():
                passed = time.monotonic() - start
                error = self.ended()
                if error is not None:
                    raise error
                if passed > seconds:
                    raise self._error(
                        f"no answer in {seconds:g} s; give a longer ready_timeout, or a command "
                        "whose server starts"
                    )
                if status is not None:
                    status.update(f"{shown}: {passed:.0f} of {seconds:g} s")
                time.sleep(0.2)

    def _answers(self) -> bool:
        local = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with local.open(f"{self.url}/v1/models", timeout=5) as reply:
                return bool(json.load(reply)["data"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def stop(self) -> None:
        """End the server and all that it started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=2 * supervisor.PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def running(
    command: str, model: Path, log: Path, seconds: float, progress: bool = False
) -> Iterator[ServerProcess]:
    """A server of the model in a folder, once it answers; it ends with the block.

    Raises:
        EngineError: it does not answer within that many seconds, with the end of its log.
    """
    server = ServerProcess(command, model, log)
    try:
        server.wait(seconds, progress)
        yield server
    finally:
        server.stop()


def _filled(word: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        word = word.replace(name, value)
    return word


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
