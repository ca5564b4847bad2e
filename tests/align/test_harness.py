"""Tasks of lm-evaluation-harness through `align benchmark`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from align.benchmarks.command import measure
from align.benchmarks.harness import HarnessOptions, run_tasks, to_text
from align.compare.readers import read_results
from align.errors import StageError
from pts.errors import ConfigError, MissingExtra

from . import tiny

LM_EVAL = importlib.util.find_spec("lm_eval") is not None
TASK = """
task: pick
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}?"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_results_are_told_with_the_harness_own_errors() -> None:
    results = {"pick": {"alias": "pick", "acc,none": 0.25, "acc_stderr,none": 0.0625}}
    assert to_text(results).split() == ["pick", "acc", "(none):", "0.2500", "±", "0.0625"]


def test_settings_are_checked_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such key; did you mean 'shots'"):
        measure(tmp_path / "none", ["lm-eval:pick"], ["shot=2"], None, None, False)


def test_the_harness_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtra, match=r"three-stage\[lm-eval\]"):
        run_tasks(tmp_path / "none", ["pick"], HarnessOptions(), tmp_path)


@pytest.mark.skipif(not LM_EVAL, reason="lm_eval is missing: pip install 'three-stage[lm-eval]'")
def test_a_task_of_a_file_runs_and_can_be_compared(tmp_path: Path) -> None:
    rows = [{"q": f"{k}", "choices": ["yes", "no"], "gold": k % 2} for k in range(6)]
    data = tmp_path / "pick.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pick.yaml").write_text(TASK.format(data=data))
    policy = tiny.save(tmp_path / "model")
    found = run_tasks(policy, ["pick"], HarnessOptions(limit=4), tmp_path / "out", tmp_path)
    [(_, reading)] = read_results(tmp_path / "out" / "samples_pick.jsonl").items()
    verdicts = [item.scores[0] for item in reading.items.values()]
    assert len(verdicts) == 4
    assert found["pick"]["acc,none"] == sum(verdicts) / 4
    with pytest.raises(StageError, match="lm-eval:peck: lm-evaluation-harness has no such task"):
        run_tasks(tmp_path / "none", ["peck"], HarnessOptions(), tmp_path / "out", tmp_path)
