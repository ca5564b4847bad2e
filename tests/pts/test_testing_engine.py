"""`check_engine`: right engines conform, every wrong one is caught by the finding that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pts.config import SamplingConfig
from pts.engines.tabular import TabularEngine
from pts.errors import ConfigError, EngineError
from pts.testing import assert_engine_conforms, check_engine
from pts.types import Ids, Problem
from tests.pts.engine_mutants import (
    MACHINES,
    MUTANTS,
    PROBLEMS,
    AllEqual,
    Base,
    LastInFirstOut,
    Mutant,
    OneGenerator,
    Spoken,
)

BASE = Path(__file__).parents[2] / "recipes" / "phi-nano" / "base"
ONE = {"plain": SamplingConfig(max_new_tokens=64)}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant: Mutant) -> None:
    sampling = SamplingConfig.model_validate({"max_new_tokens": 64, **mutant.sampling})
    report = check_engine(mutant.make, PROBLEMS, samplings={"tried": sampling}, patience=0.05)
    told = [finding for finding in report.findings if finding.check == mutant.check]
    assert any(mutant.cause in finding.cause for finding in told), str(report)
    assert all(f.where and f.expected and f.observed for f in report.findings)


def test_the_tabular_engine_conforms() -> None:
    report = check_engine(lambda sampling: TabularEngine(MACHINES, sampling), PROBLEMS)
    assert report.ok, str(report)
    assert report.unchecked == ()
    rules = {"frequencies", "siblings", "longer prefix", "rollouts", "seeds", "settings"}
    assert {*rules, "rows", "queue", "text"} == set(report.checked)
    assert "TabularEngine: conforms" in str(report)


def test_an_engine_that_answers_in_another_order_conforms() -> None:
    assert_engine_conforms(LastInFirstOut, PROBLEMS, samplings=ONE, patience=0.5)


def test_the_transformers_engine_conforms_on_phi_nano() -> None:
    from pts.engines.transformers.engine import TransformersEngine
    from pts.engines.transformers.loading import load_model_and_tokenizer

    model, tokenizer = load_model_and_tokenizer(BASE)
    problems = [
        Problem("apples", "Question: Tom has 12 apples and buys 5 more.", "17"),
        Problem("pens", "Question: Anna gives away 3 of", "4"),
    ]
    samplings = {
        "all": SamplingConfig(temperature=0.8, top_k=12, top_p=0.9, min_p=0.05, max_new_tokens=24),
    }
    report = check_engine(
        lambda sampling: TransformersEngine(
            model, tokenizer, sampling, max_rows=64, memory_bytes=2**26
        ),
        problems,
        samplings=samplings,
        rollouts=100,
        whole=4,
    )
    assert report.ok, str(report)


def test_one_engine_is_checked_under_its_own_settings() -> None:
    report = check_engine(Base(SamplingConfig(top_k=3, max_new_tokens=64)), PROBLEMS[0])
    assert report.ok, str(report)
    assert "settings" not in report.checked
    told = " ".join(report.unchecked)
    assert "other settings" in told
    assert "mixing of questions" in told


def test_false_alarms_are_bounded_by_the_number_of_tests() -> None:
    """Two looks at level 1e-3 each, over all tests: a union bound."""
    report = check_engine(Base, PROBLEMS[:1], samplings=ONE)
    assert report.tests > 5
    assert report.false_alarm == pytest.approx(report.tests * 1e-6)


def test_an_engine_without_seeds_may_say_so() -> None:
    class Honest(OneGenerator):
        reproducible = False

    report = check_engine(Honest, PROBLEMS, samplings=ONE)
    assert report.ok, str(report)
    assert "seeds" not in report.checked


def test_equal_rollouts_are_found_without_seeds() -> None:
    class Honest(AllEqual):
        reproducible = False

    checks = {finding.check for finding in check_engine(Honest, PROBLEMS, samplings=ONE).findings}
    assert "seeds" in checks


def test_settings_that_an_engine_refuses_are_listed() -> None:
    def make(sampling: SamplingConfig) -> Any:
        if sampling.top_p == 1 and sampling.temperature:
            raise EngineError("needs top_p below 1")
        return Base(sampling)

    report = check_engine(make, PROBLEMS)
    assert report.ok, str(report)
    told = "\n".join(report.unchecked)
    assert "top-k (temperature=0.8, top_k=4): the engine refuses it (needs top_p" in told
    assert "rows against the plain distribution: it is refused" in told
    assert "settings" not in report.checked


def test_a_missing_method_is_named() -> None:
    class Half:
        sampling, policy_digest, reproducible, stop_ids = (
            SamplingConfig(),
            "x",
            True,
            frozenset({0}),
        )

        def encode(self, problem: Problem) -> Ids:
            return (1,)

    (finding,) = check_engine(lambda sampling: Half(), PROBLEMS, samplings=ONE).findings  # type: ignore[arg-type, return-value]
    assert finding.check == "protocol"
    assert finding.observed == "no decode, token_texts, score, sample"


def test_exceptions_become_findings() -> None:
    class Broken(Base):
        def score(self, prompt: Ids, completion: Ids) -> Any:
            raise ZeroDivisionError("no such thing")

    (finding,) = check_engine(Broken, PROBLEMS, samplings=ONE).findings
    assert finding.observed == "ZeroDivisionError: no such thing"
    assert "test_testing_engine.py" in finding.cause


def test_the_same_finding_is_told_once() -> None:
    report = check_engine(Spoken, PROBLEMS, samplings=ONE)
    (finding,) = report.findings
    assert finding.more == len(PROBLEMS) - 1
    assert "and 1 more like it" in str(report)


def test_assertion_shows_the_report() -> None:
    with pytest.raises(AssertionError, match="likely cause: decode shows special tokens"):
        assert_engine_conforms(Spoken, PROBLEMS, samplings=ONE)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="rollouts >= 50"):
        check_engine(Base, PROBLEMS, rollouts=10)
    with pytest.raises(ConfigError, match="0 problems"):
        check_engine(Base, [])
