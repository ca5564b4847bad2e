"""Engines of recipes: a real server as a process of its own beside transformers in this one."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from rich.console import Console

from align.engines.process import running
from align.engines.settings import ServedEngine
from align.errors import RecipeError
from align.models.engines import load_engine, policy_engines
from align.pipeline import run as pipeline
from align.pipeline.check import check_recipe, sampled_policies
from align.pipeline.recipe import load_recipe, parse_recipe
from align.run_folder import read_manifest
from align.stages.sampling import sample_answers
from pts.config import SamplingConfig
from pts.data.pairs import read_pairs
from pts.engines.digest import model_digest
from pts.engines.registry import ENGINES, EngineKind
from pts.errors import ConfigError, EngineError
from pts.runtime.sample import sample
from tests.align import tiny
from tests.align.model_server import Handler, Server

SERVER = Path(__file__).parent / "light_server.py"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def backend() -> Iterator[str]:
    """Where the models of light servers run: a thread of this process."""
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def command(backend: str, *more: str) -> str:
    words = [sys.executable, str(SERVER), "{model}", "--port", "{port}", "--backend", backend]
    return shlex.join([*words, *more])


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pts.engines.server.engine.DRAWS", 40)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("base"))


def gone(pid: int, seconds: float = 15.0) -> bool:
    """Whether a process ends in time; one that nobody has waited for counts as ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


# What is checked before anything runs

GOOD = "python -m x {model} --port {port}"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["engine=vlm"], "engine: no engine 'vlm'; did you mean 'vllm'?"),
        (["engine=7"], "engine: got 7; give a name, or keys and values"),
        (["pts.engine=7"], "pts.engine: got 7"),
        (["engine=server"], "command, urls: give one of them"),
        ([f"engine={{kind: server, command: '{GOOD}', urls: ['http://a']}}"], "give one of them"),
        ([f"engine={{kind: server, command: '{GOOD}', redy: 1}}"], "engine.server.redy: no such"),
        (["token_dpo.engine=transformers"], "token_dpo.engine: this stage samples nothing"),
        (["engine=vllm"], "engine.kind: vllm is not installed; run: pip install 'three-stage["),
        (["engine={options: {maxrows: 1}}"],
         "engine.options: transformers has no option 'maxrows'; did you mean 'max_rows'?"),
        (["engine={options: {max_rows: 0}}"], "engine.options.max_rows: got 0; give a whole"),
        (["pts.engine={kind: vllm, options: {model: x}}"], "pts.engine.options: model is the"),
        (["engine={kind: vllm, options: {max_logprobs: 5}}"], "max_logprobs must be -1; leave"),
        (["engine.kind=vllm", "sampling.top_p=0.9", "sampling.min_p=0.1"], "set only one of them"),
        (["engine={kind: server, command: 'python {modle} {port}'}"],
         "engine.command: no placeholder {modle}; did you mean '{model}'?"),
        (["engine={kind: server, command: python}"], "engine.command: has no {model} and no {po"),
        (["engine={kind: server, command: 'no-such {model} {port}'}"],
         "engine.command: no program 'no-such' is found; install it"),
        (["engine={kind: server, command: '\"{model} {port}'}"], "cannot be split into words"),
        ([f"engine={{kind: server, command: '{GOOD}', options: {{port: 1}}}}"],
         "engine.options: port is a free one, where the command says {port}; leave it out"),
        ([f"engine={{kind: server, command: '{GOOD} --dtype half', options: {{dtype: x}}}}"],
         "engine.options: dtype is in the command as well (--dtype); give it in one place"),
        ([f"engine={{kind: server, command: '{GOOD}', options: {{max_logprobs: 5}}}}"],
         "engine.options.max_logprobs: got 5, must be -1; leave it out"),
        ([f"engine={{kind: server, command: '{GOOD}', options: {{dtype: null}}}}"],
         "engine.options.dtype: got None; give a text, a number, true, false or a mapping"),
        (["pts.engine={kind: server, urls: [http://a], options: {dtype: half}}"],
         "pts.engine.options.dtype: is a flag of a command; the servers of urls run already"),
        (["engine={kind: vllm, options: {seed: 5}}"], "engine.options: seed is drawn anew at each"),
        (["pts.engine={kind: server, urls: [http://a, foo]}"],
         "pts.engine.urls: 'foo' is no base URL; give e.g. http://localhost:8000"),
        (["evaluate.engine={kind: server, urls: [http://a]}"],
         "evaluate.engine.urls: running servers have one policy, but base, sft, "),
    ],
)  # fmt: skip
def test_faults_are_told_before_a_model_is_loaded(overrides: list[str], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_recipe(load_recipe("phi-nano", overrides))
    assert said in str(caught.value)


def test_options_of_a_server_become_flags_of_its_command() -> None:
    options = {
        "tensor_parallel_size": 2, "quantization": "fp8", "enable_lora": True,
        "enable_prefix_caching": False, "lora-modules": ["a=/x y", "b=/z"],
        "hf_overrides": {"rope": [1]},
    }  # fmt: skip
    config = ServedEngine(kind="server", command="vllm serve {model}", options=options)
    assert shlex.split(config.whole_command) == [
        *("vllm", "serve", "{model}", "--tensor-parallel-size", "2", "--quantization", "fp8"),
        *("--enable-lora", "--no-enable-prefix-caching", "--lora-modules", "a=/x y", "b=/z"),
        *("--hf-overrides", '{"rope": [1]}'),
    ]


def test_an_extra_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    recipe = load_recipe("phi-nano", [f"engine={{kind: server, command: '{GOOD}'}}"])
    with pytest.raises(ConfigError, match=r"engine\.kind: httpx2 .* 'three-stage\[server\]'"):
        check_recipe(recipe)


def test_the_usual_engine_leaves_no_trace_and_others_do() -> None:
    plain = load_recipe("phi-nano")
    assert load_recipe("phi-nano", ["engine=transformers"]).plain() == plain.plain()
    assert "engine" not in json.dumps(plain.plain())
    said = [f"engine={{kind: server, command: '{GOOD}'}}", "pts.engine=transformers"]
    other = load_recipe("phi-nano", said)
    assert parse_recipe(other.plain(), "manifest") == other
    keys = {key: (config.kind, name) for key, config, name in sampled_policies(other)}
    assert keys == {
        "pts.engine": ("transformers", "rejection_sft"),
        "engine": ("server", "full_dpo"),
    }


# Server processes


def test_a_server_is_started_shared_and_ended(base: Path, backend: str, tmp_path: Path) -> None:
    recipe, told = tiny.recipe(base), tmp_path / "pids"
    config = served(command(backend, "--child", str(told)))
    problems = tiny.Sums().problems("test", 4, 0)
    with policy_engines(config, base, recipe.model, tmp_path, few_shot=True) as load:
        assert not told.exists(), "nothing starts before it is needed"
        engine = load(recipe.sampling)
        own, child = map(int, told.read_text().split())
        assert engine.policy_digest == model_digest(base)
        greedy = load(recipe.sampling.model_copy(update={"temperature": 0}))
        assert told.read_text() == f"{own} {child}", "another sampling shares the server"
        found = sample(problems, greedy, tiny.Sums.verifier, n=1, progress=False)
    assert gone(own, 0.5)
    assert gone(child, 0.5)
    assert "serving" in (tmp_path / "server.log").read_text()
    with policy_engines(here(), base, recipe.model, tmp_path, few_shot=True) as load:
        same = load(recipe.sampling.model_copy(update={"temperature": 0}))
        assert same.stop_ids == greedy.stop_ids
        assert [s.rollouts for s in found] == [
            s.rollouts for s in sample(problems, same, tiny.Sums.verifier, n=1, progress=False)
        ]


def served(text: str, **more: Any) -> Any:
    engine = {"kind": "server", "command": text, **more}
    return load_recipe("phi-nano", [f"engine={json.dumps(engine)}"]).engine


def here() -> Any:
    return load_recipe("phi-nano").engine


@pytest.mark.parametrize(
    ("script", "seconds", "said", "note"),
    [
        (
            "print('no memory', flush=True); exit(4)",
            60.0,
            "the server exited with 4",
            "| no memory",
        ),
        ("import os; os.kill(os.getpid(), 9)", 60.0, "was ended by signal 9", ""),
        ("import time; print('hm', flush=True); time.sleep(60)", 4.0, "no answer in 4 s", "| hm"),
    ],
)
def test_a_server_that_does_not_start_is_told_with_its_log(
    script: str, seconds: float, said: str, note: str, tmp_path: Path
) -> None:
    text = shlex.join([sys.executable, "-c", script, "{model}", "{port}"])
    start = time.monotonic()
    log = tmp_path / "server.log"
    with pytest.raises(EngineError, match=said) as caught, running(text, tmp_path, log, seconds):
        pass
    assert str(tmp_path / "server.log") in str(caught.value)
    assert note in "\n".join(getattr(caught.value, "__notes__", []))
    assert time.monotonic() - start < 30


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(EngineError, match="exited with 127") as caught,
        running("/no/such {model} {port}", tmp_path, tmp_path / "server.log", 60),
    ):
        pass
    assert caught.value.__notes__ == ["| /no/such: No such file or directory"]


def test_a_server_ends_with_the_block_whatever_ends_that(backend: str, tmp_path: Path) -> None:
    told = tmp_path / "pids"
    with (
        pytest.raises(KeyboardInterrupt),
        running(command(backend, "--child", str(told)), tmp_path, tmp_path / "server.log", 120),
    ):
        raise KeyboardInterrupt
    assert all(gone(int(pid), 0.5) for pid in told.read_text().split())


def test_killing_the_program_leaves_no_server(backend: str, tmp_path: Path) -> None:
    told = tmp_path / "pids"
    text = command(backend, "--child", str(told))
    code = (
        "import time\nfrom pathlib import Path\nfrom align.engines.process import running\n"
        f"with running({text!r}, Path('model'), "
        f"Path({str(tmp_path / 'server.log')!r}), 120):\n    print('up', flush=True)\n"
        "    time.sleep(600)\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    assert program.stdout is not None
    assert program.stdout.readline() == b"up\n"
    os.killpg(program.pid, signal.SIGKILL)
    program.wait()
    assert all(gone(int(pid)) for pid in told.read_text().split())


def test_running_servers_must_have_the_policy(base: Path, backend: str, tmp_path: Path) -> None:
    other, recipe = tiny.save(tmp_path / "other", seed=1), tiny.recipe(base)
    with running(command(backend), base, tmp_path / "server.log", 120) as server:
        config = served("x")
        config = config.model_copy(update={"command": "", "urls": (server.url,)})
        with policy_engines(config, base, recipe.model, tmp_path) as load:
            assert load(recipe.sampling).policy_digest == model_digest(base)
        with (
            policy_engines(config, other, recipe.model, tmp_path) as load,
            pytest.raises(EngineError, match=f"serves {base}, which is another model than {other}"),
        ):
            load(recipe.sampling)


def test_a_server_that_dies_stops_the_stage_and_the_same_command_continues(
    base: Path, backend: str, tmp_path: Path
) -> None:
    engine = {"kind": "server", "command": command(backend, "--dies", f"{tmp_path / 'died'}:90")}
    context = tiny.context(base, tmp_path / "s", tiny.ParityTask(), rejection_sft={}, engine=engine)

    def draw() -> dict[str, int]:
        with load_engine(context) as loaded:
            return sample_answers(context, loaded, 12, 8)[1]

    with pytest.raises(EngineError, match="the server exited with 3, though it is nee") as caught:
        draw()
    assert "| out of luck" in caught.value.__notes__
    journal = tmp_path / "s" / "answers" / "journal.jsonl"
    before = journal.read_bytes()
    assert draw()["distinct_questions"] == 12
    assert journal.read_bytes().startswith(before), "what is on file is not drawn again"


# Engines in this process


class StandIn:
    """As much of `VLLMEngine` as recipes use."""

    calls: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    in_flight = 9
    policy_digest = "digest"

    def __init__(self, llm: Any, folder: Path, sampling: Any, **options: Any) -> None:
        self.llm, self.sampling = llm, sampling
        self.calls.append(("share" if llm else "load", {"folder": folder, **options}))

    @classmethod
    def load(cls, folder: Path, sampling: Any, **options: Any) -> StandIn:
        made = cls(None, folder, sampling, **options)
        made.llm = "llm"
        return made

    def close(self) -> None:
        self.calls.append(("close", {}))


def test_vllm_is_loaded_once_and_closed_with_the_block(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pts.engines.vllm.VLLMEngine", StandIn)
    config = load_recipe("phi-nano", ["engine={kind: vllm, options: {max_model_len: 99}}"]).engine
    recipe = tiny.recipe(base)
    with policy_engines(config, base, recipe.model, tmp_path) as load:
        first, second = load(recipe.sampling), load(SamplingConfig(temperature=0.0))
    (loaded, one), (shared, two), (closed, _) = StandIn.calls
    assert (loaded, shared, closed) == ("load", "share", "close")
    assert one["folder"] == two["folder"] == base
    assert (one["dtype"], one["max_model_len"]) == ("float32", 99)
    assert one["chat_template"] == two["chat_template"] == tiny.template()
    assert (two["policy_digest"], two["in_flight"]) == ("digest", 9)
    assert (first.sampling, second.sampling.temperature) == (recipe.sampling, 0)


def test_an_engine_of_one_s_own_is_given_the_policy(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def make(argument: str, sampling: SamplingConfig, **options: Any) -> Any:
        given.append((argument, sampling, options))
        return SimpleNamespace(close=lambda: given.append("closed"))

    monkeypatch.setitem(ENGINES, "mine", EngineKind("mine:PATH", make, ("colour",)))
    recipe = load_recipe("phi-nano", ["engine={kind: mine, options: {colour: red}}"])
    check_recipe(recipe)
    with policy_engines(recipe.engine, base, recipe.model, tmp_path) as load:
        load(recipe.sampling)
    assert given == [(str(base), recipe.sampling, {"colour": "red"}), "closed"]
    wrong = load_recipe("phi-nano", ["engine={kind: mine, options: {coulour: red}}"])
    with pytest.raises(RecipeError, match="mine has no option 'coulour'; did you mean 'colour'"):
        check_recipe(wrong)


# The chain

SMALL: dict[str, Any] = {
    "sft": {"num_examples": 160, "batch_size": 8, "learning_rate": 1e-2},
    "rejection_sft": {"num_problems": 6, "samples": 4, "max_steps": 2},
    "pts": {"num_problems": 10, "pairs_from": "uniform"},
    "token_dpo": {"max_steps": 1},
    "full_dpo": {"num_problems": 6, "samples": 4, "max_steps": 1},
    "evaluate": {"problems": 40, "samples": 4, "skip": ["base", "rejection_sft", "token_dpo"]},
    "stages": ["sft", "rejection_sft", "pts", "token_dpo", "full_dpo"],
}  # fmt: skip


def chain(base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """Run all of it: stages, evaluations and table."""
    monkeypatch.setattr(pipeline, "build_task", lambda task: tiny.ParityTask())
    monkeypatch.setattr(pipeline, "check_recipe", lambda recipe: None)
    monkeypatch.setattr(pipeline, "write_report", lambda folder: folder)
    recipe = tiny.recipe(base, **{**SMALL, **more})
    pipeline.run(recipe, folder, Console(quiet=True), progress=False, parallel=False)


def test_the_chain_through_a_server_ends_like_the_one_in_process(
    base: Path, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain(base, tmp_path / "a", monkeypatch)
    told = tmp_path / "pids"
    engine = {"kind": "server", "command": command(backend, "--child", str(told))}
    chain(base, tmp_path / "b", monkeypatch, engine=engine)
    a, b = (read_manifest(tmp_path / name)["stages"] for name in "ab")
    assert list(a) == list(b)
    for stage in ("sft", "rejection_sft", "token_dpo", "full_dpo"):
        assert a[stage]["metrics"].keys() == b[stage]["metrics"].keys()
    assert a["sft"]["outputs"] == b["sft"]["outputs"], "nothing of it is sampled"
    one, two = (found["eval/sft"]["metrics"] for found in (a, b))
    assert one["greedy"] == two["greedy"], "greedy answers are the same"
    # 160 answers of each: four standard errors of a difference of two rates of about a half.
    assert abs(one["sampled"] - two["sampled"]) < 4 * (2 * 0.25 / 160) ** 0.5
    assert a["pts"]["inputs"].keys() ^ b["pts"]["inputs"].keys() == {"engine"}
    for name in "ab":
        pairs = read_pairs(tmp_path / name / "pts" / "pairs.jsonl")
        policy = model_digest(tmp_path / name / "rejection_sft" / "model")
        assert {pair.policy_digest for pair in pairs} == {policy}
    for stage in ("rejection_sft", "pts", "full_dpo", "eval/sft", "eval/full_dpo"):
        assert (tmp_path / "b" / stage / "server.log").is_file()
    assert all(gone(int(pid), 0.5) for pid in told.read_text().split())
