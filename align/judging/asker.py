"""Prompts to a model whose replies have a form: asked again where they cannot be read, journalled.

    asker = Asker(backend, journal, attempts=3, version=1)
    [(value, found)] = asker.ask([Prompt("Answer with one JSON object: ...")], read)

What a call said is kept in the journal under a digest of model, version, prompt and attempt, so
that no call is made twice. A value of None means UNSCORED (or nothing usable); `found` tells why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from align.judging.calls import Backend, Call, Said, call_digest
from align.judging.replies import Found
from pts.types import Message

if TYPE_CHECKING:
    from align.judging.journal import CallJournal

COUNTS = (
    "calls", "prompt_tokens", "reply_tokens", "calls_without_usage", "asked_again", "repaired",
    "malformed", "out_of_range", "refused", "timed_out", "cut", "rejected", "busy",
)  # fmt: skip
"""What is counted of calls: what became of those that gave nothing, by kind; `repaired` ones that
did; `busy`, how often the endpoint turned a call away (429) before it answered."""

_AGAIN = """

An earlier answer of yours could not be read. Answer with the JSON object alone, in exactly that
form."""
_LOST: dict[str, Found] = {
    "late": Found("timed_out", "no reply in time"),
    "length": Found("cut", "the reply was cut by max_tokens"),
    "refused": Found("refused", "the endpoint says that the model refused"),
}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to ask, and which of several samples of it this is."""

    text: str
    sample: int = 0


class Asker:
    """Asks prompts of a backend, each as often as it takes, `attempts` times at most."""

    def __init__(
        self, backend: Backend, journal: CallJournal, attempts: int, version: int,
        name: str = "judge", progress: bool = False,
    ) -> None:  # fmt: skip
        """`version` is that of the prompts, `name` that of the progress bar."""
        self._backend, self._journal, self._attempts = backend, journal, attempts
        self._name, self._progress = name, progress
        self._identity = {**backend.identity, "prompt": version}
        self._made: dict[str, tuple[Said, Found, int]] = {}
        """Calls that the results rest on: what came back, what it says, which attempt."""

    def ask(
        self, prompts: Sequence[Prompt], read: Callable[[Prompt, str], tuple[T | None, Found]]
    ) -> list[tuple[T | None, Found]]:
        """What `read` makes of the reply to each prompt, in their order.

        Raises EngineError for a model that cannot be asked; called again, it goes on.
        """
        found: dict[Prompt, tuple[T | None, Found]] = {}
        left = list(dict.fromkeys(prompts))
        for attempt in range(1, self._attempts + 1):
            calls = {prompt: self._call(prompt, attempt) for prompt in left}
            missing = [call for call in calls.values() if not self._journal.get(call.digest)]
            ask_all(self._backend, self._journal, missing, self._name, self._progress)
            for prompt, call in calls.items():
                said = self._journal.get(call.digest)
                assert said is not None
                found[prompt] = _read(said, prompt, read)
                self._made[call.digest] = (said, found[prompt][1], attempt)
            left = [
                prompt for prompt in left if found[prompt][1].kind not in ("scored", "rejected")
            ]
        return [found[prompt] for prompt in prompts]

    def _call(self, prompt: Prompt, attempt: int) -> Call:
        text = prompt.text + _AGAIN if attempt > 1 else prompt.text
        asked = [text, prompt.sample] if prompt.sample else text
        return Call(call_digest(self._identity, asked, attempt), (Message("user", text),))

    @property
    def counts(self) -> dict[str, int]:
        """By the names in `COUNTS`; calls that the journal held already are counted like others."""
        counted = Counter[str](dict.fromkeys(COUNTS, 0))
        for said, found, attempt in self._made.values():
            counted.update(spent(said))
            counted["asked_again"] += attempt > 1
            counted["repaired"] += bool(found.repairs)
            if found.kind != "scored":
                counted[found.kind] += 1
        return dict(counted)


def ask_all(
    backend: Backend, journal: CallJournal, calls: Sequence[Call], name: str, progress: bool
) -> None:
    """Make calls and keep what came back, each as soon as it is there."""
    from tqdm import tqdm

    with tqdm(total=len(calls), desc=name, unit="call", disable=not progress) as bar:
        for call, said in backend.ask(calls):
            journal.put(call.digest, said)
            bar.update()


def spent(said: Said) -> dict[str, int]:
    """What one call took, by names of `COUNTS`."""
    return {
        "calls": 1,
        "prompt_tokens": said.prompt_tokens,
        "reply_tokens": said.reply_tokens,
        "calls_without_usage": int(not said.counted),
        "busy": said.busy,
    }


def _read(
    said: Said, prompt: Prompt, read: Callable[[Prompt, str], tuple[T | None, Found]]
) -> tuple[T | None, Found]:
    if said.end == "rejected":
        return None, Found("rejected", said.text)
    if said.end in _LOST:
        return None, _LOST[said.end]
    return read(prompt, said.text)
