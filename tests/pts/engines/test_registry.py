"""`make_engine`: engines by name, every fault before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pts
from pts.engines.registry import ENGINES, EngineKind, make_engine
from pts.engines.tabular import TabularEngine
from tests.pts.engines.conftest import MACHINES, QUICK, SAMPLING
from tests.pts.engines.faulty_server import FaultyServer


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "transfromers:models/x",
            "no engine 'transfromers:models/x'; did you mean 'transformers'?",
        ),
        ("transformers", "no engine 'transformers'; give transformers:PATH, vllm:PATH or server:"),
        ("models/phi-4", "no engine 'models/phi-4'; give transformers:PATH"),
        ("", "no engine ''; give transformers:PATH"),
    ],
)
def test_other_names_are_refused_with_the_forms(spec: str, said: str) -> None:
    with pytest.raises(pts.ConfigError) as caught:
        make_engine(spec, SAMPLING)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        (
            "transformers:{folder}",
            {"devise": "cuda"},
            [
                "transformers: no option 'devise'; did you mean 'device'?",
                "{folder}: no model here (no config.json or adapter_config.json); give a local",
            ],
        ),
        ("transformers:{folder}", {"gguf_file": "a.gguf"}, ["no model here (no a.gguf)"]),
        ("vllm:{folder}", {"max_model_len": 8}, ["{folder}: no model here (no config.json)"]),
        (
            "server:http://one, two,http://one/v1/",
            {"in_flight": 0, "zzz": 1},
            [
                "server: no option 'zzz'; it has tokenizer, model, in_flight",
                "'two' is no base URL; give e.g. http://localhost:8000",
                "a server URL occurs twice",
                "server: tokenizer is missing; give the folder",
                "in_flight must be a whole number of at least 1, got 0",
            ],
        ),
        ("server:http://one", {"tokenizer": "{folder}"}, ["{folder}: no tokenizer here"]),
    ],
)
def test_all_faults_of_a_spec_are_told_at_once(
    spec: str, options: dict[str, Any], said: list[str], tmp_path: Path
) -> None:
    given = {
        key: value.format(folder=tmp_path) if isinstance(value, str) else value
        for key, value in options.items()
    }
    with pytest.raises(pts.ConfigError) as caught:
        make_engine(spec.format(folder=tmp_path), SAMPLING, **given)
    assert len(caught.value.problems) == len(said)
    for problem, part in zip(caught.value.problems, said, strict=True):
        assert part.format(folder=tmp_path) in problem


def test_faults_are_found_before_anything_heavy_is_imported() -> None:
    heavy = "{'torch', 'transformers', 'vllm', 'httpx2', 'scipy'}"
    code = (
        "import sys, pts\n"
        "for spec in ('transformers:none', 'vllm:none', 'server:none', 'none:x'):\n"
        "    try: pts.make_engine(spec, pts.SamplingConfig())\n"
        "    except pts.ConfigError: pass\n"
        f"print({heavy} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_a_server_is_connected_with_its_options(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pts.engines.server.engine.DRAWS", 40)
    with FaultyServer(MACHINES) as one, FaultyServer(MACHINES) as two:
        engine: Any = make_engine(
            f"server:{one.url},{two.url}", SAMPLING, tokenizer=tokenizer_folder, retry=QUICK,
            revision="two",
        )  # fmt: skip
        with engine:
            assert one.url in repr(engine)
            assert two.url in repr(engine)
            assert engine.sampling == SAMPLING
            other: Any = make_engine(
                f"server:{one.url}", SAMPLING, tokenizer=tokenizer_folder, retry=QUICK
            )
            with other:
                assert other.policy_digest != engine.policy_digest


def test_a_transformers_model_is_loaded_with_its_options(tmp_path: Path) -> None:
    from tests.pts.tiny_models import STOP, tiny, tiny_tokenizer

    tiny("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    engine: Any = make_engine(f"transformers:{tmp_path}", SAMPLING, stop_ids=[STOP, 7], max_rows=3)
    assert type(engine).__name__ == "TransformersEngine"
    assert (engine.sampling, engine.stop_ids) == (SAMPLING, frozenset({STOP, 7}))


def test_an_engine_from_outside_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(argument: str, sampling: pts.SamplingConfig, **options: Any) -> pts.Engine:
        assert options == {"colour": "red"}
        return TabularEngine(MACHINES[: int(argument)], sampling)

    monkeypatch.setitem(ENGINES, "machines", EngineKind("machines:N", make))
    engine = make_engine("machines:2", SAMPLING, colour="red")
    assert isinstance(engine, TabularEngine)
    assert len(engine.machines) == 2
    with pytest.raises(pts.ConfigError, match=r"URL\.\.\.\] or machines:N"):
        make_engine("none:2", SAMPLING)
