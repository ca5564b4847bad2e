"""A plan as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from align.planning.plan import Phase, Plan, StagePlan
from pts.runtime.progress import duration

HEAD = (
    "stage", "questions", "rollouts", "sampled tokens", "rows", "steps", "trained tokens",
    "GB a device", "fits", "device-hours", "time", "disk GB",
)  # fmt: skip


FREE = 0.9
"""Share of a device's memory above which a stage that fits is called tight."""


def short(number: float) -> str:
    """A number with three digits: 950, 12.3K, 1.45M; empty for 0."""
    if not number:
        return ""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if number >= size * 0.9995:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def to_text(plan: Plan) -> str:
    """Table, totals, what does not fit, and assumptions."""
    return "\n".join(_lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    shape, device = plan.shape, plan.device
    yield (
        f"{plan.recipe.name}: {short(shape.parameters)} parameters ({shape.source}), on "
        f"{device.name} ({_gb(device.memory)} GB)"
    )
    yield ""
    yield from _table([HEAD, *(_row(plan, stage) for stage in plan.stages), _totals(plan)])
    yield ""
    yield from _memory_lines(plan)
    for stage in plan.stages:
        if stage.kind == "pts" and stage.counts.most_rollouts:
            most = short(stage.counts.most_rollouts)
            yield f"{stage.name}: at most {most} rollouts at this share of kept questions"
        if stage.kind != "eval" and getattr(plan.recipe.settings(stage.name), "judge", None):
            yield f"{stage.name}: the calls of its judge are not planned here; see align check"
    yield ""
    yield "Assumptions (set one with --set NAME=VALUE, or measure them with --like RUN)"
    limit = plan.recipe.sampling.max_new_tokens
    for name, value, source in plan.assumed.lines(limit):
        yield f"  {name} {value:.4g}: {source}"
    yield f"  device: {device.source}"
    if plan.assumed.factors:
        factor = plan.assumed.factors[""]
        yield f"  seconds: those of the run, by stage ({factor:.3g} times the formulas, median)"


def _row(plan: Plan, stage: StagePlan) -> tuple[str, ...]:
    counts, most = stage.counts, stage.peak.memory.total
    return (
        stage.name,
        short(round(counts.questions)),
        short(round(counts.rollouts)),
        short(counts.generated),
        short(round(counts.rows or counts.pairs)),
        short(counts.steps),
        short(counts.trained),
        _gb(most),
        _fits(most, plan.device.memory),
        _hours(stage.device_seconds),
        duration(stage.seconds),
        _gb(stage.disk.total),
    )


def _totals(plan: Plan) -> tuple[str, ...]:
    counts = [stage.counts for stage in plan.stages]
    most = max(stage.peak.memory.total for stage in plan.stages)
    return (
        "total", "", short(round(sum(c.rollouts for c in counts))),
        short(sum(c.generated for c in counts)), "", short(sum(c.steps for c in counts)),
        short(sum(c.trained for c in counts)), _gb(most),
        _fits(most, plan.device.memory), _hours(plan.device_seconds),
        duration(plan.seconds), _gb(plan.disk),
    )  # fmt: skip


def _memory_lines(plan: Plan) -> Iterator[str]:
    """Each phase's memory by what it is for; and what makes it fit."""
    yield "Memory of a device, GB"
    seen: set[str] = set()
    for stage in plan.stages:
        for phase in stage.phases[1:]:
            said = _parts(phase)
            if said not in seen or phase.name != "scoring":
                seen.add(said)
                yield f"  {stage.name} {phase.name} ({phase.devices}): {said}"
        if stage.peak.memory.total > plan.device.memory:
            yield f"    does not fit: {_remedy(plan, stage)}"


def _remedy(plan: Plan, stage: StagePlan) -> str:
    peak = stage.peak
    if peak.name == "training" and stage.longest_fitting >= 8:
        batch = plan.recipe.settings(stage.name).batch_size
        return (
            f"its longest batch has {batch} rows of {stage.counts.longest:,.0f} tokens; rows of "
            f"{stage.longest_fitting:,} would fit, or a smaller batch_size with more "
            "gradient_accumulation"
        )
    if peak.name == "training":
        return "the weights' state alone is too much; use more processes with fsdp2, or lora"
    if peak.name == "reference" and peak.memory.weights > FREE * plan.device.memory:
        return "one process holds all of the reference's weights; take a larger device, or lora"
    if peak.name == "reference":
        return "one process holds the reference's weights and a batch; lower batch_size"
    if peak.name == "scoring":
        return "entropy and KL take this policy and the one before it on one device; evaluate.skip"
    return "the weights are too much for the devices that sample; share them (tensor parallel)"


def _parts(phase: Phase) -> str:
    parts = {name: value for name, value in asdict(phase.memory).items() if value >= 5e7}
    told = ", ".join(f"{name.replace('_', ' ')} {_gb(value)}" for name, value in parts.items())
    return f"{_gb(phase.memory.total)} = {told}" if told else _gb(phase.memory.total)


def _fits(needed: float, memory: float) -> str:
    """What an allocator loses between blocks is no part of a plan, so little room is no room."""
    if needed > memory:
        return "NO"
    return "yes" if needed <= FREE * memory else "tight"


def _gb(number: float) -> str:
    return f"{number / 1e9:,.1f}" if number >= 1e8 else f"{number / 1e9:.2g}"


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        yield "  ".join([row[0].ljust(widths[0]), *rest]).rstrip()


def to_json(plan: Plan) -> dict[str, Any]:
    """All numbers, in tokens, seconds and bytes."""
    limit = plan.recipe.sampling.max_new_tokens
    return {
        "recipe": plan.recipe.name,
        "device": asdict(plan.device),
        "parameters": plan.shape.parameters,
        "stages": {stage.name: _stage_json(plan, stage) for stage in plan.stages},
        "total": {
            "seconds": plan.seconds,
            "device_hours": plan.device_seconds / 3600,
            "disk": plan.disk,
            "generated": sum(stage.counts.generated for stage in plan.stages),
        },
        "assumptions": {
            name: {"value": value, "source": source}
            for name, value, source in plan.assumed.lines(limit)
        },
    }


def _stage_json(plan: Plan, stage: StagePlan) -> dict[str, Any]:
    return {
        "kind": stage.kind,
        **asdict(stage.counts),
        "seconds": stage.seconds,
        "device_hours": stage.device_seconds / 3600,
        "memory": stage.peak.memory.total,
        "fits": stage.peak.memory.total <= plan.device.memory,
        "disk": asdict(stage.disk),
        "phases": [asdict(phase) for phase in stage.phases],
    }
