"""The choice among checkpoints: the best becomes the policy, measured once, also after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from align.stages import sft
from align.training import loop
from tests.align import tiny

SETTINGS: dict[str, Any] = {
    "num_examples": 24,
    "batch_size": 2,
    "gradient_accumulation": 2,
    "learning_rate": 1e-2,
    "save_steps": 2,
    "checkpoint_problems": 8,
}
PROMPT = torch.tensor([[9, 10, 11, 12]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("base"))


class Script:
    """Accuracies by step, and the logits of the model that was shown at each."""

    def __init__(self, accuracy: dict[int, float], stop_at: int = 0) -> None:
        self.accuracy, self.stop_at = accuracy, stop_at
        self.seen: dict[int, torch.Tensor] = {}

    def __call__(self, context: Any, tokenizer: Any) -> Callable[[Any, Path], tuple[float, int]]:
        def measure(model: Any, answers: Path) -> tuple[float, int]:
            step = int(answers.name)
            if step == self.stop_at:
                raise KeyboardInterrupt
            with torch.no_grad():
                self.seen[step] = model(PROMPT).logits.clone()
            return self.accuracy[step], 10

        return measure


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(PROMPT).logits


@pytest.mark.parametrize("lora", [None, {"r": 2, "alpha": 4}])
@pytest.mark.parametrize(
    ("accuracy", "best"),
    [({2: 0.2, 4: 0.5, 6: 0.5}, 4), ({2: 0.6, 4: 0.5, 6: 0.1}, 2), ({2: 0.1, 4: 0.2, 6: 0.3}, 6)],
)
def test_the_best_checkpoint_becomes_the_policy(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accuracy: dict[int, float],
    best: int,
    lora: dict[str, int] | None,
) -> None:
    script = Script(accuracy)
    monkeypatch.setattr(loop, "on_dev", script)
    found = sft.run(tiny.context(base, tmp_path / "sft", sft={**SETTINGS, "lora": lora}))
    assert found.model is not None
    torch.testing.assert_close(logits(found.model), script.seen[best], atol=1e-4, rtol=1e-4)
    assert all(
        not torch.allclose(script.seen[best], seen, atol=1e-4)
        for step, seen in script.seen.items()
        if step != best
    )
    assert found.metrics["checkpoint"] == best
    assert found.metrics["checkpoint_accuracy"] == accuracy[best]
    assert (found.metrics["checkpoints"], found.metrics["dev_tokens"]) == (3, 30)
    assert {"checkpoints.jsonl", "metrics.jsonl"} <= {path.name for path in found.outputs}
    assert not (tmp_path / "sft" / "best").exists()


def test_a_killed_choice_goes_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy = {2: 0.2, 4: 0.5, 6: 0.1}
    whole = Script(accuracy)
    monkeypatch.setattr(loop, "on_dev", whole)
    expected = sft.run(tiny.context(base, tmp_path / "whole", sft=SETTINGS))
    killed = Script(accuracy, stop_at=4)
    monkeypatch.setattr(loop, "on_dev", killed)
    context = tiny.context(base, tmp_path / "killed", sft=SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        sft.run(context)
    rest = Script(accuracy)
    monkeypatch.setattr(loop, "on_dev", rest)
    found = sft.run(context)
    assert list(killed.seen) == [2]
    assert list(rest.seen) == [4, 6]  # 4 was saved, and not measured
    assert found.model is not None
    assert expected.model is not None
    assert torch.equal(logits(found.model), logits(expected.model))
    assert found.metrics["checkpoint"] == 4


@pytest.mark.parametrize("lora", [None, {"r": 2, "alpha": 4}])
def test_a_stage_that_is_killed_in_its_last_save_goes_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: dict[str, int] | None
) -> None:
    accuracy = {2: 0.2, 4: 0.5, 6: 0.1}
    settings = {**SETTINGS, "lora": lora}
    monkeypatch.setattr(loop, "on_dev", Script(accuracy))
    expected = sft.run(tiny.context(base, tmp_path / "whole", sft=settings))

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    context = tiny.context(base, tmp_path / "killed", sft=settings)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_policy", full)
        with pytest.raises(OSError, match="No space left"):
            sft.run(context)
    assert (context.folder / "best" / "4").is_dir()
    rest = Script(accuracy)
    monkeypatch.setattr(loop, "on_dev", rest)
    found = sft.run(context)
    assert rest.seen == {}
    assert tiny.same(found.model, expected.model)  # type: ignore[arg-type]
    assert found.metrics == expected.metrics
    assert {path.name for path in context.folder.iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }
    for name in ("checkpoints", "best", "dev-answers"):
        assert not (context.folder / name).exists()


def test_checkpoints_are_measured_on_the_dev_split(base: Path, tmp_path: Path) -> None:
    context = tiny.context(base, tmp_path / "sft", sft=SETTINGS)
    found = sft.run(context)
    lines = (tmp_path / "sft" / "checkpoints.jsonl").read_text().splitlines()
    measured = [json.loads(line) for line in lines]
    assert [one["step"] for one in measured] == [2, 4, 6]
    assert all(8 * one["accuracy"] in range(9) for one in measured)
    assert all(one["tokens"] >= 8 for one in measured)
    assert found.metrics["checkpoint_accuracy"] == max(one["accuracy"] for one in measured)
