"""`pts search --server`: a run on servers from the shell, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pts.cli import main as cli
from pts.runtime.results import read_results
from tests.pts.engines.conftest import MACHINES
from tests.pts.engines.faulty_server import FaultyServer

SETTINGS = ["max_new_tokens=24", "top_p=0.95", "filter_rollouts=8", "max_rollouts=16"]
SETTINGS += ["confirm_rollouts=4", "p_min=0.05", "p_max=0.95"]


def searched(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["pts", "search", *map(str, arguments)])
    monkeypatch.setattr("pts.engines.server.engine.DRAWS", 40)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_a_search_on_two_servers(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"id": "one", "prompt": "m0", "reference": "right"}))
    with FaultyServer(MACHINES) as one, FaultyServer(MACHINES) as two:
        status = searched(
            monkeypatch, "--server", one.url, "--server", two.url, "--model", tokenizer_folder,
            "--problems", asked, "--verifier", "exact:(right|wrong)", "--output",
            tmp_path / "run", "--quiet", *SETTINGS,
        )  # fmt: skip
        assert status == 0
        assert min(one.asked, two.asked) > 0
    (result,) = read_results(tmp_path / "run" / "results.jsonl")
    assert result.problem_id == "one"


def test_seeds_can_be_left_out_and_a_revision_is_another_policy(
    tokenizer_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"id": "one", "prompt": "m0", "reference": "right"}))
    with FaultyServer(MACHINES) as server:
        arguments = [
            "--server", server.url, "--model", tokenizer_folder, "--problems", asked, "--verifier",
            "exact:(right|wrong)", "--output", tmp_path / "run", "--quiet", "--no-seeds", *SETTINGS,
        ]  # fmt: skip
        assert searched(monkeypatch, *arguments, "--revision", "one") == 0
        assert server.asked > server.seeded == 0
        assert searched(monkeypatch, *arguments, "--revision", "two") == 2
    assert "policy" in capsys.readouterr().err


def test_options_of_servers_need_servers(
    tokenizer_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = searched(
        monkeypatch, "--model", tokenizer_folder, "--problems", tmp_path / "none.jsonl",
        "--verifier", "exact:(right)", "--output", tmp_path / "run", "--no-seeds",
        "--in-flight", "8", "--served-name", "x", "--revision", "2",
    )  # fmt: skip
    assert status == 2
    told = capsys.readouterr().err
    for name in ("--no-seeds", "--in-flight", "--served-name", "--revision"):
        assert f"{name} is for servers" in told


def test_a_folder_without_a_tokenizer_is_told_before_any_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"id": "one", "prompt": "m0", "reference": "right"}))
    status = searched(
        monkeypatch, "--server", "http://127.0.0.1:1", "--model", tmp_path, "--problems", asked,
        "--verifier", "exact:(right)", "--output", tmp_path / "run",
    )  # fmt: skip
    assert status == 2
    assert "with --server, --model is the folder" in capsys.readouterr().err
