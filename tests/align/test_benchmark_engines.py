"""Benchmarks by other engines: servers, and engines of one's own, beside transformers here."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from align.benchmarks.command import measure
from align.benchmarks.run import run_benchmark
from align.benchmarks.settings import Benchmark
from align.errors import RecipeError, StageError
from align.models.engines import loader
from align.settings import ModelConfig
from pts.config import SamplingConfig
from pts.engines.registry import ENGINES, EngineKind
from pts.engines.transformers.engine import TransformersEngine
from pts.errors import ConfigError, EngineError
from tests.align import tiny
from tests.align.model_server import Handler, Server
from tests.align.test_engines import _few_draws, backend, command  # noqa: F401

CHOICE = """
kind: choice
prompt: "The capital of {{ q }} is"
choices: options
gold: right
shots: 1
"""
GENERATE = """
kind: generate
prompt: "{{ q }}?"
reference: options
score: answers
max_new_tokens: 6
"""
ROWS = [
    {"q": "France", "options": ["Paris", "Rome"], "right": 0},
    {"q": "Italy", "options": ["Oslo", "Rome", "Bern"], "right": 1},
    {"q": "Norway", "options": ["Oslo", "B"], "right": 0},
    {"q": "Spain", "options": ["Madrid", "Bonn"], "right": 0},
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A benchmark of each kind on the same rows."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in (("pick", CHOICE), ("write", GENERATE)):
        (tmp_path / f"{name}.yaml").write_text(f"source: {rows}\n{text}")
    return [str(tmp_path / "pick.yaml"), str(tmp_path / "write.yaml")]


def likelihoods(folder: Path) -> dict[str, list[float]]:
    lines = (folder / "likelihoods.jsonl").read_text().splitlines()
    return {row["id"]: row["likelihoods"] for row in map(json.loads, lines)}


def served(text: str) -> str:
    return json.dumps({"kind": "server", "command": text})


def test_a_server_gives_the_same_numbers_and_its_results_are_its_own(
    policy: Path,
    files: list[str],
    backend: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    ours, _ = measure(policy, files, [], here, None, False)
    theirs, _ = measure(policy, files, [], there, None, False, served(command(backend)))
    assert theirs["benchmarks"] == ours["benchmarks"]
    known = likelihoods(here / "pick")
    assert likelihoods(there / "pick") == {
        name: pytest.approx(values, abs=1e-4) for name, values in known.items()
    }
    answers = [
        [json.loads(line)["filtered_resps"] for line in file.read_text().splitlines()]
        for file in (f / "write" / "samples_write.jsonl" for f in (here, there))
    ]
    assert answers[0] == answers[1]
    assert "engine" not in json.loads((here / "pick" / "task.json").read_text())
    with pytest.raises(StageError, match="pick: holds results of other engine; give another"):
        measure(policy, files, [], there, None, False)


def test_a_server_that_dies_stops_a_benchmark_and_the_same_command_continues(
    policy: Path,
    files: list[str],
    backend: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("align.benchmarks.run.CHUNK", 1)
    expected, _ = measure(policy, files, [], tmp_path / "here", None, False)
    # Two connections of some 45 requests, the trial of a choice, then some of nine choices.
    engine = served(command(backend, "--dies", f"{tmp_path / 'died'}:94"))
    out = tmp_path / "there"
    with pytest.raises(EngineError, match="the server exited with 3, though it is needed"):
        measure(policy, files, [], out, None, False, engine)
    before = (out / "pick" / "likelihoods.jsonl").read_text()
    assert 0 < before.count("\n") < len(ROWS)
    found, _ = measure(policy, files, [], out, None, False, engine)
    assert (out / "pick" / "likelihoods.jsonl").read_text().startswith(before)
    assert found["benchmarks"] == expected["benchmarks"]


def test_a_server_that_cannot_score_is_told_before_any_question(
    policy: Path, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = Handler._complete

    def without(self: Handler, asked: dict[str, Any]) -> dict[str, Any]:
        return complete(self, {k: v for k, v in asked.items() if k != "prompt_logprobs"})

    monkeypatch.setattr(Handler, "_complete", without)
    monkeypatch.setattr(Handler, "folder", str(policy))
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    engine = json.dumps({"kind": "server", "urls": [url]})
    with pytest.raises(StageError) as caught:
        measure(policy, files[::-1], [], tmp_path / "out", None, False, engine)
    server.shutdown()
    server.server_close()
    said = str(caught.value)
    assert "pick: multiple choice is decided by log-likelihoods, which engine server does" in said
    assert "no prompt_logprobs" in said
    assert "use --engine transformers, or leave this benchmark out" in said
    assert not (tmp_path / "out" / "write").exists(), "which stands before it"


def test_a_stage_is_measured_as_its_run_was_evaluated(
    policy: Path, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(monkeypatch, tokenizer=True)
    run = tmp_path / "run"
    stage = run / "sft"
    stage.mkdir(parents=True)
    (stage / "model").symlink_to(policy)
    for recipe, engine in (
        ({"evaluate": {}}, None),
        ({"engine": {"kind": "mine"}, "evaluate": {}}, "mine"),
        ({"engine": {"kind": "mine"}, "evaluate": {"engine": {"kind": "transformers"}}}, None),
    ):
        (run / "manifest.json").write_text(json.dumps({"stages": {}, "recipe": recipe}))
        found, _ = measure(stage, files[1:], [], tmp_path / "out" / f"{engine}", None, False)
        task = json.loads((found["folder"] / "write" / "task.json").read_text())
        assert task.get("engine", {}).get("kind") == engine


class Rows:
    """An engine of one's own: no more than the protocol, around one of transformers."""

    reproducible = True

    def __init__(self, inner: TransformersEngine, sampling: SamplingConfig) -> None:
        self.inner, self.sampling = inner, sampling
        self.policy_digest, self.stop_ids = inner.policy_digest, inner.stop_ids
        self.encode, self.decode = inner.encode, inner.decode
        self.encode_text, self.token_texts = inner.encode_text, inner.token_texts

    def score(self, prompt: Any, completion: Any) -> Any:
        self.inner.sampling = self.sampling
        return self.inner.score(prompt, completion)

    def sample(self, requests: Any) -> Iterator[Any]:
        self.inner.sampling = self.sampling
        return self.inner.sample(requests)


def own(monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    def make(argument: str, sampling: SamplingConfig) -> Rows:
        made = Rows(TransformersEngine.load(argument, sampling), sampling)
        for name in more:
            setattr(made, name, getattr(made.inner, name))
        return made

    monkeypatch.setitem(ENGINES, "mine", EngineKind("mine:PATH", make, ()))


def test_an_engine_of_one_s_own_is_asked_for_rows(
    policy: Path, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(monkeypatch, tokenizer=True)
    expected, _ = measure(policy, files, [], tmp_path / "here", None, False)
    found, _ = measure(policy, files, [], tmp_path / "there", None, False, "mine")
    assert found["benchmarks"] == expected["benchmarks"]
    known = likelihoods(tmp_path / "here" / "pick")
    assert likelihoods(tmp_path / "there" / "pick") == {
        name: pytest.approx(values, abs=1e-4) for name, values in known.items()
    }
    engine = json.loads((tmp_path / "there" / "pick" / "task.json").read_text())["engine"]
    assert engine == {"kind": "mine", "options": {}}


def test_an_engine_without_a_tokenizer_is_told_before_any_question(
    policy: Path, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own(monkeypatch)
    with pytest.raises(StageError, match=r"pick: .* engine mine cannot give for texts: it has no"):
        measure(policy, files, [], tmp_path / "out", None, False, "mine")
    found, _ = measure(policy, files[1:], [], tmp_path / "out", None, False, "mine")
    assert found["benchmarks"][0].questions == len(ROWS)


def test_several_answers_are_drawn_by_the_engine_too(policy: Path, tmp_path: Path) -> None:
    load = loader(policy, ModelConfig(path=str(policy), chat_template="keep"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    benchmark = Benchmark(
        name="drawn", kind="generate", source=str(rows), prompt="{{ q }}?", reference="options",
        score="answers", max_new_tokens=6, temperature=1.0, samples=3,
    )  # fmt: skip
    seen: list[SamplingConfig] = []

    def watched(sampling: SamplingConfig) -> Any:
        seen.append(sampling)
        return load(sampling)

    run_benchmark(benchmark, watched, tmp_path / "out", progress=False)
    assert seen == [SamplingConfig(temperature=1.0, max_new_tokens=6)]


@pytest.mark.parametrize(
    ("engine", "names", "said"),
    [
        ("vlm", [], "engine: no engine 'vlm'; did you mean 'vllm'"),
        ("{kind: server, redy: 1}", [], "engine.server.redy: no such key"),
        ("{kind: server, urls: [foo]}", [], "engine.urls: 'foo' is no base URL"),
        ("{options: {maxrows: 1}}", [], "engine.options: transformers has no option 'maxrows'"),
        ("{kind: server, urls: ['http://a']}", ["lm-eval:pick"], "runs on transformers alone"),
        ("[", [], "--engine: '[' is no YAML"),
    ],
)
def test_faults_of_an_engine_are_told_before_a_model_is_loaded(
    engine: str, names: list[str], said: str, files: list[str], tmp_path: Path
) -> None:
    with pytest.raises((RecipeError, ConfigError)) as caught:
        measure(tmp_path / "no-model", [*files, *names], [], tmp_path / "o", None, False, engine)
    assert said in str(caught.value)
