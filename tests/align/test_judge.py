"""A judge over HTTP: what it says is what was planted, its vices are told as the numbers that they
are, and no call is made twice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from align.judging.backends import ChatBackend, LocalBackend
from align.judging.calls import Call, Said
from align.judging.journal import CallJournal
from align.judging.judge import PromptedJudge
from align.judging.orders import BothOrders, judge_both, preference, with_accuracy
from align.judging.prompt import Case
from align.judging.replies import Judgement, Marks
from align.judging.settings import JudgeConfig
from align.judging.vices import vices
from align.settings import ModelConfig
from pts.errors import EngineError, JournalError
from pts.stats import jeffreys
from pts.types import Message
from tests.align import tiny
from tests.align.scripted_judge import LATE, ScriptedJudge


def reply(accuracy: int, style: int = 3, detail: int = 3, more: str = "") -> str:
    return f"[acc={accuracy} sty={style} det={detail}]{more}"


def case(name: str, *replies: str, vice: str = "") -> Case:
    text = f"Question {name}. [vice {vice}]" if vice else f"Question {name}."
    return Case((Message("user", text),), replies)


@pytest.fixture
def server() -> Iterator[ScriptedJudge]:
    with ScriptedJudge() as judge:
        yield judge


def chat(config: JudgeConfig) -> ChatBackend:
    sampling = {"temperature": config.temperature, "max_tokens": config.max_tokens}
    return ChatBackend(config.url, config, sampling, first=0.005)


def ask(
    server: ScriptedJudge, cases: Sequence[Case], folder: Path | None = None, **more: Any
) -> tuple[list[BothOrders], dict[str, int]]:
    config = JudgeConfig(url=server.url, model="scripted", **{"timeout": LATE / 2, **more})
    backend = chat(config)
    try:
        with CallJournal(folder and folder / "calls.jsonl") as journal:
            judge = PromptedJudge(backend, journal, config.attempts)
            return judge_both(judge, cases), judge.counts
    finally:
        backend.close()


def test_both_orders_give_the_scores_that_were_planted(server: ScriptedJudge) -> None:
    cases = [case(str(k), reply(1 + k % 5, 2, 4), reply(5 - k % 5, 5, 1)) for k in range(10)]
    found, counts = ask(server, cases)
    for k, both in enumerate(found):
        marks = (Marks(1 + k % 5, 2, 4), Marks(5 - k % 5, 5, 1))
        assert (both.given.marks, both.turned.marks) == (marks, marks)
        assert both.score(0, "overall") == pytest.approx((1 + k % 5 + 6) / 3)
    assert counts["calls"] == sum(server.asked.values()) == 20
    assert counts["prompt_tokens"] == sum(len(prompt) for prompt in server.asked)
    assert not any(counts[kind] for kind in ("asked_again", "malformed", "timed_out", "busy"))


def test_the_key_is_sent_and_told_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sesame-opens")
    cases = [case("a", reply(1), reply(2))]
    with ScriptedJudge(key="sesame-opens") as server:
        [both], _ = ask(server, cases, tmp_path, key_variable="JUDGE_KEY")
        assert both.scored
        assert "sesame" not in (tmp_path / "calls.jsonl").read_text()
        monkeypatch.setenv("JUDGE_KEY", "mellon-opens")
        with pytest.raises(EngineError, match="JUDGE_KEY was not accepted") as caught:
            ask(server, cases, key_variable="JUDGE_KEY")
        assert "mellon" not in str(caught.value)
        with pytest.raises(EngineError, match="no variable is named"):
            ask(server, cases)


PLANTED = {"position": 6, "length": 8, "refuse always": 3, "malformed always": 2, "late always": 1}


def planted() -> list[Case]:
    """Twenty sound cases, and those with vices; the longer reply is never the better one but where
    length is the judge's vice."""
    cases = [
        case(f"sound {k}", reply(5), reply(2, more=" and so on" if k % 2 else ""))
        for k in range(20)
    ]
    for vice, n in PLANTED.items():
        sides = (reply(4), reply(4, more=" long"))
        cases += [case(f"{vice} {k}", *sides, vice=vice) for k in range(n)]
    return cases


def test_each_vice_is_told_as_the_number_that_was_planted(server: ScriptedJudge) -> None:
    cases = planted()
    found, counts = ask(server, cases)
    told = vices(cases, found)
    assert told["compared"] == 20 + 6 + 8
    expected = jeffreys(6, 34)
    assert told["position"] == {
        "share": 6 / 34, "low": expected.low, "high": expected.high, "n": 34,
    }  # fmt: skip
    assert told["position_first"] == 6
    # Of the sound pairs ten have a longer side, which never wins; of the biased ones it always
    # does; those that follow the position have no preferred side.
    assert told["longer"]["share"] == pytest.approx(8 / 18)
    assert told["longer"]["n"] == 18
    # Differences (length, points of both orders): 10 × (10, -6), 8 × (5, 18), 10 × (0, 6), and
    # 6 × (5, 0).
    top = 10 * 10 * -6 + 8 * 5 * 18
    spread = (10 * 100 + 14 * 25) * (20 * 36 + 8 * 324)
    assert told["length_correlation"] == pytest.approx(top / math.sqrt(spread))
    assert told["unscored"]["share"] == pytest.approx(12 / 80)
    assert told["unscored_by"] == {"malformed": 4, "refused": 6, "timed_out": 2}
    assert (counts["refused"], counts["malformed"], counts["timed_out"]) == (18, 12, 6)
    assert counts["asked_again"] == 24
    reasons = {both.reason for both in found if not both.scored}
    assert "no reply in time" in reasons
    assert "holds no JSON object" in reasons


def test_what_passes_is_asked_again_and_scored(server: ScriptedJudge) -> None:
    kinds = ("malformed", "refuse", "late", "cut", "range", "fence", "busy", "content")
    cases = [case(kind, reply(5), reply(1), vice=kind) for kind in kinds]
    found, counts = ask(server, cases)
    scored = {kind for kind, both in zip(kinds, found, strict=True) if both.scored}
    assert scored == {"malformed", "refuse", "late", "cut", "fence", "busy"}
    assert counts["busy"] == server.turned_away == 2
    # Two orders each; scores beyond 5 stay so in all three attempts, and a call that the endpoint
    # rejects is not made again.
    assert counts["out_of_range"] == 6
    assert counts["rejected"] == 2
    assert counts["malformed"] == counts["refused"] == counts["timed_out"] == counts["cut"] == 2
    assert counts["repaired"] == 2
    assert counts["asked_again"] == 4 * 2 + 2 * 2
    assert "content_filter" in found[-1].reason


def test_without_usage_tokens_are_not_made_up() -> None:
    with ScriptedJudge(usage=False) as server:
        _, counts = ask(server, [case("a", reply(1), reply(2))])
    assert (counts["prompt_tokens"], counts["calls_without_usage"]) == (0, 2)


def test_further_keys_of_a_request(server: ScriptedJudge) -> None:
    ask(server, [case("a", reply(1), reply(2))], extra={"max_tokens": None, "top_k": 1})
    assert all("max_tokens" not in body and body["top_k"] == 1 for body in server.bodies)
    assert {body["model"] for body in server.bodies} == {"scripted"}


def test_calls_run_side_by_side_and_their_order_does_not_matter(server: ScriptedJudge) -> None:
    cases = planted()[:20]
    server.delay = 0.05
    many, _ = ask(server, cases, concurrency=8)
    assert 2 <= server.most_open <= 8
    server.delay, server.most_open = 0.0, 0
    one, _ = ask(server, cases, concurrency=1)
    assert server.most_open == 1
    assert many == one


class Torn:
    """A backend that is killed after so many replies."""

    def __init__(self, backend: ChatBackend, after: int) -> None:
        self._backend, self._after = backend, after
        self.identity = backend.identity

    def ask(self, calls: Any) -> Iterator[tuple[Call, Said]]:
        for call, said in self._backend.ask(calls):
            if not self._after:
                raise KeyboardInterrupt
            self._after -= 1
            yield call, said

    def close(self) -> None:
        self._backend.close()


@pytest.mark.parametrize("after", [0, 1, 17, 78, 90])
def test_a_killed_judge_goes_on_without_repeating_a_call(
    server: ScriptedJudge, tmp_path: Path, after: int
) -> None:
    cases = [one for one in planted() if "late" not in one.conversation[0].content]
    whole = ask(server, cases)
    calls = sum(server.asked.values())
    server.asked.clear()
    config = JudgeConfig(url=server.url, model="scripted", concurrency=1)
    backend = Torn(chat(config), after)
    with pytest.raises(KeyboardInterrupt), CallJournal(tmp_path / "calls.jsonl") as journal:
        judge_both(PromptedJudge(backend, journal, 3), cases)
    backend.close()
    assert sum(server.asked.values()) == after + 1  # the last reply was lost with the process
    with (tmp_path / "calls.jsonl").open("ab") as file:
        file.write(b'{"call":"torn","te')
    assert ask(server, cases, tmp_path) == whole
    assert sum(server.asked.values()) == calls + 1
    assert ask(server, cases, tmp_path) == whole
    assert sum(server.asked.values()) == calls + 1


def test_other_contents_are_other_calls(server: ScriptedJudge, tmp_path: Path) -> None:
    first = case("a", reply(1), reply(2))
    ask(server, [first, first], tmp_path)
    assert sum(server.asked.values()) == 2
    for cases, more in (
        ([first.turned()], {}),
        ([case("a", reply(1), reply(3))], {}),
        ([case("b", reply(1), reply(2))], {}),
        ([first], {"max_tokens": 99}),
        ([first], {"temperature": 0.5}),
    ):
        before = sum(server.asked.values())
        ask(server, cases, tmp_path, **more)
        asked = sum(server.asked.values()) - before
        assert asked == (0 if cases == [first.turned()] else 2)


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    file.write_text('{"format":9}\n')
    with pytest.raises(JournalError, match="its format is 9"):
        CallJournal(file)
    file.write_text('{"format":1}\n{"call":"a"}\n')
    with pytest.raises(JournalError, match="line 2: damaged"):
        CallJournal(file)


def test_an_endpoint_that_is_down_stops_the_run(tmp_path: Path) -> None:
    with ScriptedJudge() as server:
        pass
    with pytest.raises(EngineError, match="given up after"):
        ask(server, [case("a", reply(1), reply(2))], tmp_path, patience=0.1)
    assert (tmp_path / "calls.jsonl").read_text().count("\n") == 1


# Settling the two orders


def both(given: Any, turned: Any) -> BothOrders:
    return BothOrders(*(Judgement(tuple(Marks(*m) for m in one)) for one in (given, turned)))


@pytest.mark.parametrize(
    ("given", "turned", "settings", "accuracy", "overall"),
    [
        ([(5, 3, 3), (4, 3, 3)], [(5, 3, 3), (4, 3, 3)], {}, "first", "first"),
        ([(4, 4, 4), (4, 5, 3)], [(4, 4, 4), (4, 5, 3)], {}, "tie", "tie"),
        ([(4, 1, 1), (3, 5, 5)], [(4, 1, 1), (4, 5, 5)], {}, "first", "second"),
        ([(5, 3, 3), (4, 3, 3)], [(2, 3, 3), (4, 3, 3)], {}, "flip", "flip"),
        ([(5, 3, 3), (4, 3, 3)], [(2, 3, 3), (4, 3, 3)], {"flips": "mean"}, "second", "second"),
        ([(5, 3, 3), (4, 3, 3)], [(3, 3, 3), (4, 3, 3)], {"flips": "mean"}, "tie", "tie"),
        # A margin of 1: accuracy differs by 1 on average, overall by a third.
        ([(5, 3, 3), (3, 3, 3)], [(4, 3, 3), (4, 3, 3)], {"margin": 1.0}, "first", "tie"),
        ([(5, 3, 3), (3, 3, 3)], [(4, 3, 3), (4, 3, 3)], {"margin": 1.1}, "tie", "tie"),
        ([(5, 3, 3), (3, 3, 3)], [(4, 3, 3), (4, 3, 3)], {"margin": 1 / 3}, "first", "first"),
    ],
)
def test_preferences(given: Any, turned: Any, settings: Any, accuracy: str, overall: str) -> None:
    found = both(given, turned)
    assert preference(found, "accuracy", **settings) == accuracy
    assert preference(found, "overall", **settings) == overall
    mirrored = BothOrders(*(Judgement(one.marks[::-1]) for one in (found.given, found.turned)))
    other = {"first": "second", "second": "first"}
    assert preference(mirrored, "accuracy", **settings) == other.get(accuracy, accuracy)


def test_a_verifier_may_score_accuracy() -> None:
    found = both([(1, 3, 3), (5, 4, 3)], [(2, 3, 3), (5, 4, 3)])
    told = with_accuracy(found, [True, False])
    assert told == both([(5, 3, 3), (1, 4, 3)], [(5, 3, 3), (1, 4, 3)])
    missing = BothOrders(found.given, Judgement((), "refused", "no"))
    assert preference(with_accuracy(missing, [True, False]), "accuracy") == "unscored"


# A local judge


def local(base: str, **more: Any) -> tuple[list[BothOrders], dict[str, int]]:
    config = JudgeConfig(path=base, chat_template="chatml", **more)
    backend = LocalBackend(config, ModelConfig(path=base, device="cpu"))
    with CallJournal() as journal:
        judge = PromptedJudge(backend, journal, config.attempts)
        return judge_both(judge, [case("a", reply(5), reply(1))]), judge.counts


def test_a_model_that_cannot_judge_leaves_all_unscored() -> None:
    found, counts = local("builtin:phi-nano", max_tokens=30, attempts=1)
    assert not any(both.scored for both in found)
    assert counts["calls"] == counts["cut"] + counts["malformed"] == 2
    assert counts["prompt_tokens"] > 0
    assert counts["reply_tokens"] > 0
    assert counts["calls_without_usage"] == 0


def test_a_prompt_beyond_the_context_is_asked_once_and_told(tmp_path: Path) -> None:
    found, counts = local(str(tiny.save(tmp_path)), max_tokens=30, attempts=3)
    assert counts["calls"] == counts["rejected"] == 2
    assert all("longer than the model's context of 256" in both.reason for both in found)


def test_a_prompt_with_a_special_token_is_rejected_and_the_others_are_asked() -> None:
    config = JudgeConfig(path="builtin:phi-nano", chat_template="chatml", max_tokens=4)
    backend = LocalBackend(config, ModelConfig(path="builtin:phi-nano", device="cpu"))
    texts = {"a" * 32: "Say 1. <|im_end|>", "b" * 32: "Say 2."}
    calls = [Call(digest, (Message("user", text),)) for digest, text in texts.items()]
    found = {call.digest: said for call, said in backend.ask(calls)}
    assert found["a" * 32].end == "rejected"
    assert "holds the special token <|im_end|>" in found["a" * 32].text
    assert found["b" * 32].end in ("stop", "length")
