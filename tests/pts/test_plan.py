"""`plan_search`: the probe is part of the search, the forecast covers what the search costs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from pts.errors import ConfigError, DataError
from pts.planning.forecast import Forecast, forecast
from pts.planning.plan import Plan, plan_search
from pts.runtime.results import read_records
from pts.runtime.search import search
from pts.runtime.shards import Shard
from pts.types import Grade, Problem, Verdict

from .scripted import ScriptedEngine, judge_odd, problems
from .slow_search import CONFIG

FILES = ("results.jsonl", "pairs.jsonl", "token_texts.json")


def plan_of(
    folder: Path,
    count: int = 40,
    probe: int = 6,
    engine: ScriptedEngine | None = None,
    **changes: float,
) -> Plan:
    config = CONFIG.model_copy(update=changes)
    engine = engine or ScriptedEngine(8)
    return plan_search(problems(count), engine, judge_odd, config, output=folder, probe=probe)


def seeds(engine: ScriptedEngine) -> set[int]:
    return {seed for request in engine.requests for seed in request.seeds}


def test_the_search_goes_on_from_the_probe_and_ends_as_without_one(tmp_path: Path) -> None:
    probing, going_on, plain = (ScriptedEngine(8) for _ in range(3))
    plan_of(tmp_path / "planned", count=12, engine=probing)
    search(problems(12), going_on, judge_odd, CONFIG, output=tmp_path / "planned")
    search(problems(12), plain, judge_odd, CONFIG, output=tmp_path / "plain")
    for name in FILES:
        planned, expected = ((tmp_path / run / name).read_bytes() for run in ("planned", "plain"))
        assert planned == expected, name
    assert seeds(probing)
    assert seeds(going_on)
    assert not seeds(probing) & seeds(going_on)
    assert seeds(probing) | seeds(going_on) == seeds(plain)


def test_the_probe_is_drawn_at_random_and_a_larger_one_holds_it(tmp_path: Path) -> None:
    plan_of(tmp_path, probe=6)
    small = {r.result.problem_id for r in read_records(tmp_path / "results.jsonl")}
    plan_of(tmp_path, probe=12)
    large = {r.result.problem_id for r in read_records(tmp_path / "results.jsonl")}
    assert len(small) == 6
    assert len(large) == 12
    assert small < large
    assert large != {p.id for p in problems(12)}


def test_a_plan_made_twice_samples_nothing_and_keeps_the_rate(tmp_path: Path) -> None:
    first, engine = plan_of(tmp_path), ScriptedEngine(8)
    again = plan_of(tmp_path, engine=engine)
    assert engine.requests == []
    assert again == first
    assert first.rate > 0
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["tokens"] == dataclasses.asdict(first.tokens)


def test_without_a_rate_no_time_is_told(tmp_path: Path) -> None:
    """All of the probe was searched before, and nobody measured how long it took."""
    search(problems(40), ScriptedEngine(8), judge_odd, CONFIG, output=tmp_path)
    assert "time              unknown" in "\n".join(plan_of(tmp_path).lines())


def test_a_probe_of_everything_is_exact(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, count=5, probe=9)
    run = search(problems(5), ScriptedEngine(8), judge_odd, CONFIG)
    assert plan.probed == plan.total == 5
    for purpose, tally in run.summary.spent.items():
        assert plan.rollouts[purpose] == Forecast(*[tally.rollouts] * 3)
    tokens = sum(tally.tokens for tally in run.summary.spent.values())
    assert plan.tokens == Forecast(tokens, tokens, tokens)
    assert plan.pairs.mean == sum(run.summary.confirmed.values())


def test_the_forecast_is_told_as_text(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    text = "\n".join(plan.lines())
    assert "probed 6 of 40 questions" in text
    for name in ("filter rollouts", "search rollouts", "confirm rollouts", "tokens", "time"):
        assert name in text
    assert f"{plan.tokens.mean:,.0f} [{plan.tokens.low:,.0f}, {plan.tokens.high:,.0f}]" in text


def test_a_shard_costs_what_its_questions_do(tmp_path: Path) -> None:
    """The largest of three shards, counted by hand; the probe of the plan is not its own."""
    shards = 3
    plan = plan_search(
        problems(40), ScriptedEngine(8), judge_odd, CONFIG, output=tmp_path, probe=6, shards=shards
    )
    assert plan.shard is not None
    sizes = [sum(Shard(i, shards).holds(p.id) for p in problems(40)) for i in (1, 2, 3)]
    assert sum(sizes) == 40
    assert plan.shard.questions == max(sizes)
    share = max(sizes) / 40  # means are proportional to the questions
    assert plan.shard.rollouts.mean == pytest.approx(plan.all_rollouts.mean * share)
    assert plan.shard.tokens.mean == pytest.approx(plan.tokens.mean * share)
    assert plan.shard.seconds.mean == pytest.approx(plan.seconds.mean * share)
    assert plan.shard.rollouts.low < plan.shard.rollouts.mean < plan.shard.rollouts.high
    text = "\n".join(plan.lines())
    assert f"one of 3 shards, each has {max(sizes)} questions at most" in text
    assert text.count("  time  ") == 2, "that of all and that of a shard"
    assert json.loads((tmp_path / "plan.json").read_text())["shard"]["shards"] == shards


def test_less_than_a_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shards must be at least 1, got 0"):
        plan_search(problems(4), ScriptedEngine(8), judge_odd, CONFIG, output=tmp_path, shards=0)


def fail_all(problem: Problem, text: str) -> Grade:
    return Grade(Verdict.FAIL)


def test_the_forecast_counts_what_the_filter_did_not_draw(tmp_path: Path) -> None:
    """No answer ever passes: all questions are set aside by their first verdicts."""
    config = CONFIG.model_copy(update={"filter_rollouts": 16, "p_min": 0.2, "p_max": 0.8})
    plan = plan_search(problems(40), ScriptedEngine(8), fail_all, config, output=tmp_path, probe=6)
    assert (plan.filter_stopped, plan.kept.mean) == (6, 0.0)
    assert plan.rollouts["filter"] == Forecast(*[40.0 * 6] * 3)
    assert "set aside by their first rollouts" in "\n".join(plan.lines())


def test_too_small_probes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"at least 2 questions .* got 1"):
        plan_of(tmp_path, probe=1)
    with pytest.raises(DataError, match=r"at least 2 problems .* got 1"):
        plan_of(tmp_path, count=1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_rollouts": 1}, "ended for want of rollouts"),
        ({"p_min": 0.96, "p_max": 0.99}, "take easier questions or a lower temperature"),
        ({"p_min": 0.01, "p_max": 0.03}, "take harder questions or a higher temperature"),
    ],
)
def test_advice_names_the_setting(tmp_path: Path, changes: dict[str, float], said: str) -> None:
    plan = plan_of(tmp_path, **changes)
    assert any(said in sentence for sentence in plan.advice), plan.advice


def test_advice_speaks_of_the_length_limit_and_of_few_kept_questions(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "short", probe=3, engine=ScriptedEngine(2))
    assert any("raise max_new_tokens" in sentence for sentence in plan.advice)
    plan = plan_of(tmp_path / "few", probe=3, p_min=0.96, p_max=0.99)
    assert any("rests on 0 kept questions" in sentence for sentence in plan.advice)


# The forecast


def population(rng: np.random.Generator, count: int, kept: float) -> np.ndarray:
    """Costs of questions as searches have them: most of the cost in those that are kept.

    Columns: all rollouts, pairs. A kept question costs 16 filter rollouts, a skewed number of
    search rollouts (exponential, mean 60, at most 400) and 48 rollouts for each side of 0 to 3
    pairs; the others cost their filter rollouts alone.
    """
    keep = rng.random(count) < kept
    pairs = rng.binomial(3, 0.6, count) * keep
    search = np.minimum(rng.exponential(60, count), 400).round() * keep
    return np.stack([16 + search + 96 * pairs, pairs], axis=1)


@pytest.mark.parametrize(
    ("probe", "kept"),
    [
        (16, 0.5),
        pytest.param(16, 0.7, marks=pytest.mark.slow),
        pytest.param(32, 0.4, marks=pytest.mark.slow),
        pytest.param(32, 0.7, marks=pytest.mark.slow),
    ],
)
def test_intervals_cover_the_totals(
    probe: int, kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 searches of 500 questions: nominal 95 %, and a share of 200 has sd 1.5 %."""
    monkeypatch.setattr("pts.planning.forecast.RESAMPLES", 500)
    rng = np.random.default_rng(0)
    hits = np.zeros(2)
    for _ in range(200):
        costs = population(rng, 500, kept)
        told = forecast(costs[:probe], len(costs))
        totals = costs.sum(axis=0)
        hits += [f.low <= t <= f.high for f, t in zip(told, totals, strict=True)]
    assert np.all(hits / 200 >= 0.905), hits / 200
    assert np.all(hits / 200 <= 0.995), hits / 200


def test_the_forecast_is_probe_plus_rest_and_narrows() -> None:
    rng = np.random.default_rng(1)
    costs = population(rng, 400, 0.6)
    widths = []
    for probe in (8, 32, 128):
        (told, _) = forecast(costs[:probe], 400)
        assert told.mean == pytest.approx(400 * costs[:probe, 0].mean())
        assert told.low >= costs[:probe, 0].sum(), "what the probe has cost is certain"
        widths.append(told.high - told.low)
    assert widths == sorted(widths, reverse=True)


def test_questions_that_cost_the_same_leave_no_doubt() -> None:
    (told,) = forecast([[16.0]] * 8, 1000)
    assert told == Forecast(16_000, 16_000, 16_000)
