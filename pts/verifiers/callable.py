"""Any Python function as a verifier.

    verifier = CallableVerifier(lambda problem, text: problem.reference in text)

The function must be deterministic. What it raises makes the completion UNSCORED, so broken
functions set questions aside instead of ending a run.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pts.errors import VerifierError
from pts.types import Grade, Problem, Verdict


class CallableVerifier:
    """Calls `function(problem, text)`, which returns a bool, a Verdict or a Grade.

    Raises VerifierError when it returns anything else (None, most often: a forgotten return).
    """

    def __init__(self, function: Callable[[Problem, str], bool | Verdict | Grade]) -> None:
        self.function = function

    def __call__(self, problem: Problem, text: str) -> Grade:
        said = self.function(problem, text)
        if isinstance(said, Grade):
            return said
        if isinstance(said, Verdict):
            return Grade(said)
        if isinstance(said, (bool, np.bool_)):
            return Grade(Verdict.PASS if said else Verdict.FAIL)
        raise VerifierError(f"{self.function!r} returned {said!r}, not a bool, Verdict or Grade")
