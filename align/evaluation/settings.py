"""Settings of the evaluation after every stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from align.engines.settings import EngineConfig
from pts.config import Settings


class EvaluateConfig(Settings):
    """What is measured after every stage."""

    problems: int = Field(1000, ge=10, le=10**9)
    """Held-out problems."""
    split: Literal["dev", "test"] = "test"
    """Tune on dev; publish test."""
    seed: int = 0
    """Seed of the problem set (the published table takes it from the measured commit)."""
    samples: int = Field(8, ge=1, le=100_000)
    """Sampled completions a problem at the recipe's temperature (pass@k uses all of them)."""
    temperatures: tuple[Annotated[float, Field(ge=0, le=10)], ...] = ()
    """Temperatures tried on the dev split; the lowest one within a standard error of the best there
    is measured on `split` as well."""
    dev_problems: int = Field(300, ge=10)
    """Problems of the dev split on which the best temperature is chosen."""
    skip: tuple[str, ...] = ()
    """Policies that are not measured (a control arm shares its start with another run)."""
    engine: EngineConfig | None = None
    """Where the answers come from; the recipe's engine if not given. Entropy and KL always come
    from transformers in this process."""
