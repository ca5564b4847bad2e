"""The rule that finds how many requests a server is given, on simulated servers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pts.engines.server.limits import START, AdaptiveLimit
from pts.engines.server.metrics import QueueState
from tests.pts.engines.simulated_server import SimulatedServer, drive, rate_of

MOST = 1024


@settings(max_examples=8, deadline=None)
@given(
    slots=st.integers(1, 100),
    each=st.sampled_from([0.0, 0.0002, 0.001]),
    line=st.sampled_from([0, 16, float("inf")]),
    seed=st.integers(0, 1000),
)
def test_it_earns_nearly_what_the_best_fixed_number_would(
    slots: int, each: float, line: float, seed: int
) -> None:
    """Whatever the batch is worth, and whether the server queues or refuses what is too much."""
    server = SimulatedServer(slots, each=each, line=line)
    trace = drive(server, AdaptiveLimit(MOST), 4000, seed)
    assert rate_of(trace[2000:]) > 0.8 * server.rate(MOST)
    assert np.median(trace[2000:, 1]) <= 2 * slots + START, (
        "it does not fill the server's own queue"
    )


def test_more_is_given_while_it_pays_and_no_longer() -> None:
    """With 300 slots 32 requests are a ninth of what could be had; with 4 they are too many."""
    many, few = AdaptiveLimit(MOST), AdaptiveLimit(MOST)
    drive(SimulatedServer(300), many, 4000)
    drive(SimulatedServer(4), few, 2000)
    assert many.limit >= 0.7 * 300
    assert few.limit <= 12


@pytest.mark.parametrize("factor", [50.0, 5000.0])
def test_slow_replies_now_and_then_do_not_matter(factor: float) -> None:
    """Of one in twenty it is said that it took 50 or 5,000 times as long."""
    server = SimulatedServer(64)
    odd = drive(
        server, AdaptiveLimit(MOST), 4000, seen=lambda n, s: s * factor if n % 20 == 0 else s
    )
    assert rate_of(odd[2000:]) > 0.85 * server.rate(MOST)


def test_it_recovers_from_an_overload() -> None:
    server, rule = SimulatedServer(100), AdaptiveLimit(MOST)
    drive(server, rule, 2000)
    for _ in range(20):
        rule.overload(rule.epoch)
    assert rule.limit == 1
    assert rate_of(drive(SimulatedServer(100), rule, 5000)[4000:]) > 0.85 * server.rate(MOST)


def test_it_follows_a_server_that_changes() -> None:
    rule = AdaptiveLimit(MOST)
    drive(SimulatedServer(128), rule, 3000)
    drive(SimulatedServer(16), rule, 3000)
    assert rule.limit < 128
    drive(SimulatedServer(128), rule, 4000)
    assert rule.limit >= 64


def test_failures_of_one_moment_are_one_overload() -> None:
    rule = AdaptiveLimit(MOST)
    epoch = rule.epoch
    for _ in range(100):
        rule.overload(epoch)
    assert rule.limit == int(0.8 * START)


def test_what_waits_in_a_server_is_taken_away_but_no_more_than_half() -> None:
    rule = AdaptiveLimit(MOST)
    rule.overload(rule.epoch, waiting=12)
    assert rule.limit == START - 12
    rule.overload(rule.epoch, waiting=1000)
    assert rule.limit == (START - 12) // 2


def test_replies_tell_nothing_when_the_server_was_not_full_or_was_given_another_number() -> None:
    rule = AdaptiveLimit(MOST)
    assert not any(rule.add(rule.epoch, 1.0, 10, full=False) for _ in range(1000))
    assert not any(rule.add(rule.epoch - 1, 1.0, 10, full=True) for _ in range(1000))
    enough = [rule.add(rule.epoch, 1.0, 10, full=True) for _ in range(START)]
    assert enough == [False] * (START - 1) + [True]


@given(st.lists(st.tuples(st.sampled_from("ado"), st.floats(1e-6, 1e6)), max_size=300))
def test_it_stays_between_one_and_the_most_whatever_happens(steps: list[tuple[str, float]]) -> None:
    rule = AdaptiveLimit(40)
    for what, seconds in steps:
        if what == "o":
            rule.overload(rule.epoch)
        for _ in range(rule.limit + 32 if what == "d" else 1):
            if rule.add(rule.epoch, seconds, 7, full=True):
                rule.decide()
        assert 1 <= rule.limit <= 40


PAGE = """# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="phi-4"} 30.0
vllm:num_requests_waiting{engine="1",model_name="phi-4"} 1.2e+01
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 30.0
vllm:num_preemptions_total{engine="0",model_name="phi-4"} 3.0
vllm:num_preemptions_created{engine="0",model_name="phi-4"} 1.7e+09
"""


def test_a_server_s_queue_is_read_from_its_metrics() -> None:
    found = QueueState.read(PAGE)
    assert found == QueueState(waiting=42.0, preempted=3.0), "of both replicas"
    assert found.crowded(limit=128)
    assert not found.crowded(limit=256)
    assert QueueState.read("llamacpp:requests_deferred 4\n") == QueueState(4.0, 0.0)
    assert QueueState.read("python_info 1.0\n") is None
