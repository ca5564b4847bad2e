"""Tables of runs whose verdicts are written down here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from align.errors import StageError
from align.evaluation.records import write_evaluation
from align.evaluation.tables import build_table
from align.pipeline.recipe import load_recipe
from pts.types import Estimate
from tests.align.evaluations import store

N = 40


def right(n: int) -> list[int]:
    """The first n of N problems are right."""
    return [1] * n + [0] * (N - n)


def chain(run: Path, last: int = 22) -> Path:
    """Greedy 4, 20, 21 and `last` of 40 right; the samples follow the greedy verdicts loosely."""
    for stage, n in (("base", 4), ("sft", 20), ("token_dpo", 21), ("full_dpo", last)):
        store(run, stage, right(n), [6 * v + 1 for v in right(n)], best=[0.9 * v for v in right(n)])
    return run


LABELS = load_recipe("phi-nano").labels()
NAMES = ["base", "sft", "token_dpo", "full_dpo"]


def test_differences_are_paired_and_adjusted_over_the_steps(tmp_path: Path) -> None:
    table = build_table(chain(tmp_path), NAMES, LABELS)
    greedy = [row.steps["greedy"] for row in table.rows[1:]]
    # 16, 1 and 1 problems changed, all for the better: exact p = 2 / 2^16, 1 and 1.
    assert [test.comparison.pvalue for test in greedy] == [2 / 2**16, 1.0, 1.0]
    assert [test.adjusted for test in greedy] == [3 * 2 / 2**16, 1.0, 1.0]
    assert [test.holds for test in greedy] == [True, False, False]
    assert greedy[0].comparison.difference.mean == pytest.approx(16 / 40)
    assert table.rows[0].steps == {}


def test_what_does_not_hold_is_said_first(tmp_path: Path) -> None:
    sentences = build_table(chain(tmp_path), NAMES, LABELS).sentences()
    assert sentences[0].startswith("+ token DPO does not hold at greedy (+2.5 [")
    assert sentences[-1] == "SFT holds at greedy, T=0.7 and best T."
    assert [line.split(" at ")[0] for line in sentences] == [
        "+ token DPO does not hold",
        "+ full DPO does not hold",
        "SFT holds",
    ]


def test_a_loss_is_called_harm(tmp_path: Path) -> None:
    sentences = build_table(chain(tmp_path, last=2), NAMES, LABELS).sentences()
    assert sentences[0].startswith("+ full DPO does harm at greedy (-47.5 [")


def test_a_gain_that_holds_only_before_adjustment_does_not_hold(tmp_path: Path) -> None:
    # Six better, none worse: p = 2 / 2^6 = .031, times two steps = .0625.
    store(tmp_path, "base", right(10), right(10))
    store(tmp_path, "sft", right(16), right(16))
    store(tmp_path, "token_dpo", right(22), right(22))
    step = build_table(tmp_path, NAMES[:3], LABELS).rows[1].steps["greedy"]
    assert step.comparison.pvalue == 0.03125
    assert step.adjusted == 0.0625
    assert not step.holds


def test_text_lines_up_and_markdown_is_a_table(tmp_path: Path) -> None:
    table = build_table(chain(tmp_path), NAMES, LABELS)
    text = table.to_text()
    accuracy = text.split("\n\n")[0].splitlines()
    assert len({len(line) for line in accuracy[1:]}) == 1
    assert max(map(len, text.split("\n\n")[0].splitlines())) <= 110
    assert "52.5 [37.5, 67.1]" in text  # Wilson for 21 of 40
    rows = table.to_markdown().split("\n\n")[0].splitlines()
    assert rows[0].startswith("| Accuracy | greedy % |")
    assert {row.count("|") for row in rows} == {6}


def test_json_holds_every_number(tmp_path: Path) -> None:
    kl = Estimate(0.0123, 0.01, 0.014, N, "ratio")
    chain(tmp_path)
    store(tmp_path, "sft", right(20), right(20), kl=kl)
    data = json.loads(json.dumps(build_table(tmp_path, NAMES, LABELS).to_json(), allow_nan=False))
    sft = data["rows"][1]
    assert sft["label"] == "SFT"
    assert sft["summary"]["kl"]["mean"] == 0.0123
    assert sft["steps"]["greedy"]["holds"] is True
    assert sft["steps"]["greedy"]["better"] == 16
    assert data["sentences"]


def test_best_temperature_is_tested_only_where_all_stages_have_it(tmp_path: Path) -> None:
    chain(tmp_path)
    store(tmp_path, "sft", right(20), right(20))
    table = build_table(tmp_path, NAMES, LABELS)
    assert set(table.rows[1].steps) == {"greedy", "sampled"}
    assert "best T %" in table.to_text()


def test_only_shared_problems_are_compared(tmp_path: Path) -> None:
    before = store(tmp_path, "base", right(4), right(4))
    after = store(tmp_path, "sft", right(20), right(20))
    write_evaluation(replace(after, items=after.items[:10]), tmp_path / "eval" / "sft")
    assert (
        build_table(tmp_path, NAMES[:2], LABELS).rows[1].steps["greedy"].comparison.difference.n
        == 10
    )
    others = tuple(replace(item, id=f"other {item.id}") for item in before.items)
    write_evaluation(replace(after, items=others), tmp_path / "eval" / "sft")
    with pytest.raises(StageError, match="base and sft share no problem"):
        build_table(tmp_path, NAMES[:2], LABELS)


def test_a_single_row_has_no_differences(tmp_path: Path) -> None:
    store(tmp_path, "base", right(4), right(4))
    table = build_table(tmp_path, ["base"], LABELS)
    assert table.sentences() == []
    assert "Difference" not in table.to_text()
