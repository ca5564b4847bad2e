"""Problems as they are given: checked before they are searched, completions made token ids of."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pts.algorithm.paths import completion_faults
from pts.config import SearchConfig
from pts.data.tables import BROKEN_TEXT, broken_text
from pts.engines.base import Engine
from pts.errors import DataError, PTSError
from pts.types import Ids, Problem

SHOWN = 20
"""Faults listed at most in one message."""

LACKS = (
    "has no completions, and paths = 0 searches none of the policy's own; give completions or set "
    "paths"
)
"""The fault of a problem of which nothing is to be searched."""

TEMPLATE_TOKENS = 1024
"""Room for what a chat template adds; a prompt is encoded to be measured only if this, its bytes
and the length limit could outgrow the engine together. (Tokens are rarely shorter than a byte.)"""

_log = logging.getLogger(__name__)


class Completions:
    """Reads `Problem.completions` for one engine and one search.

    To take completions as text, an engine has a method `encode_text(text)`: the ids of a
    completion's text, as the tokenizer cuts it; nothing is put around it.
    """

    def __init__(self, engine: Engine, config: SearchConfig) -> None:
        self._engine, self._config = engine, config
        self._warned = False

    def of(self, problem: Problem) -> tuple[Ids, ...]:
        """The problem's completions as ids, finished ones each.

        A text gets the stop token that the policy finds likeliest at its end, unless it ends in
        one. Raises DataError with a line for everything that is wrong.
        """
        found, faults = self._read(problem)
        if faults:
            raise DataError("\n".join(faults))
        return tuple(
            self._stopped(problem, ids) if isinstance(given, str) else ids
            for given, ids in zip(problem.completions, found, strict=True)
        )

    def check(self, problems: Iterable[Problem]) -> None:
        """Raise one DataError for all faults of all problems, if there are any."""
        faults = [
            fault
            for problem in problems
            for fault in self._read(problem)[1] or self._too_long(problem)
        ]
        if len(faults) > 1 and all(fault.endswith(LACKS) for fault in faults):
            raise DataError(f"{faults[0]} (so it is with {len(faults) - 1:,} more problems)")
        if faults:
            more = [f"… and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
            raise DataError("\n".join(faults[:SHOWN] + more))

    def _read(self, problem: Problem) -> tuple[list[Ids], list[str]]:
        """Ids of every completion (texts without their stop token), and what is wrong with them."""
        if isinstance(problem.completions, str) or not isinstance(problem.completions, Sequence):
            return [], [
                f"problem {problem.id!r}: completions must be a tuple of token ids or texts, "
                f"found {type(problem.completions).__name__}"
            ]
        become_bytes: dict[str, object] = {
            "id": problem.id,
            "prompt": _prompt_texts(problem),
            "reference": str(problem.reference),
            "completion": [text for text in problem.completions if isinstance(text, str)],
        }
        broken = [name for name, text in become_bytes.items() if broken_text(text)]
        if broken:
            return [], [f"problem {problem.id!r}: its {name} {BROKEN_TEXT}" for name in broken]
        if not problem.completions and not self._config.paths:
            return [], [f"problem {problem.id!r}: {LACKS}"]
        found, faults = list[Ids](), list[str]()
        for index, given in enumerate(problem.completions):
            try:
                found.append(self._ids(given))
            except PTSError as error:
                faults.append(f"completion {index} of problem {problem.id!r}: {error}")
        return found, faults or self._unfinished(problem, found)

    def _too_long(self, problem: Problem) -> list[str]:
        longest, limit = getattr(self._engine, "max_model_len", None), self._engine.sampling
        if longest is None or not may_outgrow(problem, longest - limit.max_new_tokens):
            return []
        length = len(self._engine.encode(problem))
        if length + limit.max_new_tokens <= longest:
            return []
        return [
            f"problem {problem.id!r}: its prompt has {length} tokens, which with max_new_tokens = "
            f"{limit.max_new_tokens} exceed the engine's {longest}; shorten or drop it"
        ]

    def _unfinished(self, problem: Problem, found: Sequence[Ids]) -> list[str]:
        stops = self._engine.stop_ids
        whole = [
            (*ids, min(stops)) if isinstance(given, str) and ids[-1] not in stops else ids
            for given, ids in zip(problem.completions, found, strict=True)
        ]
        return completion_faults(problem.id, whole, self._engine.sampling.max_new_tokens, stops)

    def _ids(self, given: object) -> Ids:
        if isinstance(given, str):
            return self._encoded(given)
        if not isinstance(given, Sequence):
            raise DataError(f"must be token ids or text, found {type(given).__name__}")
        for at, token in enumerate(given):
            if isinstance(token, bool) or not isinstance(token, int | np.integer) or token < 0:
                raise DataError(
                    f"holds {token!r} at position {at}; token ids are whole numbers from 0"
                )
        return tuple(map(int, given))

    def _encoded(self, text: str) -> Ids:
        encode_text: Callable[[str], Ids] | None = getattr(self._engine, "encode_text", None)
        if encode_text is None:
            name = type(self._engine).__name__
            raise DataError(f"is text, which {name} cannot encode (no encode_text); give token ids")
        if not self._warned:
            _log.warning(
                "completions given as text are cut into tokens anew: these may not be the tokens "
                "that were once sampled; give token ids where you have them"
            )
            self._warned = True
        ids = tuple(encode_text(text))
        if not ids:
            raise DataError("encodes to no tokens; give a text or drop it")
        return ids

    def _stopped(self, problem: Problem, ids: Ids) -> Ids:
        """The ids with a stop token at their end."""
        stops = sorted(self._engine.stop_ids)
        if ids[-1] in stops:
            return ids
        if len(stops) == 1:
            return (*ids, stops[0])
        last = self._engine.score(self._engine.encode(problem), (*ids, stops[0]))[-1]
        return (*ids, max(stops, key=lambda stop: (last.prob(stop), -stop)))


def may_outgrow(problem: Problem, room: int | None) -> bool:
    """Whether a prompt is so long that it has to be encoded to know if it fits into `room`."""
    texts = _prompt_texts(problem)
    return room is not None and sum(len(t.encode()) for t in texts) + TEMPLATE_TOKENS > room


def _prompt_texts(problem: Problem) -> list[str]:
    said = problem.prompt
    return [said] if isinstance(said, str) else [turn.content for turn in said]
