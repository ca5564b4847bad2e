"""What a plan takes for granted, one value each, with its reason; all can be set, or measured.

`--set answer_tokens=900` sets one, `--like RUN` takes from a finished run what it measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field

from pts.config import Settings


class Assumptions(Settings):
    """What no recipe says and no config tells. Each value is a choice unless its line says more."""

    prompt_tokens: float = Field(150, gt=0)
    """Tokens of a question in its template; phi-nano's have 68."""
    answer_tokens: float = Field(0, ge=0)
    """Tokens of an answer; 0 takes 0.4 of sampling.max_new_tokens (phi-nano: 0.35 to 0.49)."""
    chat_tokens: float = Field(1000, gt=0)
    """Tokens of a chat that SFT trains on; phi-nano's have 113."""
    loss_share: float = Field(0.7, gt=0, le=1)
    """Share of a chat's tokens that carry loss; phi-nano's 0.39."""
    solve_a: float = Field(0.5, gt=0)
    """p(success) of the questions is Beta(solve_a, solve_b): half of them solved on average, and
    many nearly always or never; 0.41 of them between 0.2 and 0.8."""
    solve_b: float = Field(0.5, gt=0)
    """See solve_a."""
    distinct_share: float = Field(1.0, gt=0, le=1)
    """Share of right answers that differ; short ones repeat (phi-nano: 0.75)."""
    path_rollouts: float = Field(500, gt=0)
    """Rollouts that a searched path would take without a limit; with `max_rollouts` M it takes
    m (1 - exp(-M / m)). Phi-nano's paths of 41 tokens 135, paths with 46 uncertain tokens 507."""
    search_share: float = Field(0.55, gt=0, le=1)
    """Tokens of a search rollout by those of a whole answer (docs/choosing-settings.md: 23.4 of
    42.9)."""
    proposals: float = Field(2.8, gt=0)
    """Pairs that a kept question proposes, `max_pairs` at most (docs/choosing-settings.md)."""
    confirm_rollouts: float = Field(25, gt=0)
    """Rollouts of each side of a proposed pair, limited as those of a path
    (docs/choosing-settings.md)."""
    confirm_share: float = Field(0.7, gt=0, le=1)
    """Tokens of a confirmation rollout by those of a whole answer (30.0 of 42.9, same page)."""
    confirmed: float = Field(0.9, gt=0, le=1)
    """Share of proposed pairs that are confirmed; phi-nano 0.86 to 0.98."""
    mfu: float = Field(0.4, gt=0, le=1)
    """Share of the device's arithmetic that training and prompts reach; Korthikanti et al. (2022)
    reach 0.42 to 0.57 with more work."""
    bandwidth_share: float = Field(0.6, gt=0, le=1)
    """Share of the device's bandwidth that sampling reaches."""
    rows: int = Field(0, ge=0)
    """Answers in progress on a device at most; 0 takes 64 on a CPU and 256 on a GPU, and what fits
    into the memory."""
    layer_seconds: float = Field(0, ge=0)
    """Seconds a layer and token position that do not depend on rows (starting of kernels); 0 takes
    5e-4 for transformers and 5e-5 for vLLM and servers."""
    start_seconds: float = Field(0, ge=0)
    """Seconds of a stage before its first token: libraries and weights are loaded; 0 takes 2 on a
    CPU, where one process runs all stages, and 60 on GPUs."""
    process_bytes: float = Field(1e9, ge=0)
    """Memory of a process without a model: libraries, and the context of the device."""

    def answer(self, limit: int) -> float:
        """Tokens of an answer under a length limit."""
        return min(self.answer_tokens or 0.4 * limit, limit)


FEW_SHOT = "few-shot base"
"""Names the evaluation of a base model that has not learnt to chat: its prompts are long, and its
answers are those of the examples in them."""


@dataclass(frozen=True)
class Assumed:
    """The assumptions of a plan: for all stages, and what was measured of single ones."""

    common: Assumptions = field(default_factory=Assumptions)
    of_stage: Mapping[str, Assumptions] = field(default_factory=dict)
    """By the name of a stage (or `eval/NAME`) of the run that was measured."""
    of_kind: Mapping[str, Assumptions] = field(default_factory=dict)
    """By the kind of a stage (or `eval`), for stages of other names."""
    factors: Mapping[str, float] = field(default_factory=dict)
    """By the same names: measured seconds of such a stage by those of its plan."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where a value is from, by its name."""

    def with_values(self, told: Mapping[str, Any]) -> Assumed:
        """These, with values that a person gave over all others."""

        def over(one: Assumptions) -> Assumptions:
            return Assumptions(**{**one.model_dump(), **told})

        return replace(
            self,
            common=over(self.common),
            of_stage={name: over(one) for name, one in self.of_stage.items()},
            of_kind={kind: over(one) for kind, one in self.of_kind.items()},
            sources={**self.sources, **dict.fromkeys(told, "given with --set")},
        )

    def at(self, name: str, kind: str) -> Assumptions:
        """The assumptions for one stage."""
        return self.of_stage.get(name) or self.of_kind.get(kind) or self.common

    def factor(self, name: str, kind: str) -> float:
        """Measured by planned seconds of such a stage; 1 without a measurement."""
        return self.factors.get(name) or self.factors.get(kind) or self.factors.get("", 1.0)

    def lines(self, limit: int) -> Iterator[tuple[str, float, str]]:
        """Name, value and source of each."""
        for name, info in Assumptions.model_fields.items():
            value = getattr(self.common, name)
            if name == "answer_tokens":
                value = self.common.answer(limit)
            said = " ".join((info.description or "").split())
            yield name, value, self.sources.get(name, said)


def capped(mean: float, most: float) -> float:
    """Mean of min(X, most) for an exponential X."""
    return mean * -math.expm1(-most / mean)
