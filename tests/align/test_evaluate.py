"""One policy is measured on problems whose every probability is known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from align.errors import StageError
from align.evaluation.evaluate import (
    EvalSettings,
    Load,
    choose_temperature,
    evaluate,
    kl_divergence,
)
from align.evaluation.records import read_evaluation, write_evaluation
from pts.config import SamplingConfig
from pts.errors import JournalError
from pts.types import Problem, TokenDistribution
from tests.align.two_word_engine import TwoWordEngine, judge

Logits = Mapping[str, tuple[float, float, float]]
NEVER = -1e9
"""A logit that leaves no probability."""
EVEN: Logits = {"sure": (0.0, NEVER, NEVER), "odds": (0.0, math.log(3), NEVER)}
"""`sure` is always right; `odds` is right in 1 of 4 samples, and wrong when greedy."""


def loads(logits: Logits, made: list[TwoWordEngine] | None = None) -> Load:
    def load(sampling: SamplingConfig) -> TwoWordEngine:
        engine = TwoWordEngine(logits, sampling)
        if made is not None:
            made.append(engine)
        return engine

    return load


def problems(n: int, name: str = "q") -> list[Problem]:
    """Half of them sure, half of them at odds."""
    kinds = ["sure", "odds"]
    return [Problem(f"{name}{k}", kinds[k % 2], "r", {"family": kinds[k % 2]}) for k in range(n)]


def settings(**changes: object) -> EvalSettings:
    return dataclasses.replace(EvalSettings(SamplingConfig(max_new_tokens=8), samples=4), **changes)


def test_accuracies_lengths_and_items(tmp_path: Path) -> None:
    got = evaluate(loads(EVEN), problems(200), judge, settings(), tmp_path, stage="sft")
    summary = got.summary
    assert (summary.stage, summary.problems, summary.unscored) == ("sft", 200, 0)
    assert summary.greedy.mean == 0.5
    assert [i.greedy for i in got.items[:4]] == [True, False, True, False]
    # 400 samples of the odd problems pass 1 in 4 times: standard error .022 of their mean.
    assert summary.families["sure"].sampled.mean == 1
    assert summary.families["odds"].sampled.mean == pytest.approx(0.25, abs=0.08)
    # pass@4 of an odd problem is 1 - .75^4 = .684, with standard error .047 over 100 of them.
    assert summary.pass_at_k.mean == pytest.approx(0.5 + 0.684 / 2, abs=0.08)
    assert (summary.length.mean, summary.unfinished.mean) == (2, 0)
    assert got.items[1].greedy_text == "wrong"


def test_entropy_and_kl_have_their_closed_forms(tmp_path: Path) -> None:
    flat: Logits = {"sure": (0.0, 0.0, NEVER), "odds": (0.0, 0.0, NEVER)}
    got = evaluate(
        loads(EVEN), problems(20), judge, settings(), tmp_path, before=loads(flat)
    ).summary
    # Every completion has two tokens, of which the second is certain. First tokens: `sure` has
    # entropy 0 and KL log 2 to a fair coin, `odds` has H(1/4) and KL log 2 - H(1/4).
    h = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert got.entropy.mean == pytest.approx(h / 4)
    assert got.kl is not None
    assert got.kl.mean == pytest.approx((2 * math.log(2) - h) / 4)
    assert got.kl.low < got.kl.mean < got.kl.high


def test_entropy_is_that_of_the_temperature_without_truncation(tmp_path: Path) -> None:
    warm = SamplingConfig(temperature=0.5, top_p=0.1, max_new_tokens=8)
    odds = [p for p in problems(20) if p.prompt == "odds"]
    got = evaluate(loads(EVEN), odds, judge, settings(sampling=warm), tmp_path).summary
    # At temperature 1/2 the odds 1:3 become 1:9.
    assert got.entropy.mean == pytest.approx(-(0.1 * math.log(0.1) + 0.9 * math.log(0.9)) / 2)


def test_kl_divergence_aligns_rows_by_token() -> None:
    row = TokenDistribution(np.array([5, 2]), np.array([0.75, 0.25]))
    other = TokenDistribution(np.array([2, 7, 5]), np.array([0.5, 0.25, 0.25]))
    expected = 0.75 * math.log(3) + 0.25 * math.log(0.5)
    assert kl_divergence(row, other) == pytest.approx(expected)
    assert kl_divergence(row, row) == 0


def test_cut_completions_fail_and_are_counted(tmp_path: Path) -> None:
    endless: Logits = {"sure": (NEVER, NEVER, 0.0), "odds": (0.0, NEVER, NEVER)}
    got = evaluate(loads(endless), problems(10), judge, settings(), tmp_path)
    assert got.summary.unfinished.mean == 0.5
    assert got.items[0].greedy_truncated
    assert (got.items[0].truncated, got.items[0].length) == (4, 8)
    assert got.summary.greedy.mean == 0.5


def test_problems_without_a_verdict_are_left_out_and_counted(tmp_path: Path) -> None:
    broken = [dataclasses.replace(p, id=f"x{p.id}", reference="") for p in problems(2)]
    got = evaluate(loads(EVEN), problems(10) + broken, judge, settings(), tmp_path)
    assert (got.summary.problems, got.summary.unscored) == (10, 2)
    with pytest.raises(StageError, match="0 of 2 problems"):
        evaluate(loads(EVEN), broken, judge, settings(), tmp_path / "none")


def test_best_temperature_is_chosen_on_dev_and_measured_elsewhere(tmp_path: Path) -> None:
    # Greedy is wrong on `odds`; the hotter, the nearer to one in two.
    hot = settings(temperatures=(1.0, 100.0))
    got = evaluate(loads(EVEN), problems(40), judge, hot, tmp_path, dev=problems(200, "dev"))
    best = got.summary.best
    assert best is not None
    assert [t for t, _ in best.dev] == [0.0, 1.0, 100.0]
    assert best.dev[0][1].mean == 0.5
    assert best.temperature == 100.0
    rates = [item.best for item in got.items]
    assert best.accuracy.mean == pytest.approx(np.mean(rates))
    assert got.items[0].best == 1.0


def test_the_lowest_temperature_wins_a_tie_and_greedy_is_not_sampled_again(tmp_path: Path) -> None:
    sure = [p for p in problems(20) if p.prompt == "sure"]
    dev = [dataclasses.replace(p, id=f"dev-{p.id}") for p in sure]
    got = evaluate(loads(EVEN), sure, judge, settings(temperatures=(0.3,)), tmp_path, dev=dev)
    assert got.summary.best is not None
    assert got.summary.best.temperature == 0
    assert not (tmp_path / "at-0.journal.jsonl").exists()


def test_the_lowest_temperature_within_a_standard_error_is_chosen() -> None:
    def rates(*wrong: int) -> dict[str, float]:
        return {f"q{k}": float(k not in wrong) for k in range(50)}

    # Two problems lost and none won: gap .04, its error sqrt(.04 * .96 / 49) = .028. Three lost
    # and two won: gap .02, its error sqrt((.1 - .02 ** 2) / 49) = .045.
    best, hot = rates(0, 1), rates(*range(9))
    assert choose_temperature({0.0: rates(0, 1, 2, 3), 0.5: best, 1.0: hot}) == 0.5
    assert choose_temperature({0.0: rates(2, 3, 4), 0.5: best, 1.0: hot}) == 0.0
    assert choose_temperature({0.7: best, 0.3: best, 0.0: rates(*range(40))}) == 0.3


def test_a_grid_without_dev_problems_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="dev problems"):
        evaluate(loads(EVEN), problems(4), judge, settings(temperatures=(1.0,)), tmp_path)


def test_an_evaluation_continues_from_its_journals(tmp_path: Path) -> None:
    first = evaluate(loads(EVEN), problems(10), judge, settings(), tmp_path)
    journal = tmp_path / "sampled" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-3]) + lines[-3][:5])
    made: list[TwoWordEngine] = []
    again = evaluate(loads(EVEN, made), problems(10), judge, settings(), tmp_path)
    assert again == first
    assert 0 < sum(engine.sampled for engine in made) < 20


def test_a_journal_of_another_policy_is_refused(tmp_path: Path) -> None:
    evaluate(loads(EVEN), problems(4), judge, settings(), tmp_path)
    other = {**EVEN, "odds": (0.0, 0.0, NEVER)}
    with pytest.raises(JournalError, match="policy"):
        evaluate(loads(other), problems(4), judge, settings(), tmp_path)


def test_files_round_trip(tmp_path: Path) -> None:
    hot = settings(temperatures=(2.0,))
    got = evaluate(
        loads(EVEN), problems(6), judge, hot, tmp_path, before=loads(EVEN), dev=problems(4, "d")
    )
    write_evaluation(got, tmp_path)
    assert read_evaluation(tmp_path) == got
    (tmp_path / "items.jsonl").unlink()
    with pytest.raises(StageError, match=r"items\.jsonl: not found"):
        read_evaluation(tmp_path)
