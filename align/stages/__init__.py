"""The stages a recipe can name: `STAGES` maps each kind to its settings and its function.

A new stage is one file with a settings class and a function `run(context) -> StageResult`, and one
line here (or, from outside, `STAGES["mine"] = Stage(MySettings, run, "mine")`). Recipe, checks,
pipeline, table and report know stages only through this registry. Importing it is light: the files
of the stages load torch, transformers and TRL when they run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from align.context import StageContext, StageResult
from align.stages import full_dpo, pivotal_tokens, rejection_sft, sft, token_dpo
from pts.config import Settings


@dataclass(frozen=True, slots=True)
class Stage:
    """A kind of stage."""

    config: type[Settings]
    """Its settings; a field `reference` names a model, a field `pairs` a stage."""
    run: Callable[[StageContext], StageResult]
    label: str
    """Its name in tables."""
    makes: Literal["policy", "pairs"] = "policy"
    needs_pairs: bool = False
    """It trains on the pairs of the stage that its setting `pairs` names, or of the last one."""
    draws: Literal["problems", "demonstrations", "nothing"] = "problems"
    """What it takes from the task's train split; nothing where it takes rollouts."""
    rollouts: Literal["right", "all"] = "right"
    """Those that a search must have kept for the stage that names it in a setting `rollouts`."""


STAGES: dict[str, Stage] = {
    "sft": Stage(sft.SFTConfig, sft.run, "SFT", draws="demonstrations"),
    "pts": Stage(pivotal_tokens.PTSConfig, pivotal_tokens.run, "PTS", makes="pairs"),
    "token_dpo": Stage(
        token_dpo.TokenDPOConfig, token_dpo.run, "+ token DPO", needs_pairs=True, draws="nothing"
    ),
    "full_dpo": Stage(full_dpo.FullDPOConfig, full_dpo.run, "+ full DPO", rollouts="all"),
    "rejection_sft": Stage(rejection_sft.RejectionSFTConfig, rejection_sft.run, "rejection SFT"),
}
