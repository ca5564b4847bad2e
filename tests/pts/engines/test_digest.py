"""`model_digest`: one name for a model, whichever engine samples it."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from pts.config import SamplingConfig
from pts.engines.digest import model_digest
from pts.engines.transformers.engine import TransformersEngine
from pts.engines.vllm import REQUIRED, VLLMEngine
from pts.errors import EngineError, JournalError
from pts.runtime.sample import sample
from pts.types import Problem
from pts.verifiers.exact import ExactVerifier
from tests.pts.engines.conftest import MACHINES, Connect
from tests.pts.engines.faulty_server import SIZE, FaultyServer
from tests.pts.tiny_models import tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny("llama").save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_every_engine_gives_the_same(
    folder: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model_digest(folder)
    assert TransformersEngine.load(folder, SamplingConfig()).policy_digest == expected
    half = TransformersEngine.load(folder, SamplingConfig(), dtype=torch.bfloat16)
    assert half.policy_digest == expected, "how it is run is no part of it"

    config = SimpleNamespace(**REQUIRED, max_model_len=9, get_vocab_size=lambda: SIZE)
    queue = SimpleNamespace(
        vllm_config=SimpleNamespace(model_config=config, cache_config=SimpleNamespace(**REQUIRED))
    )
    package = types.ModuleType("vllm")
    package.LLM = lambda **_: SimpleNamespace(llm_engine=queue)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", package)
    assert VLLMEngine.load(folder, SamplingConfig()).policy_digest == expected

    with FaultyServer(MACHINES, root=str(folder)) as server:
        assert connect(server.url).policy_digest == expected
        assert connect(server.url, revision="2").policy_digest != expected
        assert connect(server.url, policy_digest="mine").policy_digest == "mine"


def test_a_run_does_not_go_on_in_another_dtype(folder: Path, tmp_path: Path) -> None:
    def draw(dtype: torch.dtype) -> int:
        engine = TransformersEngine.load(folder, SamplingConfig(max_new_tokens=4), dtype=dtype)
        problems = [Problem("q", "!", "!")]
        [found] = sample(
            problems, engine, ExactVerifier("(.)"), n=2, output=tmp_path, progress=False
        )
        return len(found.rollouts)

    assert draw(torch.float32) == 2
    with pytest.raises(JournalError, match="dtype"):
        draw(torch.bfloat16)
    assert draw(torch.float32) == 2


def test_a_server_with_its_files_elsewhere_is_known_by_what_it_says(connect: Connect) -> None:
    with FaultyServer(MACHINES, root="/nowhere/a") as a, FaultyServer(MACHINES, root="/b") as b:
        assert connect(a.url).policy_digest == connect(a.url).policy_digest
        assert connect(a.url).policy_digest != connect(b.url).policy_digest


def test_a_split_checkpoint_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    split = copy(folder, tmp_path / "split")
    tensors = load_file(split / "model.safetensors")
    (split / "model.safetensors").unlink()
    names = sorted(tensors, reverse=True)
    for part in range(2):
        held = {name: tensors[name] for name in names[part::2]}
        save_file(held, split / f"model-{part}.safetensors", metadata={"part": str(part)})
    assert model_digest(split) == model_digest(folder)


def test_who_wrote_it_does_not_count_and_what_it_is_does(folder: Path, tmp_path: Path) -> None:
    expected = model_digest(folder)
    other = copy(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "transformers_version": "6"}))
    (other / "generation_config.json").write_text('{"temperature": 0.3}')
    assert model_digest(other) == expected
    (other / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    assert model_digest(other) != expected
    (other / "config.json").write_text(json.dumps(config))
    assert model_digest(other) == expected
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"<pad>"', '"<pod>"'))
    assert model_digest(other) != expected


@pytest.mark.parametrize("change", ["value", "shape", "type", "name"])
def test_each_part_of_a_tensor_counts(change: str, folder: Path, tmp_path: Path) -> None:
    other = copy(folder, tmp_path / "other")
    tensors: dict[str, Any] = load_file(other / "model.safetensors")
    name = next(name for name, value in tensors.items() if value.ndim == 2)
    value = tensors.pop(name)
    changed = {
        "value": {name: np.nextafter(value, 9.0)},
        "shape": {name: value.T.reshape(value.shape[::-1]).copy()},
        "type": {name: value.view(np.int32)},
        "name": {f"{name}.x": value},
    }
    save_file({**tensors, **changed[change]}, other / "model.safetensors")
    assert model_digest(other) != model_digest(folder)


def test_pickled_weights_and_gguf_count_by_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"one")
    first, alone = model_digest(tmp_path), model_digest(tmp_path / "model.gguf")
    (tmp_path / "model.gguf").write_bytes(b"two")
    assert model_digest(tmp_path) != first
    assert model_digest(tmp_path / "model.gguf") != alone


def test_no_weights_and_damaged_weights_are_told(folder: Path, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nothing", "no/such/name/of/a/hub"):
        with pytest.raises(EngineError, match="no weights here"):
            model_digest(place)
    torn = copy(folder, tmp_path / "torn")
    whole = (torn / "model.safetensors").read_bytes()
    for held in (whole[:-1], whole[:7], whole[:20], b"version https://git-lfs.github.com/spec/v1"):
        (torn / "model.safetensors").write_bytes(held)
        with pytest.raises(EngineError, match=r"model\.safetensors: no sound safetensors file"):
            model_digest(torn)
