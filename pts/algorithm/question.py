"""The search of one question: filter, score, search its paths, screen siblings, confirm pairs.

`search_question` is a generator (see `pts.types.Search`). It yields lists of queries and is sent
the measurements in the same order; whoever drives it owns models, verifiers, limits and seeds
of rollouts. The answer to a `RolloutQuery` holds PASS and FAIL rollouts only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from pts.algorithm.bisect import search_bisect
from pts.algorithm.branch import search_branch
from pts.algorithm.criteria import check_criteria
from pts.algorithm.filtering import equal_verdicts
from pts.algorithm.pairs import confirm, rank_proposals, screen
from pts.algorithm.paths import ScoredCompletion, SiblingCounts, completion_faults
from pts.algorithm.requests import (
    SearchRoutine,
    gather,
    request,
    request_logprobs,
    request_steps,
    with_cost,
)
from pts.algorithm.results import completion_result
from pts.algorithm.siblings import PairProposal, PathAnalysis
from pts.algorithm.tails import HEAD
from pts.config import SearchConfig
from pts.errors import DataError
from pts.stats import jeffreys
from pts.types import (
    CompletionResult,
    Cost,
    FilterCounts,
    Ids,
    LogprobQuery,
    Purpose,
    QuestionResult,
    Rollout,
    RolloutQuery,
    Search,
)


def search_question(
    problem_id: str,
    prompt_ids: Ids,
    limit: int,
    config: SearchConfig,
    seed: int,
    completions: Sequence[Ids] | None = None,
    stop_ids: frozenset[int] = frozenset(),
) -> Search:
    """Search one question.

    `config.filter_rollouts` rollouts decide whether the question is kept (p_min <= p <= p_max); if
    the first few all pass or all fail it is set aside at once (`pts.algorithm.filtering`).
    The first `config.paths` of them, by index and whatever became of them, are the paths (equal
    ones are searched once); `completions` (a teacher's, say) are paths too, kept or set aside with
    their question. One with a token that the policy cannot sample ends as "impossible".
    `limit` is the length limit of a whole completion, `seed` settles every random choice here.

    Raises ConfigError for unknown criteria and, at once too, DataError if a completion is empty,
    longer than `limit`, or unfinished: it must end in one of `stop_ids` or be exactly `limit`
    tokens long.
    """
    check_criteria(config)
    given = [tuple(ids) for ids in completions or ()]
    faults = completion_faults(problem_id, given, limit, stop_ids)
    if faults:
        raise DataError("\n".join(faults))
    return _search(problem_id, prompt_ids, config, seed, given)


def _search(
    problem_id: str, prompt_ids: Ids, config: SearchConfig, seed: int, given: Sequence[Ids]
) -> Search:
    spent: dict[Purpose, Cost] = {}
    rollouts, stopped = yield from with_cost(_filtered(config), spent)
    passed = sum(rollout.success for rollout in rollouts)
    solved = jeffreys(passed, len(rollouts))
    paths: list[CompletionResult] = []
    status: Literal["searched", "too easy", "too hard"] = "searched"
    if not stopped and config.p_min <= solved.mean <= config.p_max:
        steps = _search_kept(f"{seed}/{problem_id}", rollouts, config, given)
        paths = yield from with_cost(steps, spent)
    else:
        status = "too hard" if solved.mean < config.p_min else "too easy"
    seen = FilterCounts(passed, len(rollouts), stopped)
    found = tuple(paths)
    return QuestionResult(problem_id, prompt_ids, status, solved, found, spent, filtered=seen)


def _filtered(config: SearchConfig) -> SearchRoutine[tuple[list[Rollout], bool]]:
    """The filter's rollouts, and whether the first ones set the question aside by themselves."""
    first = equal_verdicts(config)
    (rollouts,) = yield from request([RolloutQuery((), first, "filter")])
    share = sum(rollout.success for rollout in rollouts) / first
    if first < config.filter_rollouts:
        if share in (0.0, 1.0) and not config.p_min <= share <= config.p_max:
            return rollouts, True
        rest = RolloutQuery((), config.filter_rollouts - first, "filter")
        rollouts = rollouts + (yield from request([rest]))[0]
    return rollouts, False


def _search_kept(
    name: str, rollouts: Sequence[Rollout], config: SearchConfig, given: Sequence[Ids]
) -> SearchRoutine[list[CompletionResult]]:
    """Search the paths of a question that passed the filter."""
    judged = yield from request([RolloutQuery(ids, 1, "search") for ids in given])
    found = {rollout.ids: rollout.verdict for rollout in rollouts[: config.paths]}
    found |= {ids: rollout.verdict for ids, (rollout,) in zip(given, judged, strict=True)}
    rows = yield from request_logprobs([LogprobQuery(ids, HEAD) for ids in found])
    ends: Sequence[Sequence[int]] = [()] * len(found)
    if config.unit == "step":
        ends = yield from request_steps(list(found))
    paths = [
        ScoredCompletion(ids, verdict, tuple(row), tuple(end))
        for (ids, verdict), row, end in zip(found.items(), rows, ends, strict=True)
    ]
    return (yield from search_paths(name, paths, rollouts, config))


def search_paths(
    name: str, paths: Sequence[ScoredCompletion], unforced: Sequence[Rollout], config: SearchConfig
) -> SearchRoutine[list[CompletionResult]]:
    """Search scored paths of one question in lockstep, then confirm their best pairs.

    At unit "step" there are no pairs: they are made of single tokens.

    `unforced` are whole rollouts from the prompt that may guide the search; one that is a path
    itself never leaves it and so tells nothing of its branches. `name` seeds the random choices.
    """
    possible = [i for i, path in enumerate(paths) if path.possible]
    if config.method == "bisect":
        findings = yield from search_bisect([paths[i] for i in possible], config)
    else:
        searches = [
            search_branch(paths[i], unforced, config, _generator(name, i)) for i in possible
        ]
        findings = yield from gather(searches)
    done = [finding.result for finding in findings]
    if config.unit == "token":
        proposals = yield from gather([screen(finding, config) for finding in findings])
        done = yield from _confirmed(findings, proposals, config)
    results = dict(zip(possible, done, strict=True))
    return [
        results.get(i) or completion_result(path, {}, (), SiblingCounts(), "impossible")
        for i, path in enumerate(paths)
    ]


def _confirmed(
    findings: Sequence[PathAnalysis],
    proposals: Sequence[Sequence[PairProposal]],
    config: SearchConfig,
) -> SearchRoutine[list[CompletionResult]]:
    """Confirm the question's best proposals and file each pair with the path that proposed it."""
    best = rank_proposals([pair for pairs in proposals for pair in pairs], config.max_pairs)
    tested = yield from confirm(best, config)
    results = []
    for finding, own in zip(findings, proposals, strict=True):
        pairs = tuple(
            pair
            for proposal, pair in zip(best, tested, strict=True)
            if any(proposal is candidate for candidate in own)
        )
        siblings = finding.groups.table(finding.path)
        results.append(replace(finding.result, pairs=pairs, siblings=siblings))
    return results


def _generator(name: str, index: int) -> np.random.Generator:
    digest = hashlib.blake2b(f"{name}/{index}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
