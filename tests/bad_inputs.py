"""What the table of bad inputs is made with: a folder for each, the commands, and causes.

A cause is the place in `pts` or `align` that raises. Where faults are gathered and raised together
it is the fault's text with its values taken out.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import align.cli
import pts.cli.main
from pts.errors import PTSError, outside

ROOT = Path(__file__).parents[1]
MOST_LINES = 25
MOST_SECONDS = 60.0

GATHERED = {
    ("pts/algorithm/question.py", "search_question"),
    ("pts/cli/settings.py", "raise_all"),
    ("pts/config.py", "parse_settings"),
    ("pts/data/problems.py", "load_problems"),
    ("pts/data/rows.py", "raise_all"),
    ("pts/engines/registry.py", "make_engine"),
    ("pts/engines/server/endpoints.py", "base_urls"),
    ("pts/engines/server/probe.py", "find"),
    ("pts/engines/tabular.py", "__post_init__"),
    ("pts/engines/transformers/loading.py", "_loaded"),
    ("pts/engines/transformers/loading.py", "_model"),
    ("pts/runtime/completions.py", "check"),
    ("pts/runtime/completions.py", "of"),
    ("pts/runtime/export.py", "export_dataset"),
    ("pts/runtime/processes.py", "check"),
    ("pts/runtime/sample.py", "sample"),
    ("pts/runtime/search.py", "search"),
    ("pts/runtime/session.py", "open"),
    ("pts/verifiers/code/verifier.py", "__init__"),
    ("pts/verifiers/registry.py", "_code"),
    ("align/pipeline/check.py", "_check_chats"),
    ("align/pipeline/check.py", "_check_task"),
    ("align/pipeline/check.py", "check_recipe"),
    ("align/pipeline/recipe.py", "parse_recipe"),
    ("align/run_folder.py", "open"),
    ("align/run_folder.py", "read_manifest"),
    ("align/tasks/files.py", "__init__"),
    ("align/tasks/word_problems/task.py", "__init__"),
    ("align/tasks/word_problems/task.py", "_check"),
    ("align/training/chat_rows.py", "validate_rows"),
}
"""Functions that raise what others have found."""


class UsageFault(Exception):
    """What the commands' parser says of their options."""


class TookTooLong(BaseException):
    """A call that does not end. No `except Exception` on its way holds it up."""


@dataclass(frozen=True)
class Bad:
    """A bad input: what is done with it, and words of the message that names it.

    The first words stand on the line of the fault that is meant.
    """

    name: str
    call: Callable[[Place], object]
    says: tuple[str, ...]


def bad(name: str, call: Callable[[Place], object], *says: str) -> Bad:
    return Bad(name, call, says)


@dataclass(frozen=True)
class Outcome:
    """What came of a bad input."""

    fault: str
    """What is wrong with how it was told; empty if nothing is."""
    message: str
    cause: str
    seconds: float


def outcome(entry: Bad, folder: Path, shared: Shared) -> Outcome:
    """Make the bad input in a new folder, use it, and see how it is told."""
    folder.mkdir()
    began = time.monotonic()
    try:
        with _watched():
            entry.call(Place(folder, shared))
    except (PTSError, UsageFault) as error:
        message = getattr(error, "told", str(error))
        return Outcome(_wrong(entry, message), message, cause(error, entry.says[0]), _since(began))
    except TookTooLong:
        return Outcome(f"did not end in {MOST_SECONDS:g} s", "", "", _since(began))
    except Exception as error:
        message = outside(error)
        if message is None:
            return Outcome(traceback.format_exc(limit=-4), "", "", _since(began))
        return Outcome(_wrong(entry, message), message, cause(error, entry.says[0]), _since(began))
    return Outcome("nothing was said", "", "", _since(began))


def _since(began: float) -> float:
    return time.monotonic() - began


def _wrong(entry: Bad, message: str) -> str:
    faults = [f"{part!r} is not in the message" for part in entry.says if part not in message]
    if len(message.splitlines()) > MOST_LINES:
        faults.append(f"{len(message.splitlines())} lines")
    return "; ".join(faults)


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def cause(error: BaseException, words: str) -> str:
    """Where an error was raised; for what was gathered, the text of the fault that is meant."""
    message = str(error)
    if isinstance(error, UsageFault):
        return "usage: " + bare(message)
    frames = [
        (Path(frame.filename).relative_to(ROOT).as_posix(), frame)
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(ROOT)
    ]
    ours = [(file, frame) for file, frame in frames if file.startswith(("pts/", "align/"))]
    file, frame = ours[-1]
    if (file, frame.name) not in GATHERED:
        return f"{file}:{frame.lineno}"
    lines = [line for line in message.splitlines() if words in line]
    return bare(lines[0] if lines else message)


def bare(line: str) -> str:
    """A message without its values (quoted text, paths, numbers, lists), keys and hints."""
    line = re.sub(r"; (did you mean|known:|it has) .*", "", line.strip())
    line = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "‹›", line)
    line = re.sub(r"(?<!\w)/[^\s:,;]+", "…", line)
    line = re.sub(r"\b0x\w+|-?\d[\d,._]*|\b(nan|false)\b", "‹›", line)
    line = re.sub(r"^…, (line|row) ‹›: ", "", line)
    line = re.sub(r"^(\S+: )+", "", line)
    line = re.sub(r"(‹›,? )+‹›", "‹›", line)
    line = re.sub(r"[\[{(]+‹›[^()]*?[\]})]+", "‹›", line)
    return re.sub(r"^got .*?; ", "got …; ", line)


class Place:
    """Where one bad input lies."""

    def __init__(self, folder: Path, shared: Shared) -> None:
        self.folder = folder
        self.shared = shared

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, content: str | bytes | Mapping[str, Any]) -> Path:
        """A new file: text, bytes, or a JSON object."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding="utf-8")
        return path

    def rows(self, *rows: object, name: str = "rows.jsonl") -> Path:
        """A file of JSON lines; text and bytes stand for themselves."""
        lines = [row if isinstance(row, str | bytes) else json.dumps(row) for row in rows]
        return self.write(
            name, b"".join((x.encode() if isinstance(x, str) else x) + b"\n" for x in lines)
        )

    def copy(self, folder: Path, name: str = "copy") -> Path:
        """A copy of a shared folder to be damaged."""
        return Path(shutil.copytree(folder, self.folder / name))

    def pts(self, *words: object) -> None:
        """Run the `pts` command."""
        _command(pts.cli.main, "pts", words)

    def align(self, *words: object) -> None:
        """Run the `align` command."""
        _command(align.cli, "align", words)

    def search(self, *words: object, command: str = "search", **options: object) -> None:
        """Run `pts search` with sound options but for those that are given."""
        given: dict[str, object] = {
            "model": self.shared.model,
            "problems": self.shared.sums,
            "verifier": r"exact:(\d+)",
            "output": self.folder / "out",
            **options,
        }
        told = [part for key, value in given.items() for part in (f"--{key}", value)]
        self.pts(command, *told, "--quiet", "max_new_tokens=8", *words)

    def recipe(self, **sections: Any) -> Path:
        """A recipe's file, sound but for the given sections (None: left out)."""
        data: dict[str, Any] = {
            "name": "mine",
            "model": {"path": str(self.shared.model)},
            "task": {"kind": "word_problems"},
            **sections,
        }
        held = {key: value for key, value in data.items() if value is not None}
        return self.write("recipe.yaml", json.dumps(held))

    def check(self, *overrides: str, **sections: Any) -> None:
        """Run `align check` on a recipe with the given sections."""
        self.align("check", self.recipe(**sections), *overrides)


def _command(module: Any, name: str, words: tuple[object, ...]) -> None:
    """Run a command in this process and raise what it told."""
    caught: list[BaseException] = []

    def keeping(say: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def kept(error: BaseException) -> Any:
            caught.append(error)
            return say(error)

        return kept

    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", [name, *map(str, words)]),
        mock.patch.object(module, "told", keeping(module.told)),
        mock.patch.object(module, "outside", keeping(module.outside)),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            module.main()
        except SystemExit as leave:
            status = leave.code or 0
    if not status:
        return
    assert status == 2, f"exit status {status}"
    said = err.getvalue()
    if not caught:
        usage, _, fault = said.partition("Error: ")
        assert usage.startswith("Usage: "), said
        raise UsageFault(fault.strip())
    assert re.search(r"^(error|\d+ errors):$", said, re.MULTILINE), said
    caught[0].told = said  # type: ignore[attr-defined]
    raise caught[0]


class Shared:
    """What bad inputs are copies of, or used with; each is made once, when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def model(self) -> Path:
        """A random model of two layers and its tokenizer, which has a chat template."""
        from tests.pts.tiny_models import tiny, tiny_tokenizer

        folder = self._folder / "model"
        tiny("phi3").save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """That model and its tokenizer, for reading only."""
        from pts import load_model_and_tokenizer

        found: tuple[Any, Any] = load_model_and_tokenizer(self.model)
        return found

    @cached_property
    def adapter(self) -> Path:
        """A LoRA adapter of the model."""
        from peft import LoraConfig, get_peft_model

        from tests.pts.tiny_models import tiny

        lora = get_peft_model(tiny("phi3"), LoraConfig(r=2, target_modules=["qkv_proj"]))
        lora.peft_config["default"].base_model_name_or_path = str(self.model)
        lora.save_pretrained(self._folder / "adapter")
        return self._folder / "adapter"

    @cached_property
    def sums(self) -> Path:
        path = self._folder / "sums.jsonl"
        rows = [{"id": f"s{k}", "prompt": f"{k}+{k}=", "reference": str(2 * k)} for k in range(4)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    @cached_property
    def run(self) -> Path:
        """A finished search with pairs."""
        return self._searched("run")

    @cached_property
    def steps(self) -> Path:
        """A finished search of steps."""
        return self._searched("steps", unit="step", criteria=("path",))

    def _searched(self, name: str, **changes: Any) -> Path:
        import pts as api
        from tests.pts.scripted import ScriptedEngine, judge_odd, problems
        from tests.pts.slow_search import CONFIG

        config, folder = CONFIG.model_copy(update=changes), self._folder / name
        asked = problems(6)
        api.search(asked, ScriptedEngine(8), judge_odd, config, output=folder, progress=False)
        return folder

    @cached_property
    def whole(self) -> Path:
        """A finished run of `align`, without its models."""
        from tests.align.runs import write_run

        return write_run(self._folder / "whole")

    @cached_property
    def trained(self) -> Path:
        """The manifest of a run whose stage `sft` is done, with that stage's model."""
        from align.context import StageResult
        from align.pipeline.recipe import load_recipe
        from align.run_folder import Manifest

        folder = self._folder / "trained"
        shutil.copytree(self.model, folder / "sft" / "model")
        model = folder / "sft" / "model"
        (self._folder / "trained.tmp").mkdir()
        staged = self._folder / "trained.tmp"
        with Manifest.open(staged, load_recipe("phi-nano")) as manifest:
            shutil.move(folder / "sft", staged / "sft")
            model = staged / "sft" / "model"
            manifest.add("sft", {"a": 1}, StageResult(model, {"rows": 3}, (model,)), 1.0)
        shutil.rmtree(folder)
        staged.rename(folder)
        return folder

    @cached_property
    def code(self) -> str:
        """The verifier of code with a sandbox that works here."""
        from tests.pts.verifiers.code_isolation import available

        return f"code:timeout=1,isolation={available()}"


def closed_port() -> str:
    """The URL of a port on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@contextlib.contextmanager
def served(replies: Mapping[str, tuple[int, object]]) -> Iterator[str]:
    """A server with fixed replies by path: a status, and JSON or text. Its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = replies.get(self.path, (404, {"error": "not found"}))
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
