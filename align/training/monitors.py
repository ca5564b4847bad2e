"""What is seen of a training while it runs: a file of metrics and a progress bar."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from align.errors import StageError

METRICS = "metrics.jsonl"


class MetricsLogger(TrainerCallback):
    """Writes what a trainer logs to metrics.jsonl, one step a line, and stops on NaN."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop the lines after the checkpoint that is continued: they are made again."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n")]
        kept = [line for line in kept if json.loads(line)["step"] <= state.global_step]
        self.path.write_text("".join(kept), encoding="utf-8")

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Append a line."""
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise StageError(
                f"{self.path.parent.name}: the loss is {logs['loss']} at step {state.global_step}; "
                "lower learning_rate or max_grad_norm"
            )
        with self.path.open("a", encoding="utf-8") as file:
            # TRL counts tokens from 0 again when a run is continued.
            kept = {name: value for name, value in logs.items() if name != "num_tokens"}
            file.write(json.dumps({"step": state.global_step, **kept}) + "\n")


class ProgressBar(TrainerCallback):
    """Steps done, steps a second, time left and the loss, on standard error."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar where training begins or continues."""
        pause = 0.5 if sys.stderr.isatty() else 20.0
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.name,
            unit="step",
            mininterval=pause,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move on."""
        self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Show the loss."""
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.4g}", refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the full bar behind."""
        self.bar.close()
