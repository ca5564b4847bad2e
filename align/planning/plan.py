"""What a recipe will cost, before anything is loaded: counts, memory, hours and disk of each stage.

    plan = make_plan(recipe, shape_of(recipe.model), device_named("h100"), Assumed())
    print(to_text(plan))

Each stage is counted after those before it (`counts`), and its phases (sampling, the reference,
training) are put on the devices that the recipe's engine and `launch` name. No seconds are planned
for judges, for verifiers, or for networks between devices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from align.context import BASE, StageEntry
from align.planning.assumptions import FEW_SHOT, Assumed, Assumptions
from align.planning.counts import Counts, count, count_evaluation
from align.planning.devices import Device
from align.planning.disk import Disk, stage_disk
from align.planning.memory import (
    Memory,
    longest_that_fits,
    reference_memory,
    sampling_memory,
    training_memory,
)
from align.planning.shapes import Shape
from align.planning.speed import (
    is_gpu,
    rows_at_once,
    sampler_of,
    sampling_seconds,
    scoring_seconds,
    training_seconds,
)
from align.settings import TrainingConfig
from align.stages import STAGES
from pts.config import Settings

if TYPE_CHECKING:
    from align.pipeline.recipe import Recipe

START_SECONDS = {True: 60.0, False: 2.0}
"""Of a stage on a GPU, on a CPU, before its first token."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a stage that has the devices to itself."""

    name: str
    """start, sampling, scoring or training."""
    seconds: float
    devices: int
    memory: Memory
    """Of each device."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage, or one evaluation (`eval/NAME`)."""

    name: str
    kind: str
    counts: Counts
    phases: tuple[Phase, ...]
    disk: Disk
    longest_fitting: int = 0
    """Of a training that does not fit: tokens of a row with which its batch would; 0 if none."""

    @property
    def seconds(self) -> float:
        """From its start to its end."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def device_seconds(self) -> float:
        """Of all devices that its phases use."""
        return sum(phase.seconds * phase.devices for phase in self.phases)

    @property
    def peak(self) -> Phase:
        """The phase that needs most memory of a device."""
        return max(self.phases, key=lambda phase: phase.memory.total)


@dataclass(frozen=True)
class Plan:
    """All of a recipe, on one kind of device."""

    recipe: Recipe
    shape: Shape
    device: Device
    assumed: Assumed
    stages: tuple[StagePlan, ...]

    @property
    def seconds(self) -> float:
        """One stage after the other; on a CPU with two cores evaluations run beside stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def device_seconds(self) -> float:
        """Of all devices that are used."""
        return sum(stage.device_seconds for stage in self.stages)

    @property
    def disk(self) -> float:
        """At the peak: all that stays, and the checkpoints of the stage that has most."""
        kept = sum(stage.disk.policy + stage.disk.files for stage in self.stages)
        return kept + max((stage.disk.checkpoints for stage in self.stages), default=0.0)


def make_plan(
    recipe: Recipe, shape: Shape, device: Device, assumed: Assumed, devices: int = 0
) -> Plan:
    """The plan of a recipe.

    Args:
        devices: that sample at a time, whatever the engine says; 0 goes by the engine.

    Raises:
        RecipeError: what a stage trains on cannot be counted.
    """
    planner = _Planner(recipe, shape, device, assumed, devices)
    plans, counts = [planner.evaluation(BASE)], dict[str, Counts]()
    for entry in recipe.stages:
        plan = planner.stage(entry, counts)
        counts[entry.name] = plan.counts
        plans.append(plan)
        if STAGES[entry.kind].makes == "policy":
            plans.append(planner.evaluation(entry.name, recipe.start_of(entry)))
    return Plan(recipe, shape, device, assumed, tuple(p for p in plans if p is not None))


@dataclass(frozen=True)
class _Planner:
    recipe: Recipe
    shape: Shape
    device: Device
    assumed: Assumed
    devices: int

    def stage(self, entry: StageEntry, before: dict[str, Counts]) -> StagePlan:
        told = self.assumed.at(entry.name, entry.kind)
        counts = count(self.recipe, entry, told, before)
        phases = self._sampling(self.recipe.engine_of(entry), counts, told)
        fitting = 0
        if isinstance(entry.settings, TrainingConfig):
            trained = self._training(entry.settings, counts, told)
            phases += trained
            if trained[-1].memory.total > self.device.memory:
                fitting = longest_that_fits(
                    self.recipe, entry.settings, self.shape, counts, told, is_gpu(self.device),
                    self.device.memory,
                )  # fmt: skip
        factor = self.assumed.factor(entry.name, entry.kind)
        return self._whole(
            entry.name, entry.kind, entry.settings, counts, phases, told, fitting, factor
        )

    def evaluation(self, policy: str, start: str = BASE) -> StagePlan | None:
        """Of a policy that is compared with the one that it started from, unless that is `base`."""
        if policy in self.recipe.evaluate.skip:
            return None
        name = f"eval/{policy}"
        few_shot = policy == BASE and self.recipe.model.few_shot_base
        key = FEW_SHOT if few_shot else name
        told = self.assumed.at(key, "eval")
        counts = count_evaluation(self.recipe, told)
        engine = self.recipe.evaluate.engine or self.recipe.engine
        phases = self._sampling(engine, counts, told)
        seconds = scoring_seconds(self.recipe, self.shape, self.device, told, counts)
        phases.append(Phase("scoring", seconds, 1, self._alone(told, counts, 1 + (start != BASE))))
        factor = self.assumed.factor(key, "eval")
        return self._whole(name, "eval", None, counts, phases, told, 0, factor)

    def _whole(
        self, name: str, kind: str, settings: Settings | None, counts: Counts,
        phases: list[Phase], told: Assumptions, fitting: int, factor: float,
    ) -> StagePlan:  # fmt: skip
        seconds = told.start_seconds or START_SECONDS[is_gpu(self.device)]
        start = Phase("start", seconds, phases[0].devices, Memory())
        scaled = [replace(phase, seconds=phase.seconds * factor) for phase in phases]
        answer = told.answer(self.recipe.sampling.max_new_tokens)
        dtype = self.recipe.model.dtype
        disk = stage_disk(settings, kind, self.shape, dtype, counts, answer)
        return StagePlan(name, kind, counts, (start, *scaled), disk, fitting)

    def _alone(self, told: Assumptions, counts: Counts, models: int) -> Memory:
        """One sequence at a time through one model, or through two."""
        memory = sampling_memory(self.recipe, self.shape, 1, counts.longest, told, 1)
        logits = 4.0 * models * counts.longest * self.shape.vocab
        return replace(memory, weights=models * memory.weights, logits=logits)

    def _sampling(self, engine: Any, counts: Counts, told: Assumptions) -> list[Phase]:
        if not counts.generated:
            return []
        sampler = sampler_of(engine, self.devices)
        recipe, shape, device = self.recipe, self.shape, self.device
        seconds = sampling_seconds(recipe, shape, device, told, sampler, counts)
        rows = rows_at_once(recipe, shape, device, told, sampler, counts.length)
        memory = sampling_memory(recipe, shape, rows, counts.length, told, sampler.parts)
        return [Phase("sampling", seconds, sampler.devices, memory)]

    def _training(self, config: TrainingConfig, counts: Counts, told: Assumptions) -> list[Phase]:
        recipe, shape, gpu = self.recipe, self.shape, is_gpu(self.device)
        phases = []
        if counts.scored:
            seconds = scoring_seconds(recipe, shape, self.device, told, counts)
            memory = reference_memory(recipe, config, shape, counts, told, gpu)
            phases.append(Phase("reference", seconds, 1, memory))
        seconds = training_seconds(recipe, config, shape, self.device, told, counts)
        memory = training_memory(recipe, config, shape, counts, told, gpu)
        return [*phases, Phase("training", seconds, recipe.launch.processes, memory)]
