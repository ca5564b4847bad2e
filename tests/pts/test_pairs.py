from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pts.algorithm.criteria import fork_pairs, path_pairs
from pts.algorithm.pairs import PairProposer, confirm, rank_proposals, screen
from pts.algorithm.paths import ScoredCompletion, SiblingCounts
from pts.algorithm.selection import select_pairs
from pts.algorithm.sequential import gap_interval, sequential_test
from pts.algorithm.siblings import (
    BetaPrior,
    PairProposal,
    PathAnalysis,
    PathSiblings,
    SiblingEstimate,
)
from pts.config import SearchConfig
from pts.data.pairs import read_pairs, write_pairs
from pts.errors import DataError
from pts.stats import half_width, jeffreys
from pts.types import (
    CandidatePair,
    CompletionResult,
    Cost,
    Counts,
    Estimate,
    PivotalToken,
    QuestionResult,
    Rollout,
    RolloutQuery,
    TokenDistribution,
    Verdict,
)

CONFIG = SearchConfig(fork_rollouts=8)


def rollouts(successes: int, n: int) -> list[Rollout]:
    verdicts = [Verdict.PASS] * successes + [Verdict.FAIL] * (n - successes)
    return [Rollout((1,), verdict, False, 2) for verdict in verdicts]


def estimate(mean: float) -> Estimate:
    return Estimate(mean, mean - 0.1, mean + 0.1, 20, "test")


def finding(delta: float | None, screening: int = 100) -> PathAnalysis:
    """Two positions: π = .5, .3, .16, .04 at the first (path token 7), all sure at the second."""
    rows = (
        TokenDistribution(np.array([7, 8, 9, 10]), np.array([0.5, 0.3, 0.16, 0.04])),
        TokenDistribution(np.array([7]), np.array([1.0])),
    )
    path = ScoredCompletion((7, 7), Verdict.PASS, rows)
    tokens = ()
    if delta is not None:
        change = estimate(delta)
        tokens = (PivotalToken(0, 7, 0.5, estimate(0.5), estimate(0.5 + delta), change, True),)
    result = CompletionResult(
        ids=path.ids,
        verdict=path.verdict,
        probs=(0.5, 1.0),
        curve_at=(0, 1, 2),
        curve=(estimate(0.5),) * 3,
        tokens=tokens,
        siblings={},
        stopped="decided",
    )
    after = [BetaPrior(0.5 + (delta or 0.0), 40.0), BetaPrior(1.0)]
    return PathAnalysis(
        path, result, SiblingCounts(), after, [BetaPrior(0.5), BetaPrior(0.5)], screening
    )


def fill(found: PathAnalysis, counts: dict[int, tuple[int, int]]) -> PathAnalysis:
    for token, (successes, n) in counts.items():
        found.groups.add(0, token, rollouts(successes, n))
    return found


def test_belief_has_the_strength_of_its_beta_distribution() -> None:
    # Beta(3, 7): mean .3, variance .3 * .7 / 11, ten pseudo-rollouts.
    assert BetaPrior.of(0.3, (0.3 * 0.7 / 11) ** 0.5).strength == pytest.approx(10.0)
    assert BetaPrior.of(1.0, 0.0).strength == 1e4


def test_a_sibling_of_which_nothing_is_known_is_not_taken_for_certain() -> None:
    # The neighbourhood says 1 with two pseudo-rollouts: sd of Beta with mean 2.5 / 3 after them.
    found = dataclasses.replace(finding(None), left=[BetaPrior(1.0), BetaPrior(1.0)])
    option = PathSiblings(found, CONFIG).estimate(0, 8)
    assert (option.mean, option.measured) == (1.0, False)
    assert option.sd == pytest.approx((2.5 / 3 * 0.5 / 3 / 3) ** 0.5)


def test_upward_token_is_chosen_over_the_worst_likely_sibling() -> None:
    found = fill(finding(0.3), {8: (6, 10), 9: (1, 10), 10: (0, 10)})
    (pair,) = path_pairs(PathSiblings(found, CONFIG))
    assert (pair.chosen.token, pair.rejected.token) == (7, 9)  # 10 is worse but too rare
    # Shrunk by two pseudo-rollouts at 0.5: (1 + 1) / 12.
    assert pair.rejected.mean == pytest.approx(2 / 12)
    assert pair.gap == pytest.approx(0.8 - 2 / 12)
    assert pair.measured


def test_downward_token_is_rejected_for_the_best_likely_sibling() -> None:
    found = fill(finding(-0.3), {8: (6, 10), 9: (9, 10), 10: (10, 10)})
    (pair,) = path_pairs(PathSiblings(found, CONFIG))
    assert (pair.chosen.token, pair.rejected.token) == (9, 7)


def test_forks_compare_siblings_whichever_the_path_took() -> None:
    found = fill(finding(None), {8: (10, 10), 9: (0, 10)})
    (pair,) = fork_pairs(PathSiblings(found, CONFIG))
    assert (pair.chosen.token, pair.rejected.token, pair.criterion) == (8, 9, "fork")
    only = PairProposer(found, SearchConfig(criteria=("path",))).proposals()
    assert "fork" not in {pair.criterion for pair in only}


def test_no_proposal_below_the_gap() -> None:
    found = fill(finding(None), {8: (6, 12), 9: (6, 12)})
    assert PairProposer(found, CONFIG).proposals() == []


def test_a_pair_of_both_criteria_is_proposed_once_as_path() -> None:
    found = fill(finding(0.4), {8: (5, 10), 9: (0, 10)})
    assert [p.criterion for p in PairProposer(found, CONFIG).proposals()] == ["path"]


def drive(search: Any, rate: dict[int, float]) -> tuple[Any, list[RolloutQuery]]:
    asked: list[RolloutQuery] = []
    try:
        queries = next(search)
        while True:
            asked += queries
            queries = search.send([rollouts(round(rate[w.prefix[-1]] * w.n), w.n) for w in queries])
    except StopIteration as stop:
        return stop.value, asked


def test_screening_measures_what_may_win_and_stops_within_its_budget() -> None:
    found = finding(0.3)
    proposals, asked = drive(screen(found, CONFIG), {7: 0.8, 8: 0.75, 9: 0.0})
    assert {query.prefix for query in asked} <= {
        (8,),
        (9,),
    }  # the path's token is known well enough
    assert all(query.purpose == "search" for query in asked)
    assert proposals[0].rejected.token == 9
    _, few = drive(screen(finding(0.3, screening=5), CONFIG), {8: 0.5, 9: 0.5})
    assert sum(query.n for query in few) <= 5


def test_screening_leaves_a_sibling_that_fell_behind() -> None:
    found = finding(-0.3)  # rejected: the path's token; which sibling is best?
    _, asked = drive(screen(found, SearchConfig(fork_rollouts=20)), {8: 1.0, 9: 0.0})
    spent = {at: sum(w.n for w in asked if w.prefix == at) for at in {w.prefix for w in asked}}
    assert spent[(8,)] == 20
    assert spent.get((9,), 0) <= 10


def option(token: int, prob: float, mean: float) -> SiblingEstimate:
    return SiblingEstimate(token, prob, mean, 0.1, True)


def test_proposals_rank_by_worth() -> None:
    good = PairProposal((), option(1, 0.5, 0.9), option(2, 0.4, 0.5), "path")  # .4 * .4
    rare = PairProposal((), option(1, 0.5, 0.9), option(3, 0.06, 0.1), "path")  # .06 * .8
    best = PairProposal((7,), option(1, 0.5, 0.9), option(2, 0.4, 0.4), "fork")  # .4 * .5
    assert rank_proposals([rare, good, best, good], 2) == [best, good]


def test_confirmation_draws_afresh_until_each_pair_is_settled() -> None:
    fatal = PairProposal((), option(1, 0.5, 0.9), option(2, 0.4, 0.5), "path")
    weak = PairProposal((), option(3, 0.5, 0.9), option(4, 0.4, 0.5), "fork")
    soft = PairProposal((5,), option(1, 0.5, 0.9), option(2, 0.4, 0.5), "fork")
    rates = {1: 1.0, 2: 0.0, 3: 0.5, 4: 0.5}
    (kept, dropped), asked = drive(confirm([fatal, weak], SearchConfig()), rates)
    # 8 against 0 of 8 says enough, 4 against 4 goes on to 12 a side, where 6 against 6 do not.
    assert asked[:4] == [RolloutQuery((token,), 8, "confirm") for token in (1, 2, 3, 4)]
    assert asked[4:] == [RolloutQuery((token,), 4, "confirm") for token in (3, 4)]
    assert (kept.confirm_chosen, kept.confirm_rejected) == (Counts(8, 8), Counts(0, 8))
    assert kept.pvalue == sequential_test(128, 0.2 - 0.05).pvalue(8, 8, 0)
    assert (dropped.confirm_chosen.n, dropped.pvalue) == (12, 1.0)
    config = SearchConfig(confirm_rollouts=24)
    ((last,), drawn) = drive(confirm([soft], config), {1: 0.75, 2: 0.25})
    assert {query.prefix: 0 for query in drawn}.keys() == {(5, 1), (5, 2)}
    assert sum(query.n for query in drawn) == 2 * last.confirm_chosen.n <= 48


def test_nothing_proposed_nothing_asked() -> None:
    assert drive(confirm([], SearchConfig()), {}) == ([], [])


def candidate(position: int, criterion: Any, pvalue: float, rejected: int = 9) -> CandidatePair:
    return CandidatePair(
        position=position,
        chosen=8,
        rejected=rejected,
        chosen_prob=0.3,
        rejected_prob=0.2,
        criterion=criterion,
        search_gap=0.5,
        confirm_chosen=Counts(40, 48),
        confirm_rejected=Counts(12, 48),
        pvalue=pvalue,
    )


def question(*pairs: CandidatePair, paths: int = 1, name: str = "q") -> QuestionResult:
    found = finding(None).result
    path = CompletionResult(
        ids=(5, 6, 0),
        verdict=Verdict.PASS,
        probs=(1.0, 1.0, 1.0),
        curve_at=found.curve_at,
        curve=found.curve,
        tokens=(),
        siblings={},
        stopped="decided",
        pairs=pairs,
    )
    cost = {"search": Cost(1, 1)}
    prompt = (1, 2) if name == "q" else (1, 2, ord(name))
    return QuestionResult(name, prompt, "searched", estimate(0.5), (path,) * paths, cost)


def test_selected_pairs_carry_ids_and_fresh_estimates() -> None:
    (pair,) = select_pairs([question(candidate(2, "path", 0.001))], SearchConfig(), "digest")
    assert pair.prompt_ids == (1, 2, 5, 6)
    assert (pair.chosen, pair.rejected, pair.policy_digest) == (8, 9, "digest")
    assert pair.p_chosen == jeffreys(40, 48, half_width(0.95))
    assert pair.p_rejected == jeffreys(12, 48, half_width(0.95))
    assert pair.gap == gap_interval(sequential_test(128, 0.2 - 0.05), 48, 40, 12, 0.95)
    assert 0.5 < pair.gap.mean < 28 / 48, "it did not stop at 40, so the gap is rather smaller"
    assert pair.expected_gain == pytest.approx(0.2 * pair.gap.mean)


def test_intervals_are_wider_the_fewer_of_the_proposals_are_selected() -> None:
    """One of four in its family, the other family apart: level 1 - .05 / 4, and .95."""
    dropped = [candidate(0, "path", 1.0, rejected) for rejected in (3, 4, 5)]
    results = [question(candidate(2, "path", 0.001), candidate(1, "fork", 0.001), *dropped)]
    path, fork = select_pairs(results, SearchConfig(), "")
    test = sequential_test(128, 0.2 - 0.05)
    assert path.gap == gap_interval(test, 48, 40, 12, 1 - 0.05 / 4)
    assert fork.gap == gap_interval(test, 48, 40, 12, 0.95)
    assert path.p_chosen == jeffreys(40, 48, half_width(1 - 0.05 / 4))
    assert path.gap.low < fork.gap.low


def test_criteria_are_two_families_over_the_whole_run() -> None:
    # fork: .03 and .04 pass together at fdr .05 (.04 <= .05 * 2 / 2). path: .03 beside .9 would
    # need .025 and fails. One family of four would pass none: .03 > .05 * 2 / 4.
    results = [
        question(candidate(0, "path", 0.03), candidate(1, "fork", 0.03, 7), name="a"),
        question(candidate(0, "path", 0.9), candidate(1, "fork", 0.04, 7), name="b"),
    ]
    kept = select_pairs(results, SearchConfig(fdr=0.05), "")
    assert [(pair.problem_id, pair.criterion) for pair in kept] == [("a", "fork"), ("b", "fork")]


def test_equal_pairs_are_exported_once() -> None:
    results = [question(candidate(1, "path", 0.001), candidate(1, "fork", 0.001), paths=2)]
    (pair,) = select_pairs(results, SearchConfig(), "")
    assert pair.criterion == "path"


def pair_record(tmp_path: Path) -> dict[str, Any]:
    """The line of a sound pair, as plain data."""
    selected = select_pairs([question(candidate(2, "path", 0.001))], SearchConfig(), "digest")
    write_pairs(tmp_path / "sound.jsonl", selected)
    record: dict[str, Any] = json.loads((tmp_path / "sound.jsonl").read_text())
    return record


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chosen": -1}, "chosen: got -1; token ids are whole numbers from 0"),
        ({"rejected": 2**63}, f"rejected: got {2**63}; token ids are whole numbers from 0"),
        ({"prompt_ids": [1, -7]}, "prompt_ids: got -7; token ids are whole numbers from 0"),
        ({"chosen": 9}, "chosen, rejected: both are token 9; a pair has two"),
        ({"chosen": "5"}, "chosen: Input should be a valid integer (found '5')"),
        ({"chosen": 5.0}, "chosen: Input should be a valid integer (found 5.0)"),
        ({"chosen": True}, "chosen: Input should be a valid integer (found True)"),
        ({"prompt_ids": []}, "prompt_ids: got []; the ids of a prompt are needed"),
        ({"chosen_prob": 2}, "chosen_prob: got 2.0; a number from 0 to 1 is needed"),
        ({"rejected_prob": float("nan")}, "rejected_prob: got nan; a number from 0 to 1 is needed"),
        ({"expected_gain": float("inf")}, "expected_gain: got inf; a finite number is needed"),
        ({"pvalue": -0.1}, "pvalue: got -0.1; a number from 0 to 1 is needed"),
        ({"choosen": 3}, "choosen: no such key; did you mean 'chosen'?"),
        ({"weight": 3, "prompt_ids": []}, "weight: no such key; prompt_ids: got []"),
    ],
)
def test_a_pair_that_can_be_none_is_told_with_its_line(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    record = pair_record(tmp_path)
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(record) + "\n" + json.dumps({**record, **changes}) + "\n")
    with pytest.raises(DataError, match=re.escape(f"{file}, line 2: {said}")):
        read_pairs(file)


def test_keys_of_an_estimate_are_looked_at_too(tmp_path: Path) -> None:
    record = pair_record(tmp_path)
    for changes, said in (
        ({"hihg": 0.5}, "gap.hihg: no such key; did you mean 'high'?"),
        ({"mean": float("nan")}, "gap.mean: got nan; a finite number is needed"),
    ):
        changed = {**record, "gap": {**record["gap"], **changes}}
        (tmp_path / "pairs.jsonl").write_text(json.dumps(changed) + "\n")
        with pytest.raises(DataError, match=re.escape(f"line 1: {said}")):
            read_pairs(tmp_path / "pairs.jsonl")


def test_a_key_that_stands_twice_is_told(tmp_path: Path) -> None:
    line = json.dumps(pair_record(tmp_path)).replace("{", '{"chosen": 3, ', 1)
    (tmp_path / "pairs.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match="line 1: the key 'chosen' stands twice"):
        read_pairs(tmp_path / "pairs.jsonl")


def test_pairs_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    pair_record(tmp_path)
    plain = tmp_path / "sound.jsonl"
    (tmp_path / "marked.jsonl").write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert read_pairs(tmp_path / "marked.jsonl") == read_pairs(plain)
