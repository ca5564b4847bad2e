"""An engine that answers with one word and stops; what it will say is known exactly."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import numpy as np

from pts.config import SamplingConfig
from pts.engines.base import SampleRequest
from pts.types import Grade, Ids, Problem, TokenDistribution, Verdict

STOP, RIGHT, WRONG, AGAIN = 0, 1, 2, 3
WORDS = {STOP: "", RIGHT: "right", WRONG: "wrong", AGAIN: "again"}


class TwoWordEngine:
    """Logits of "right", "wrong" and "again" by prompt; "again" asks once more, the others stop."""

    reproducible = True
    stop_ids = frozenset({STOP})

    def __init__(
        self, logits: Mapping[str, tuple[float, float, float]], sampling: SamplingConfig
    ) -> None:
        self.logits, self.sampling = logits, sampling
        self.policy_digest = f"two words {sorted(logits.items())}"
        self.sampled = 0
        self._prompts = sorted(logits)

    def probs(self, prompt: str) -> np.ndarray:
        """π over the three words."""
        logits = np.array(self.logits[prompt])
        if self.sampling.temperature == 0:
            return np.eye(3)[int(logits.argmax())]
        weights = np.exp(logits / self.sampling.temperature)
        return weights / weights.sum()

    def encode(self, problem: Problem) -> Ids:
        return (self._prompts.index(str(problem.prompt)),)

    def decode(self, ids: Ids) -> str:
        return " ".join(WORDS[i] for i in ids if i != STOP)

    def token_texts(self, ids: Ids) -> list[str]:
        return [WORDS[i] or "<stop>" for i in ids]

    def score(self, prompt: Ids, completion: Ids) -> list[TokenDistribution]:
        probs = self.probs(self._prompts[prompt[0]])
        ask = TokenDistribution(np.array([RIGHT, WRONG, AGAIN]), probs)
        stop = TokenDistribution(np.array([STOP]), np.array([1.0]))
        before = (AGAIN, *completion[:-1])
        return [ask if last == AGAIN else stop for last in before]

    def sample(
        self, requests: Iterator[SampleRequest | None]
    ) -> Iterator[tuple[SampleRequest, list[Ids]]]:
        for request in requests:
            if request is not None:
                yield request, [self._rollout(request, seed) for seed in request.seeds]

    def _rollout(self, request: SampleRequest, seed: int) -> Ids:
        self.sampled += 1
        draw, ids = random.Random(seed), [AGAIN]
        probs = self.probs(self._prompts[request.prompt[0]])
        while len(ids) <= request.max_tokens and ids[-1] != STOP:
            word = draw.choices((RIGHT, WRONG, AGAIN), probs)[0] if ids[-1] == AGAIN else STOP
            ids.append(word)
        return tuple(ids[1:])


def judge(problem: Problem, text: str) -> Grade:
    """PASS when the answer is right, UNSCORED for problems without a reference."""
    if not problem.reference:
        return Grade(Verdict.UNSCORED, reason="no reference")
    return Grade(Verdict.PASS if text.endswith("right") else Verdict.FAIL)
