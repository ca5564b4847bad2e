"""Which server gets which request."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pts.engines.server.dispatch import ROWS_IN_FLIGHT, Dispatcher, Ticket
from pts.engines.server.endpoints import Endpoint
from pts.engines.server.limits import AdaptiveLimit


def servers(*limits: int) -> list[Endpoint]:
    return [Endpoint(f"http://{n}", AdaptiveLimit(most)) for n, most in enumerate(limits)]


class Work:
    """Requests through a dispatcher; what is sent and not done is `running`."""

    def __init__(self, endpoints: list[Endpoint], most: int | None = None) -> None:
        self.endpoints = endpoints
        self.dispatcher = Dispatcher(endpoints, most)
        self.running: list[tuple[Ticket, Endpoint]] = []
        self.now = 100.0

    def ask(self, question: int | None, times: int = 1, row: bool = False) -> list[int]:
        for _ in range(times):
            self.dispatcher.enter(Ticket(question, row), self.now)
        return self.take()

    def take(self) -> list[int]:
        given = self.dispatcher.take(self.now)
        self.running += given
        return [self.endpoints.index(endpoint) for _, endpoint in given]

    def finish(self, server: int, times: int = 1) -> list[int]:
        for _ in range(times):
            at = next(i for i, (_, e) in enumerate(self.running) if e is self.endpoints[server])
            self.dispatcher.done(*self.running.pop(at))
        return self.take()


def test_questions_are_spread_and_each_stays_where_it_is() -> None:
    work = Work(servers(8, 8, 8, 8))
    homes = [work.ask(q)[0] for q in range(8)]
    assert Counter(homes) == dict.fromkeys(range(4), 2)
    assert [work.ask(q)[0] for q in range(8)] == homes


def test_a_short_line_waits_for_its_server_though_another_is_idle() -> None:
    """Two of eight wait: that is a quarter, and a third is more."""
    work = Work(servers(8, 8))
    (home,) = set(work.ask(0, 10))
    assert work.finish(home) == [home]
    assert work.ask(0) == []
    assert work.ask(0) == [1 - home], "three wait: one moves"


def test_a_question_moves_with_the_request_that_another_server_takes_over() -> None:
    work = Work(servers(8, 8))
    sent = work.ask(0, 11)
    home = sent[0]
    assert sent == [home] * 8 + [1 - home]
    work.dispatcher.leave(Ticket(0, row=False))  # of one that does not wait: nothing happens
    assert work.ask(0) == [1 - home], "the question lives there now"


def test_a_server_does_its_own_line_first() -> None:
    work = Work(servers(4, 4))
    first, second = work.ask(0)[0], work.ask(1)[0]
    assert {first, second} == {0, 1}
    work.ask(0, 13)
    assert work.ask(1, 4) == []
    questions = []
    for _ in range(6):
        before = {id(ticket) for ticket, _ in work.running}
        work.finish(second)
        questions += [t.question for t, _ in work.running if id(t) not in before]
    assert questions[0] in (0, 1)
    assert 1 in questions
    assert 0 in questions, "then it takes over what waits elsewhere"


def test_what_waits_for_a_server_that_rests_goes_to_the_others() -> None:
    work = Work(servers(8, 8, 8))
    (home,) = set(work.ask(0, 2))
    work.endpoints[home].fail("down", 5.0, 0.0)
    work.now = work.endpoints[home].backoff_until - 0.01
    work.dispatcher.scatter(work.endpoints[home], work.now)
    moved = set(work.ask(0, 3))
    assert len(moved) == 1
    assert moved != {home}
    for endpoint in work.endpoints:
        endpoint.backoff_until = 1e9
    assert work.ask(1, 2) == [], "they all rest: it waits"
    for endpoint in work.endpoints:
        endpoint.backoff_until = 0.0
    assert len(work.take()) == 2


def test_a_fixed_number_is_shared_by_the_servers_that_work() -> None:
    endpoints = [Endpoint("http://a"), Endpoint("http://b")]
    work = Work(endpoints, most=6)
    assert Counter(work.ask(None, 20)) == {0: 3, 1: 3}
    endpoints[0].backoff_until = 1e9
    assert work.finish(0, 3) == [1, 1, 1]
    assert sum(e.in_flight for e in endpoints) == 6


def test_rows_go_first_and_do_not_count_unless_slots_are_told() -> None:
    (free,) = servers(2)
    work = Work([free])
    work.ask(0, 4)
    assert len(work.ask(0, 100, row=True)) == ROWS_IN_FLIGHT
    (told,) = servers(8)
    told.bound(3)
    work = Work([told])
    work.ask(0, 3)
    assert work.ask(0, 2, row=True) == []
    work.ask(0)
    work.finish(0)
    assert [ticket.row for ticket, _ in work.running] == [False, False, True]


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from("aaafr"), st.integers(0, 9), st.booleans()), max_size=200),
)
def test_nothing_is_lost_and_no_limit_is_passed(
    limits: list[int], steps: list[tuple[str, int, bool]]
) -> None:
    work, asked, finished = Work(servers(*limits)), 0, 0
    for what, number, row in steps:
        if what == "a":
            asked += 1
            work.ask(number, row=row)
        elif what == "r":
            endpoint = work.endpoints[number % len(limits)]
            endpoint.backoff_until = 0.0 if row else work.now + 1
            work.dispatcher.scatter(endpoint, work.now)
            work.take()
        elif work.running:
            finished += 1
            work.finish(work.endpoints.index(work.running[number % len(work.running)][1]))
        for endpoint, limit in zip(work.endpoints, limits, strict=True):
            assert endpoint.in_flight <= limit
    for endpoint in work.endpoints:
        endpoint.backoff_until = 0.0
    work.take()
    while work.running:
        finished += 1
        work.finish(work.endpoints.index(work.running[0][1]))
    assert asked == finished
