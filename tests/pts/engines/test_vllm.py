"""`VLLMEngine` on a stand-in for vLLM's queue, whose model is a `TabularEngine`.

The real vLLM runs in `make test-servers`; here are the queue, the rows, the checks and the errors.
"""

from __future__ import annotations

import math
import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pts.config import SamplingConfig
from pts.engines.base import SampleRequest
from pts.engines.digest import model_digest
from pts.engines.tabular import STOP, TabularEngine
from pts.engines.vllm import REQUIRED, VLLMEngine
from pts.errors import ConfigError, EngineError, MissingExtra
from pts.testing import assert_engine_conforms
from tests.pts.engine_mutants import MACHINES
from tests.pts.engines.faulty_server import SIZE, _extended, _place, machine_id, problems

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "truncated": {"temperature": 0.8, "top_k": 12, "top_p": 0.9},
    "greedy": {"temperature": 0},
}


class Queue:
    """As much of vLLM's LLMEngine as is used: each step completes some requests, newest first."""

    def __init__(self, **options: Any) -> None:
        settings = {**REQUIRED, **options}
        caching = settings.pop("enable_prefix_caching")
        model = SimpleNamespace(**settings, max_model_len=200, get_vocab_size=lambda: SIZE)
        self.vllm_config = SimpleNamespace(
            cache_config=SimpleNamespace(enable_prefix_caching=caching), model_config=model
        )
        self.waiting: dict[str, tuple[list[int], Any]] = {}
        self.engines: dict[SamplingConfig, TabularEngine] = {}
        self.rng = random.Random(0)
        self.truncated = 0

    def add_request(self, name: str, prompt: dict[str, list[int]], params: Any) -> None:
        assert name not in self.waiting
        assert params.temperature or params.n == 1, "vLLM 0.32 refuses this"
        self.waiting[name] = (prompt["prompt_token_ids"], params)

    def abort_request(self, names: list[str]) -> None:
        for name in names:
            del self.waiting[name]

    def step(self) -> list[Any]:
        assert self.waiting, "vLLM waits for ever"
        names = list(self.waiting)[-3:]
        return [self._finish(n) for n in names]

    def _finish(self, name: str) -> Any:
        prompt, params = self.waiting[name]
        listed: list[Any] = [None]
        if params.prompt_logprobs:
            assert params.temperature == params.top_p == 1, "told apart from the sampling policy"
            place, at = _place(prompt)
            rows = TabularEngine(MACHINES, SamplingConfig()).score(place, at)
            listed += [
                {token: SimpleNamespace(logprob=math.log(row.prob(token)))}
                for row, token in zip(rows, at, strict=True)
            ]
        return SimpleNamespace(
            request_id=name, finished=True, outputs=self._run(name), prompt_logprobs=listed
        )

    def _run(self, name: str) -> list[Any]:
        prompt, params = self.waiting.pop(name)
        kept = {k: getattr(params, k) for k in ("temperature", "top_p", "min_p")}
        sampling = SamplingConfig(top_k=max(0, params.top_k), **kept)
        if sampling not in self.engines:
            self.engines[sampling] = TabularEngine(MACHINES, sampling)
        engine = self.engines[sampling]
        at, seeds = _place(prompt), tuple(self.rng.getrandbits(60) for _ in range(params.n))
        ((_, drawn),) = engine.sample(iter([SampleRequest(0, *at, params.max_tokens, seeds)]))
        return [self._output(ids[: len(ids) - self.truncated], engine, at, params) for ids in drawn]

    def _output(self, ids: Any, engine: TabularEngine, at: Any, params: Any) -> Any:
        reason = "stop" if ids[-1:] == (STOP,) else "length"
        listed = {}
        if params.logprobs:
            row = engine.score(at[0], _extended(engine, *at))[-1]
            width = SIZE if params.logprobs == -1 else params.logprobs
            others = [i for i in range(SIZE) if row.prob(i) == 0]
            shown = [*row.ids.tolist(), *others][:width]
            shown += [] if ids[0] in shown else [ids[0]]
            listed = {
                i: SimpleNamespace(logprob=math.log(p) if (p := row.prob(i)) else -math.inf)
                for i in shown
            }
        return SimpleNamespace(token_ids=list(ids), finish_reason=reason, logprobs=[listed])


@pytest.fixture(autouse=True)
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    package, params = types.ModuleType("vllm"), types.ModuleType("vllm.sampling_params")
    package.SamplingParams = lambda **kw: SimpleNamespace(  # type: ignore[attr-defined]
        **{"n": 1, "logprobs": None, "prompt_logprobs": None} | kw
    )
    package.LLM = lambda model, **options: SimpleNamespace(llm_engine=Queue(), options=options)  # type: ignore[attr-defined]
    params.RequestOutputKind = SimpleNamespace(FINAL_ONLY=2)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)


@pytest.fixture
def folder(tokenizer_folder: Path) -> Path:
    save_file({"weights": np.ones(3, np.float32)}, tokenizer_folder / "model.safetensors")
    return tokenizer_folder


def test_it_conforms(folder: Path) -> None:
    assert_engine_conforms(
        lambda sampling: VLLMEngine.load(folder, sampling),
        problems(MACHINES),
        samplings={name: SamplingConfig(max_new_tokens=64, **kw) for name, kw in SETTINGS.items()},
        rollouts=100,
        whole=4,
    )


def test_log_likelihoods_are_the_model_s_own_whatever_is_sampled(folder: Path) -> None:
    plain = TabularEngine(MACHINES, SamplingConfig(max_new_tokens=24))
    pairs, expected = [], []
    for index in range(len(MACHINES)):
        ((_, (ids,)),) = plain.sample(iter([SampleRequest(0, (index,), (), 24, (5,))]))
        for cut in (0, 1):
            pairs.append(((machine_id(index), *ids[:cut]), ids[cut : cut + 3]))
            rows = plain.score((index,), ids)[cut : cut + 3]
            picked = zip(rows, ids[cut : cut + 3], strict=True)
            expected.append(sum(math.log(row.prob(token)) for row, token in picked))
    for settings in SETTINGS.values():
        engine = VLLMEngine.load(folder, SamplingConfig(**settings))
        np.testing.assert_allclose(engine.loglikelihoods(pairs), expected, rtol=1e-9)
    with pytest.raises(EngineError, match="a completion of 300 tokens exceeds max_model_len"):
        engine.loglikelihoods([((machine_id(0),), (3,) * 300)])


def test_loading_sets_what_the_engine_relies_on(folder: Path) -> None:
    engine = VLLMEngine.load(folder, SamplingConfig(), dtype="float32")
    assert engine.llm.options.items() >= {**REQUIRED, "dtype": "float32"}.items()
    other = VLLMEngine.load(folder, SamplingConfig())
    assert engine.llm.options["seed"] != other.llm.options["seed"], "a resumed run draws anew"
    assert engine.policy_digest == model_digest(folder)
    assert not engine.reproducible


def test_options_that_the_engine_sets_are_refused_and_others_passed_on(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        VLLMEngine.load(folder, SamplingConfig(), seed=1, max_logprobs=5, quantization="fp8")
    assert [problem.partition(";")[0] for problem in caught.value.problems] == [
        "vllm: seed is drawn anew at each start, so that a resumed run meets other random numbers",
        "vllm: max_logprobs must be -1",
    ]
    given = {"tensor_parallel_size": 2, "quantization": "fp8", "enable_lora": True}
    engine = VLLMEngine.load(folder, SamplingConfig(), **given)
    assert engine.llm.options.items() >= given.items()


def test_an_llm_with_other_options_is_refused(folder: Path) -> None:
    llm = SimpleNamespace(llm_engine=Queue(logprobs_mode="raw_logprobs", max_logprobs=20))
    with pytest.raises(EngineError, match=r"max_logprobs is 20, not -1; logprobs_mode is 'raw"):
        VLLMEngine(llm, folder, SamplingConfig())


def test_two_truncations_in_another_order_are_refused(folder: Path) -> None:
    with pytest.raises(EngineError, match="set only one of them"):
        VLLMEngine.load(folder, SamplingConfig(top_p=0.9, min_p=0.1))


def test_without_vllm_the_install_line_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtra, match=r"pip install 'three-stage\[vllm\]'"):
        VLLMEngine.load(folder, SamplingConfig())


def test_a_closed_sample_leaves_nothing_in_vllm(folder: Path) -> None:
    engine = VLLMEngine.load(folder, SamplingConfig())
    requests = [SampleRequest(k, (machine_id(0),), (), 64, (1, 2)) for k in range(9)]
    answers: Iterator[Any] = engine.sample(iter(requests))
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert engine.llm.llm_engine.waiting == {}


def test_scoring_between_answers_takes_none_of_them(folder: Path) -> None:
    """A runner scores while rollouts are under way, on the same queue."""
    engine = VLLMEngine.load(folder, SamplingConfig())
    keys = []
    for request, _ in engine.sample(
        iter([SampleRequest(k, (machine_id(0),), (), 64, (k,)) for k in range(9)])
    ):
        keys.append(request.key)
        assert len(engine.score((machine_id(0),), (3, 4))) == 2
    assert sorted(keys) == list(range(9))


def test_what_breaks_the_rules_is_told(folder: Path) -> None:
    engine = VLLMEngine.load(folder, SamplingConfig())
    with pytest.raises(EngineError, match="max_model_len = 200"):
        list(engine.sample(iter([SampleRequest(0, (machine_id(0),), (), 200, (1,))])))
    engine.llm.llm_engine.truncated = 1
    with pytest.raises(EngineError, match="request 3: the completion ended after"):
        list(engine.sample(iter([SampleRequest(3, (machine_id(0),), (), 150, (1,))])))
