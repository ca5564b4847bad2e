"""The pairs of a whole run: those that fresh rollouts confirmed, under one false discovery rate.

What is published of them is corrected for having been selected: intervals of R pairs that were
selected among m have the level 1 - MISCOVERED · R / m, so that of all published intervals at most
that share is expected to miss (false coverage-statement rate, Benjamini & Yekutieli 2005).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from pts.algorithm.criteria import CRITERIA
from pts.algorithm.sequential import SequentialTest, gap_interval, sequential_test
from pts.config import SearchConfig
from pts.stats import benjamini_hochberg, half_width, jeffreys
from pts.types import CandidatePair, CompletionResult, QuestionResult, TokenPair

KEY_BYTES = 16
"""Of the digest of (prefix, chosen, rejected) by which a `Selection` knows equal pairs."""

MISCOVERED = 0.05
"""Share of published intervals that is expected to miss the truth, at most."""


def select_pairs(
    results: Iterable[QuestionResult], config: SearchConfig, policy_digest: str
) -> list[TokenPair]:
    """The pairs that fresh rollouts confirm, for the whole run.

    All proposed pairs are tested together at false discovery rate `config.fdr`
    (Benjamini-Hochberg), those of each criterion as a family of their own. The gap is the
    median-unbiased estimate of a test that stopped early, with its interval
    (`pts.algorithm.sequential.gap_interval`); each side is a raw proportion with a Jeffreys
    interval. All rest on confirmation rollouts only, at 95 % corrected for the selection.
    `policy_digest` is the digest of what was sampled from. Order: that of the results.
    """
    kept = [result for result in results if any(path.pairs for path in result.paths)]
    selection = Selection(config, policy_digest)
    for result in kept:
        selection.see(result)
    return list(selection.pick(kept))


class Selection:
    """`select_pairs` for a run that memory cannot hold: shown twice, 25 bytes a pair are kept.

    Show every result to `see`, then the same results in the same order to `pick`.
    """

    def __init__(
        self, config: SearchConfig, policy_digest: str, test: SequentialTest | None = None
    ) -> None:
        """`test` is the one that confirmed the pairs, if another than that of `config`."""
        self._config, self._policy_digest = config, policy_digest
        self._test = test or sequential_test(
            config.confirm_rollouts, config.p_gap - config.indifference_margin
        )
        self._pvalues = array("d")
        self._keys = bytearray()
        self._names: list[str] = []
        self._families = bytearray()

    def see(self, result: QuestionResult) -> None:
        """Take note of the p-values of a result."""
        for path in result.paths:
            for pair in path.pairs:
                self._pvalues.append(pair.pvalue)
                if pair.criterion not in self._names:
                    self._names.append(pair.criterion)
                self._families.append(self._names.index(pair.criterion))
                prefix = result.prompt_ids + path.ids[: pair.position]
                key = np.asarray((*prefix, pair.chosen, pair.rejected), dtype="<i8").tobytes()
                self._keys += hashlib.blake2b(key, digest_size=KEY_BYTES).digest()

    def pick(self, results: Iterable[QuestionResult]) -> Iterator[TokenPair]:
        """The confirmed pairs of the results, none twice."""
        levels = dict[str, float]()
        accepted = iter(self._accepted(levels))
        for result in results:
            for path in result.paths:
                for pair in path.pairs:
                    if next(accepted):
                        yield self._token_pair(result, path, pair, levels[pair.criterion])

    def _accepted(self, levels: dict[str, float]) -> bytearray:
        """A byte a pair, 1 where it is kept; of equal ones that of the criterion which stands first
        in `CRITERIA`, else the first. `levels` takes the level of each criterion's intervals."""
        accepted, seen = bytearray(len(self._pvalues)), set[bytes]()
        for name in sorted(self._names, key=[*CRITERIA, *self._names].index):
            own = self._names.index(name)
            family = [i for i, criterion in enumerate(self._families) if criterion == own]
            passed = benjamini_hochberg([self._pvalues[i] for i in family], self._config.fdr)
            levels[self._names[own]] = 1 - MISCOVERED * sum(passed) / len(family)
            for i, accept in zip(family, passed, strict=True):
                key = bytes(self._keys[i * KEY_BYTES : (i + 1) * KEY_BYTES])
                if accept and key not in seen:
                    seen.add(key)
                    accepted[i] = 1
        return accepted

    def _token_pair(
        self, question: QuestionResult, path: CompletionResult, pair: CandidatePair, level: float
    ) -> TokenPair:
        c, r, z = pair.confirm_chosen, pair.confirm_rejected, half_width(level)
        gap = gap_interval(self._test, c.n, c.successes, r.successes, level)
        return TokenPair(
            problem_id=question.problem_id,
            prompt_ids=question.prompt_ids + path.ids[: pair.position],
            chosen=pair.chosen,
            rejected=pair.rejected,
            chosen_prob=pair.chosen_prob,
            rejected_prob=pair.rejected_prob,
            p_chosen=jeffreys(c.successes, c.n, z),
            p_rejected=jeffreys(r.successes, r.n, z),
            gap=gap,
            pvalue=pair.pvalue,
            expected_gain=pair.rejected_prob * gap.mean,
            criterion=pair.criterion,
            policy_digest=self._policy_digest,
        )
