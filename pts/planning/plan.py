"""What a search will cost, and bring, before it starts: a probe of a few questions, extrapolated.

    plan = plan_search(problems, engine, verifier, SearchConfig(), output="runs/sums")
    print(f"{plan.tokens.mean:,.0f} tokens in {plan.seconds.mean / 3600:.1f} hours")
    run = pts.search(problems, engine, verifier, SearchConfig(), output="runs/sums")

The probe is the search itself (`pts.search`) on a few of the problems, drawn at random. It leaves
a run folder, so that nothing of it is lost: the search of all, with the same arguments, goes on
from there and ends with the same files as without a plan.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pts.config import SearchConfig
from pts.engines.base import Engine
from pts.errors import ConfigError, DataError
from pts.files import write_json
from pts.planning.advice import advice
from pts.planning.forecast import Forecast, forecast
from pts.runtime.progress import duration
from pts.runtime.results import Record, RolloutCost
from pts.runtime.search import search
from pts.runtime.shards import shard_of
from pts.runtime.summary import Totals
from pts.stats import jeffreys
from pts.types import Estimate, Problem, Purpose
from pts.verifiers.base import Verifier

PURPOSES: tuple[Purpose, ...] = ("filter", "search", "confirm")


class ProblemSource(Protocol):
    """Problems that can be counted and iterated again."""

    def __iter__(self) -> Iterator[Problem]: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The forecast of the shard that has the most questions; a plan's probe is no part of it."""

    shards: int
    """How many there are."""
    questions: int
    rollouts: Forecast
    tokens: Forecast
    seconds: Forecast


@dataclass(frozen=True, slots=True)
class Plan:
    """The forecast of a search of `total` questions from `probed` ones, drawn at random."""

    probed: int
    total: int
    status: Mapping[str, int]
    """Probed questions by what became of them."""
    kept: Estimate
    """Share of the questions that the filter keeps, with its Jeffreys interval."""
    filter_stopped: int
    """Probed questions that equal verdicts set aside before all filter rollouts were drawn."""
    rollouts: Mapping[Purpose, Forecast]
    all_rollouts: Forecast
    tokens: Forecast
    """Generated tokens."""
    pairs: Forecast
    """Confirmed pairs."""
    rate: float
    """Generated tokens a second, scoring and judging included, as measured now or at an earlier
    probe of the same folder; 0 if nothing was sampled at either."""
    seconds: Forecast
    """Wall time at that rate. Its interval is that of the tokens; the rate of a probe is that of
    small batches, so the search is rather faster."""
    truncated_share: float
    """Share of the probe's rollouts that the length limit cut."""
    advice: tuple[str, ...]
    output: Path
    """The probe's run folder."""
    shard: ShardPlan | None = None
    """With several shards, what one of them costs."""

    def lines(self) -> Iterator[str]:
        """The plan as text."""
        status = ", ".join(f"{n} {name}" for name, n in self.status.items())
        yield f"probed {self.probed} of {self.total:,} questions: {status}"
        kept = self.kept
        early = f"; {self.filter_stopped} set aside by their first rollouts"
        yield (
            f"kept by the filter: {kept.mean:.0%} [{kept.low:.0%}, {kept.high:.0%}]"
            f"{early if self.filter_stopped else ''}"
        )
        yield f"forecast for all {self.total:,} (95 % interval)"
        for purpose, rollouts in self.rollouts.items():
            yield f"  {purpose + ' rollouts':<17} {_interval(rollouts)}"
        yield f"  {'all rollouts':<17} {_interval(self.all_rollouts)}"
        yield f"  {'tokens':<17} {_interval(self.tokens)}"
        yield f"  {'time':<17} {self._time(self.seconds)}"
        yield f"  {'confirmed pairs':<17} {_interval(self.pairs)}"
        if (part := self.shard) is not None:
            yield f"one of {part.shards:,} shards, each has {part.questions:,} questions at most"
            yield f"  {'all rollouts':<17} {_interval(part.rollouts)}"
            yield f"  {'tokens':<17} {_interval(part.tokens)}"
            yield f"  {'time':<17} {self._time(part.seconds)}"
        yield from (f"advice: {sentence}" for sentence in self.advice)

    def _time(self, time: Forecast) -> str:
        if not self.rate:
            return "unknown: all of the probe was on file, nothing was sampled to measure a rate"
        low, high = duration(time.low), duration(time.high)
        return f"{duration(time.mean)} [{low}, {high}] at {self.rate:,.0f} tokens/s"


def plan_search(
    problems: ProblemSource,
    engine: Engine,
    verifier: Verifier,
    config: SearchConfig | None = None,
    *,
    output: Path | str,
    probe: int = 16,
    seed: int = 0,
    window: int = 64,
    shards: int = 1,
    progress: bool = True,
) -> Plan:
    """Search `probe` of the problems, leave them in `output`, and forecast the search of all.

    Which problems are probed depends on `seed` and their number; a larger probe holds the smaller
    one and resumes it. The plan is written to plan.json in `output` as well.

    Raises ConfigError for a probe of fewer than 2 questions, DataError when there are fewer, and
    what `pts.search` raises.
    """
    if probe < 2:
        raise ConfigError(f"probe: at least 2 questions are needed for an interval, got {probe}")
    if shards < 1:
        raise ConfigError(f"shards must be at least 1, got {shards}")
    if len(problems) < 2:
        raise DataError(f"at least 2 problems are needed for a forecast, got {len(problems)}")
    config, folder = config or SearchConfig(), Path(output)
    chosen = _drawn(problems, probe, seed)
    run = search(
        chosen, engine, verifier, config,
        output=folder, seed=seed, window=window, progress=progress,
    )  # fmt: skip
    names = {problem.id for problem in chosen}
    records = [record for record in run.records if record.result.problem_id in names]
    pairs = Counter(pair.problem_id for pair in run.pairs)
    rows = [_row(record, pairs[record.result.problem_id]) for record in records]
    *rollouts, all_rollouts, tokens, confirmed = forecast(rows, len(problems))
    measured = _measured(folder / "plan.json", run.sampled, run.summary.seconds)
    rate = measured["tokens"] / measured["seconds"] if measured["seconds"] else 0.0
    totals = Totals()
    for record in records:
        totals.add(record)
    summary = totals.summary(measured["seconds"])
    per_token = 1 / rate if rate else 0.0
    plan = Plan(
        probed=len(records),
        total=len(problems),
        status=summary.questions,
        kept=jeffreys(summary.questions.get("searched", 0), len(records)),
        filter_stopped=summary.filter_stopped,
        rollouts=dict(zip(PURPOSES, rollouts, strict=True)),
        all_rollouts=all_rollouts,
        tokens=tokens,
        pairs=confirmed,
        rate=rate,
        seconds=tokens.times(per_token),
        truncated_share=summary.truncated_share,
        advice=tuple(advice(summary, config, tokens)),
        output=folder,
        shard=_shard_plan(problems, shards, rows, per_token) if shards > 1 else None,
    )
    values = dataclasses.asdict(plan) | {"output": str(folder), "measured": measured}
    write_json(folder / "plan.json", values)
    return plan


def _shard_plan(
    problems: ProblemSource, shards: int, rows: Sequence[Sequence[float]], per_token: float
) -> ShardPlan:
    """What the largest shard costs: questions like the probed ones, none of them searched."""
    sizes = Counter(shard_of(problem.id, shards) for problem in problems)
    questions = max(sizes.values())
    *_, rollouts, tokens, _ = forecast(rows, questions, none_searched=True)
    return ShardPlan(shards, questions, rollouts, tokens, tokens.times(per_token))


def _drawn(problems: ProblemSource, count: int, seed: int) -> list[Problem]:
    """Problems drawn by `seed` without replacement, in their order; more contain fewer."""

    def ticket(index: int) -> bytes:
        return hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=16).digest()

    drawn = set(heapq.nsmallest(count, range(len(problems)), key=ticket))
    return [problem for index, problem in enumerate(problems) if index in drawn]


def _measured(file: Path, tokens: int, seconds: float) -> dict[str, float]:
    """Tokens and seconds of this session and of earlier ones; a session that sampled nothing new
    tells nothing of the rate."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))["measured"] if file.is_file() else {}
        before = {key: float(value) for key, value in dict(before).items()}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: damaged ({error}); delete it and plan again") from None
    if not tokens and before:
        return dict(before)
    return {
        "tokens": before.get("tokens", 0) + tokens,
        "seconds": before.get("seconds", 0.0) + seconds,
    }


def _row(record: Record, pairs: int) -> list[float]:
    """Rollouts by purpose, all rollouts, all tokens, confirmed pairs of one question."""
    spent = [record.spent.get(purpose, RolloutCost()) for purpose in PURPOSES]
    every = sum(spent, RolloutCost())
    return [*(float(tally.rollouts) for tally in spent), every.rollouts, every.tokens, pairs]


def _interval(total: Forecast) -> str:
    return f"{total.mean:,.0f} [{total.low:,.0f}, {total.high:,.0f}]"
