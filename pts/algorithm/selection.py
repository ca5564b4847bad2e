"""The pairs of a whole run: those that fresh rollouts confirmed, under one false discovery rate."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from pts.algorithm.criteria import CRITERIA
from pts.config import SearchConfig
from pts.stats import benjamini_hochberg, jeffreys, newcombe
from pts.types import CandidatePair, CompletionResult, QuestionResult, TokenPair

KEY_BYTES = 16
"""Of the digest of (prefix, chosen, rejected) by which a `Selection` knows equal pairs."""


def select_pairs(
    results: Iterable[QuestionResult], config: SearchConfig, policy_digest: str
) -> list[TokenPair]:
    """The pairs that fresh rollouts confirm, for the whole run.

    All proposed pairs are tested together at false discovery rate `config.fdr`
    (Benjamini-Hochberg), those of each criterion as a family of their own. Each side gets a
    Jeffreys interval, the gap Newcombe's, both at 95 % and from confirmation rollouts only.
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

    def __init__(self, config: SearchConfig, policy_digest: str) -> None:
        self._config, self._policy_digest = config, policy_digest
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
        accepted = iter(self._accepted())
        for result in results:
            for path in result.paths:
                for pair in path.pairs:
                    if next(accepted):
                        yield _token_pair(result, path, pair, self._policy_digest)

    def _accepted(self) -> bytearray:
        """A byte a pair, 1 where it is kept; of equal ones that of the criterion which stands first
        in `CRITERIA`, else the first."""
        accepted, seen = bytearray(len(self._pvalues)), set[bytes]()
        for name in sorted(self._names, key=[*CRITERIA, *self._names].index):
            own = self._names.index(name)
            family = [i for i, criterion in enumerate(self._families) if criterion == own]
            passed = benjamini_hochberg([self._pvalues[i] for i in family], self._config.fdr)
            for i, accept in zip(family, passed, strict=True):
                key = bytes(self._keys[i * KEY_BYTES : (i + 1) * KEY_BYTES])
                if accept and key not in seen:
                    seen.add(key)
                    accepted[i] = 1
        return accepted


def _token_pair(
    question: QuestionResult, path: CompletionResult, pair: CandidatePair, policy_digest: str
) -> TokenPair:
    c, r = pair.confirm_chosen, pair.confirm_rejected
    return TokenPair(
        problem_id=question.problem_id,
        prompt_ids=question.prompt_ids + path.ids[: pair.position],
        chosen=pair.chosen,
        rejected=pair.rejected,
        chosen_prob=pair.chosen_prob,
        rejected_prob=pair.rejected_prob,
        p_chosen=jeffreys(c.successes, c.n),
        p_rejected=jeffreys(r.successes, r.n),
        gap=newcombe(c.successes, c.n, r.successes, r.n),
        pvalue=pair.pvalue,
        expected_gain=pair.expected_gain,
        criterion=pair.criterion,
        policy_digest=policy_digest,
    )
