"""Turns sampled token ids into rollouts: length limit, stop ids, verdicts.

One `Grader` serves one question. It holds the rules that are the same for every search: what fills
the limit without a stop id is cut, and cut is FAIL whatever the text says; a verifier that raises
could not run, which is UNSCORED. Verdicts are remembered by completion, so equal completions are
verified once.
"""

from __future__ import annotations

import logging

from pts.engines.base import Engine
from pts.errors import EngineError, VerifierError
from pts.files import prefix_digest
from pts.types import Grade, Ids, Problem, Rollout, Verdict
from pts.verifiers.base import Verifier

_log = logging.getLogger(__name__)


class Grader:
    """Judges the completions of one question."""

    def __init__(self, problem: Problem, engine: Engine, verifier: Verifier) -> None:
        self.problem = problem
        self.reason = ""
        """Why the last UNSCORED completion could not be judged."""
        self._engine, self._verifier = engine, verifier
        self._verdicts: dict[str, Verdict] = {}

    def room(self, prefix: Ids) -> int:
        """Tokens that may follow `prefix`: 0 when it is finished or fills the limit."""
        if prefix[-1:] and prefix[-1] in self._engine.stop_ids:
            return 0
        return max(0, self._engine.sampling.max_new_tokens - len(prefix))

    def as_it_stands(self, prefix: Ids) -> Rollout:
        """The rollout of a prefix without room, which costs nothing."""
        stopped = prefix[-1] in self._engine.stop_ids
        verdict = self._verdict(prefix) if stopped else Verdict.FAIL
        return Rollout((), verdict, not stopped, 0)

    def rollout(self, prefix: Ids, ids: Ids) -> Rollout:
        """The rollout of the continuation `ids` of `prefix`, with all its ids.

        Raises EngineError when `ids` neither ends with its first stop id nor fills the limit.
        """
        limit, stop_ids = self.room(prefix), self._engine.stop_ids
        stopped = bool(ids) and ids[-1] in stop_ids
        whole = stopped or len(ids) == limit
        if not ids or not whole or len(ids) > limit or stop_ids.intersection(ids[:-1]):
            raise EngineError(
                f"{type(self._engine).__name__}.sample gave {len(ids)} tokens under a limit of "
                f"{limit}; a completion must end with its first stop id or fill the limit"
            )
        verdict = self._verdict(prefix + ids) if stopped else Verdict.FAIL
        return Rollout(ids, verdict, not stopped, len(ids))

    def _verdict(self, completion: Ids) -> Verdict:
        digest = prefix_digest(completion)
        if digest not in self._verdicts:
            grade = self._ask(self._engine.decode(completion))
            if grade.verdict is Verdict.UNSCORED:
                self.reason = grade.reason or "the verifier gave no reason"
                return Verdict.UNSCORED
            self._verdicts[digest] = grade.verdict
        return self._verdicts[digest]

    def _ask(self, text: str) -> Grade:
        try:
            grade = self._verifier(self.problem, text)
        except Exception as error:
            _log.debug("verifier failed on question %r", self.problem.id, exc_info=True)
            return Grade(Verdict.UNSCORED, reason=f"{type(error).__name__}: {error}")
        if not isinstance(grade, Grade):
            raise VerifierError(
                f"the verifier returned {grade!r} for question {self.problem.id!r}; it must "
                "return a Grade (wrap a plain function in CallableVerifier)"
            )
        return grade
