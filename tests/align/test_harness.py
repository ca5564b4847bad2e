"""Tasks of lm-evaluation-harness through `align benchmark`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from align.benchmarks.command import measure
from align.benchmarks.harness import HarnessOptions, find_tasks, run_tasks, to_text
from align.compare.readers import read_results
from align.errors import RecipeError
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


def test_the_harness_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(MissingExtra, match=r"three-stage\[lm-eval\]"):
        find_tasks(["pick"])


@pytest.mark.skipif(not LM_EVAL, reason="lm_eval is missing: pip install 'three-stage[lm-eval]'")
def test_a_task_of_a_file_runs_and_can_be_compared(tmp_path: Path) -> None:
    rows = [{"q": f"{k}", "choices": ["yes", "no"], "gold": k % 2} for k in range(6)]
    data = tmp_path / "pick.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pick.yaml").write_text(TASK.format(data=data))
    policy = tiny.save(tmp_path / "model")
    manager = find_tasks(["pick"], tmp_path)
    found = run_tasks(policy, ["pick"], manager, HarnessOptions(limit=4), tmp_path / "out")
    [(_, reading)] = read_results(tmp_path / "out" / "samples_pick.jsonl").items()
    verdicts = [item.scores[0] for item in reading.items.values()]
    assert len(verdicts) == 4
    assert found["pick"]["acc,none"] == sum(verdicts) / 4
    with pytest.raises(RecipeError, match=r"(?s)lm-eval:peck: .* no such task; did.*lm-eval:zzz: "):
        measure(policy, ["lm-eval:peck", "lm-eval:zzz"], [], tmp_path / "b", tmp_path, False)
