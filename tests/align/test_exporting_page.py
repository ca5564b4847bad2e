"""The code of docs/exporting.md runs: on an export, and against a stand-in for a chat server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from align.export.run import ExportConfig, export
from tests.align.exports import write_run
from tests.align.scripted_chat import ScriptedChat

PAGE = Path(__file__).parents[2] / "docs" / "exporting.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
CLIENTS = [block for block in BLOCKS if "/v1" in block]
QUESTION = "Tom has 3 apples and buys 4. How many has he?"


def test_transformers_runs_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [block] = [block for block in BLOCKS if "from transformers" in block]
    export(write_run(tmp_path / "run"), tmp_path / "exported", ExportConfig())
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block, "exporting.md", "exec"), names)
    assert len(names["answer"]) <= 140  # type: ignore[arg-type]


@pytest.mark.parametrize("block", CLIENTS, ids=lambda block: block.split()[1])
def test_clients_talk_to_a_server(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    package = block.split()[1]
    pytest.importorskip(package, reason=f"pip install {package.replace('_', '-')}")
    with ScriptedChat(lambda text, k: "The answer is 7.") as server:
        code = block.replace("http://127.0.0.1:8080", server.url)
        exec(compile(code, "exporting.md", "exec"), {})
    assert capsys.readouterr().out == "The answer is 7.\n"
    assert server.bodies[0]["messages"][-1]["content"] == QUESTION
    assert server.bodies[0]["model"] == "phi-nano"


def test_all_blocks_are_run() -> None:
    assert len(CLIENTS) == len(BLOCKS) - 1 == 3
